"""A network that gets faster while it serves: compiled beside the requests, never in their way."""

import logging
import threading
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

log = logging.getLogger(__name__)

# Each is compiled by itself, and torch compiles one function for at most 8 kinds of arguments.
MAX_SHAPES = 8

Shapes = tuple[torch.Size, ...]


class CompiledNetwork:
    """Calls a network as it is, and for arguments of known shapes its compiled twin.

    The first call with new shapes has the twin compiled for them on a thread of its own; until that
    is done, and for good where it fails, calls go to the network as it is. The twin shares the
    weights. What torch has compiled it keeps in TORCHINDUCTOR_CACHE_DIR, by the code, the versions
    and the GPU: a later process finds it there. One thread calls this.
    """

    def __init__(self, network: Any, *, backend: str = "inductor") -> None:
        self._network = network
        self._backend = backend
        self._ready = set[Shapes]()
        self._tried = set[Shapes]()
        self._thread: threading.Thread | None = None
        self._twin: Any = None

    @property
    def ready(self) -> int:
        """For how many shapes it is compiled."""
        return len(self._ready)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """As the network's own."""
        shapes = _shapes(arguments, options)
        if shapes in self._ready:
            return self._twin(*arguments, **options)
        self._want(shapes, arguments, options)
        return self._network(*arguments, **options)

    def wait(self) -> None:
        """Until what is being compiled is done."""
        if self._thread:
            self._thread.join()

    def _want(self, shapes: Shapes, arguments: Any, options: Any) -> None:
        is_busy = self._thread is not None and self._thread.is_alive()
        if is_busy or shapes in self._tried or len(self._tried) == MAX_SHAPES:
            return
        self._tried.add(shapes)
        # Copies: what a caller does with its own meanwhile is its affair.
        arguments, options = pytree.tree_map_only(Tensor, torch.clone, (arguments, options))
        self._thread = threading.Thread(
            target=self._compile, args=(shapes, arguments, options), name="compiler", daemon=True
        )
        self._thread.start()

    def _compile(self, shapes: Shapes, arguments: Any, options: Any) -> None:
        try:
            with torch.inference_mode():
                if self._twin is None:
                    self._twin = torch.compile(
                        _twin(self._network), backend=self._backend, dynamic=False
                    )
                self._twin(*arguments, **options)
        except Exception:
            # Whatever it was, the network as it is does the same.
            log.exception("not compiled for %s: it stays as it is", _told(shapes))
            return
        self._ready.add(shapes)
        log.info("compiled for %s", _told(shapes))


def _twin(network: Any) -> Any:
    """A module of its own over the same weights, so that compiling one leaves the other alone."""
    with torch.device("meta"):
        twin = type(network).from_config(network.config)
    twin.load_state_dict(network.state_dict(), assign=True)
    return twin.eval().requires_grad_(requires_grad=False)


def _shapes(arguments: Any, options: Any) -> Shapes:
    leaves = pytree.tree_leaves((arguments, options))
    return tuple(leaf.shape for leaf in leaves if isinstance(leaf, Tensor))


def _told(shapes: Shapes) -> str:
    return ", ".join("x".join(map(str, shape)) for shape in shapes if len(shape) > 1)
