"""A network that gets faster while it serves: compiled beside the requests, never in their way."""

import copy
import itertools
import logging
import threading
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

log = logging.getLogger(__name__)

# Each is compiled by itself, and torch compiles one function for at most 8 kinds of arguments.
MAX_KINDS = 8

# Of each tensor: what a compiled function is compiled for, and would be compiled anew for.
Kind = tuple[tuple[torch.Size, tuple[int, ...], torch.dtype], ...]


class CompiledNetwork:
    """Calls a network as it is, and for arguments of a known kind its compiled twin.

    The first call with a new kind of arguments (shapes, samplers' types of timesteps) has the twin
    compiled for it on a thread of its own; until that is done, and for good where it fails, calls
    go to the network as it is. The twin shares the weights. What torch has compiled it keeps in
    TORCHINDUCTOR_CACHE_DIR, by the code, the versions and the GPU: a later process finds it there.
    One thread calls this.
    """

    def __init__(self, network: Any, *, backend: str = "inductor") -> None:
        self._network = network
        self._backend = backend
        self._ready = set[Kind]()
        self._tried = set[Kind]()
        self._thread: threading.Thread | None = None
        # Made here: later another thread may be in the middle of a call, with hooks of its own.
        self._copy = _twin(network)
        self._twin: Any = None

    @property
    def ready(self) -> int:
        """For how many kinds of arguments it is compiled."""
        return len(self._ready)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """As the network's own."""
        kind = _kind_of(arguments, options)
        if kind in self._ready:
            return self._twin(*arguments, **options)
        self._want(kind, arguments, options)
        return self._network(*arguments, **options)

    def wait(self) -> None:
        """Until what is being compiled is done."""
        if self._thread:
            self._thread.join()

    def _want(self, kind: Kind, arguments: Any, options: Any) -> None:
        is_busy = self._thread is not None and self._thread.is_alive()
        if is_busy or kind in self._tried or len(self._tried) == MAX_KINDS:
            return
        self._tried.add(kind)
        # Copies: what a caller does with its own meanwhile is its affair.
        arguments, options = pytree.tree_map_only(Tensor, torch.clone, (arguments, options))
        self._thread = threading.Thread(
            target=self._compile, args=(kind, arguments, options), name="compiler", daemon=True
        )
        self._thread.start()

    def _compile(self, kind: Kind, arguments: Any, options: Any) -> None:
        try:
            with torch.inference_mode():
                if self._twin is None:
                    self._twin = torch.compile(self._copy, backend=self._backend, dynamic=False)
                self._twin(*arguments, **options)
        except Exception:
            # Whatever it was, the network as it is does the same.
            log.exception("not compiled for %s: it stays as it is", _told(kind))
            return
        self._ready.add(kind)
        log.info("compiled for %s", _told(kind))


def _twin(network: Any) -> Any:
    """A module of its own over the same weights, so that compiling one leaves the other alone."""
    weights = itertools.chain(network.parameters(), network.buffers())
    return copy.deepcopy(network, {id(weight): weight for weight in weights})


def _kind_of(arguments: Any, options: Any) -> Kind:
    leaves = pytree.tree_leaves((arguments, options))
    return tuple(
        (leaf.shape, leaf.stride(), leaf.dtype) for leaf in leaves if isinstance(leaf, Tensor)
    )


def _told(kind: Kind) -> str:
    return ", ".join("x".join(map(str, shape)) for shape, _, _ in kind if len(shape) > 1)
