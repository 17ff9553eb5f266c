"""From a checkpoint file to an engine, telling what it does meanwhile.

Imports no torch at the top: reading the file must start before the seconds that importing takes.
"""

import os
import sys
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from sdserve.apps import Precision
from sdserve.checkpoints import Checkpoint, ModelFile, inspect_checkpoint
from sdserve.errors import CheckpointError
from sdserve.layout import UNREAD
from sdserve.safetensors_header import read_header
from workers.prefetch import Prefetch

if TYPE_CHECKING:
    import torch

    from workers.assembly import Assembly
    from workers.denoising import Pipeline
    from workers.engine import DiffusionEngine


_LIBRARIES = "workers.assembly"  # imports torch, transformers and diffusers


def load_engine(
    checkpoint: Checkpoint,
    *,
    device: str,
    threads: int,
    precision: Precision = Precision.AUTO,
    compiles: bool = False,
    exact: bool = False,
    compile_cache: Path | None = None,
    on_phase: Callable[[str], None],
    on_share: Callable[[float], None] = lambda _: None,
) -> "DiffusionEngine":
    """Load a checkpoint onto a device. The callables run in this thread, or in readers of its.

    Args:
        checkpoint: what to load.
        device: "cpu", "cuda" or "cuda:N".
        threads: of torch on the CPU; more than the replica's cores makes it several times slower.
        precision: of the network's numbers; AUTO is half on a GPU and float32 on a CPU.
        compiles: the network while it serves; not on a CPU, and not where the GPU is too small.
        exact: leave the model as diffusers has it, also on a GPU; on a CPU it always is.
        compile_cache: folder for what torch compiles; the environment's
            TORCHINDUCTOR_CACHE_DIR goes before it, and torch's own choice is the last.
        on_phase: told in words what happens now.
        on_share: told what share of all reading is done, 0..1, before the phase that goes with it.

    Raises:
        CheckpointError: a file cannot be read, was replaced, or does not fit its kind.
        OutOfMemoryError: host or device have too little memory for the model.
    """
    # Before the libraries are imported, which read them once.
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")  # its warnings quote users' prompts
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ["OMP_NUM_THREADS"] = str(threads)
    # Huge pages for torch's large tensors: a model is cast 4.6 times as fast (docs/performance.md).
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if compile_cache:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(compile_cache))
    _refuse_replaced(checkpoint)
    phases = _Phases(on_phase, on_share)
    if not phases.is_imported:
        _import_libraries(checkpoint, phases.reading)
        phases.is_imported = True

    import torch

    from workers.assembly import Assembly
    from workers.engine import DiffusionEngine

    assembly = Assembly(checkpoint)
    dtype = _dtype(assembly, precision, is_gpu=device != "cpu")
    if device == "cpu":
        torch.set_num_threads(1)  # several readers cast at a time, each on its own
        pipeline = _build(assembly, torch.device("cpu"), dtype, phases)
        torch.set_num_threads(threads)
        # Not warmed: for SD 1.5 it costs 2.1 s and makes the first step 0.9 s faster, and a replica
        # that starts from zero starts because a request already waits.
        return DiffusionEngine(pipeline, kind=checkpoint.kind, device=device)
    pipeline = _build_on_gpu(assembly, torch.device(device), dtype, phases, exact=exact)
    is_here = pipeline.device.type == "cuda"
    if is_here and not exact:
        from workers.fast_layout import lay_out

        lay_out(pipeline)
    engine = DiffusionEngine(
        pipeline, kind=checkpoint.kind, device=device, is_exact=exact or not is_here
    )
    on_phase("warming")
    engine.warm()
    if compiles and is_here:
        engine.compile()
    return engine


def refuse_changed(checkpoint: Checkpoint) -> None:
    """Compare the files of a checkpoint with what they are now. A file that is gone is no change.

    Raises:
        CheckpointError: one of them is another than was deployed.
    """
    for deployed in checkpoint.files:
        try:
            now = ModelFile.at(deployed.path)
        except OSError:  # a mount that is away for a while; the model is in memory
            continue
        if now != deployed:
            raise CheckpointError(
                deployed.path, "the file was replaced after it was deployed: deploy it again."
            )


def _refuse_replaced(checkpoint: Checkpoint) -> None:
    """As above, before loading: look into the file as well, which gives the better reason."""
    current, _ = inspect_checkpoint(checkpoint.path)
    if current.kind != checkpoint.kind:
        raise CheckpointError(
            checkpoint.path,
            f"the file was replaced by a {current.kind} model after it was deployed as "
            f"{checkpoint.kind}: deploy it again.",
        )
    refuse_changed(checkpoint)


def _import_libraries(checkpoint: Checkpoint, on_percent: Callable[[int], None]) -> None:
    """Import what takes seconds to; meanwhile pull the files into the page cache.

    Not needed in a child of the standby process: it reads the files once, when it builds.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="imports") as importer:
        prefetches = [Prefetch(file.path, ranges_to_read(file.path)) for file in checkpoint.files]
        imported = importer.submit(import_module, _LIBRARIES)
        total, done = sum(prefetch.size for prefetch in prefetches), 0
        for prefetch in prefetches:
            with _disk_errors(prefetch.path):
                for size in prefetch.read():
                    done += size
                    on_percent(100 * done // total)
        imported.result()


class _Phases:
    """Tells how much has been read, every 5 percent; after all of it, what comes then."""

    def __init__(self, on_phase: Callable[[str], None], on_share: Callable[[float], None]) -> None:
        self._on_phase = on_phase
        self._on_share = on_share
        self._told = -5
        self.is_imported = _LIBRARIES in sys.modules
        self._passes = 1 if self.is_imported else 2  # over the file

    def reading(self, percent: int) -> None:
        if percent >= self._told + 5 or percent == 100:
            self._told = percent
            done = self._passes - 1 if self.is_imported else 0
            self._on_share((done + percent / 100) / self._passes)
            self._on_phase(f"reading file {percent}%")
        if percent == 100:
            self._told = -5
            self._on_phase("building the pipeline" if self.is_imported else "importing libraries")


@contextmanager
def _disk_errors(path: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            path, f"reading fails ({error.strerror}): check the disk or the mount."
        ) from error


def ranges_to_read(path: Path) -> list[tuple[int, int]]:
    """What will be read of a file: (begin, end) in bytes."""
    spans = read_header(path).spans
    return [(s.begin, s.end) for name, s in spans.items() if not name.startswith(UNREAD)]


def _build(
    assembly: "Assembly",
    device: "torch.device",
    dtype: "torch.dtype",
    phases: "_Phases",
    **options: "torch.dtype",
) -> "Pipeline":
    """Build with these further options, after a look whether there is memory for it.

    Raises:
        OutOfMemoryError: host or device have too little memory, with numbers.
    """
    from workers.memory import loading_guard

    # Weights that keep their type are a view of the file: they need no memory of their own.
    is_mapped = device.type == "cpu" and assembly.dtype is dtype
    needed = 0 if is_mapped else assembly.parameters * dtype.itemsize
    with _disk_errors(assembly.checkpoint.path), loading_guard(needed, device):
        return assembly.build(device, dtype, phases.reading, **options)


def _dtype(assembly: "Assembly", precision: Precision, *, is_gpu: bool) -> "torch.dtype":
    import torch

    if precision is not Precision.AUTO:
        return getattr(torch, precision)
    if not is_gpu:
        return torch.float32
    # float16 would overflow where the file's bfloat16 does not.
    return torch.bfloat16 if assembly.dtype is torch.bfloat16 else torch.float16


def _build_on_gpu(
    assembly: "Assembly",
    device: "torch.device",
    dtype: "torch.dtype",
    phases: "_Phases",
    *,
    exact: bool,
) -> "Pipeline":
    """On the GPU; where that is too small, on the host with one part at a time on the GPU."""
    import torch

    from sdserve.errors import OutOfMemoryError

    # The VAE is the part that uses a GPU worst, in float32 most of all. bfloat16 has its range.
    has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    upcast = torch.bfloat16 if has_bfloat16 and not exact else torch.float32
    try:
        return _build(assembly, device, dtype, phases, upcast=upcast)
    except OutOfMemoryError as error:
        too_small = error
    torch.cuda.empty_cache()  # outside the handler, whose traceback holds the failed tensors
    # Slower, but a picture: each part goes to the GPU when it is its turn.
    pipeline = _build(assembly, torch.device("cpu"), dtype, phases)
    try:
        pipeline.vae.enable_slicing()
        pipeline.enable_model_cpu_offload(device=device)
    except torch.OutOfMemoryError as error:
        raise too_small from error
    return pipeline
