"""Out of memory as an answer: torch's allocator errors become ours, with a size that should fit."""

import re
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch

from sdserve.errors import OutOfMemoryError

_CONTROL_GROUP = Path("/sys/fs/cgroup")
_ALLOCATION = re.compile(
    r"can't allocate memory|not enough memory|CUDA error: out of memory|_STATUS_ALLOC_FAILED"
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator failed, on the GPU or on the host."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # The CPU allocator raises a bare RuntimeError; so do CUDA's libraries for memory of their own.
    return isinstance(error, RuntimeError) and _ALLOCATION.search(str(error)) is not None


@contextmanager
def loading_guard(needed: int, device: torch.device) -> Generator[None]:
    """Look whether a model fits before it is loaded, and name its size when an allocator fails.

    On the host the look comes first because the kernel grants what it does not have, and then kills
    the replica.

    Args:
        needed: bytes of its weights.
        device: where they go.

    Raises:
        OutOfMemoryError: it does not fit.
    """
    where, free = ("host", host_bytes_free()) if device.type == "cpu" else _gpu_bytes_free(device)
    message = (
        f"The model needs {_amount(needed)} to load, the {where} has {_amount(free)} free: "
        "free memory, or give the app a larger device."
    )
    if needed > free:
        raise OutOfMemoryError(message)
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(message) from error


def host_bytes_free() -> int:
    """Memory that this process can still get: of the machine, or of its container if less."""
    free = psutil.virtual_memory().available
    try:  # control group v2 (docs.kernel.org/admin-guide/cgroup-v2.html, "Memory")
        limit = (_CONTROL_GROUP / "memory.max").read_text().strip()
        used = int((_CONTROL_GROUP / "memory.current").read_text())
        stat = dict(
            line.split() for line in (_CONTROL_GROUP / "memory.stat").read_text().splitlines()
        )
    except (OSError, ValueError):
        return free  # not in a container
    if limit == "max":
        return free
    return min(free, int(limit) - used + int(stat["inactive_file"]))


def _gpu_bytes_free(device: torch.device) -> tuple[str, int]:
    free, _ = torch.cuda.mem_get_info(device)
    return "GPU", free


def _amount(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


@contextmanager
def memory_guard(width: int, height: int) -> Generator[None]:
    """Turn an allocator's failure inside the block into OutOfMemoryError.

    Args:
        width: of the picture being made, pixels.
        height: of the picture being made, pixels.

    Raises:
        OutOfMemoryError: its message names a size of about half as many pixels.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            f"The device has too little memory for {width}x{height}: "
            f"try {_smaller(width)}x{_smaller(height)}."
        ) from error


def _smaller(side: int) -> int:
    multiple = 64 if side >= 256 else 8
    return max(multiple, int(side * 0.71) // multiple * multiple)
