"""Out of memory as an answer: torch's allocator errors become ours, with a size that should fit."""

from collections.abc import Generator
from contextlib import contextmanager

import torch

from sdserve.errors import OutOfMemoryError


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator failed, on the GPU or on the host."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # The CPU allocator raises a bare RuntimeError.
    return isinstance(error, RuntimeError) and (
        "can't allocate memory" in str(error) or "not enough memory" in str(error)
    )


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
