"""How fast bytes get from a file to the device at best: the limits of loading, bytes a second."""

import errno
import mmap
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from bench.load import drop_from_cache, fill_cache, read_speed

READERS = 8
PIECE = 16 << 20  # bytes
PINNED = 256 << 20  # bytes
COPIES = 8


def cold_speed(path: Path) -> float:
    """Of storage: past the page cache where the file system can, else with that emptied."""
    try:
        return _direct_speed(path)
    except OSError as error:
        if error.errno != errno.EINVAL:  # what tmpfs and some overlays say
            raise
        drop_from_cache(path)
        return read_speed(path, READERS)


def cached_speed(path: Path) -> float:
    """Of the copy out of the page cache."""
    fill_cache(path)
    return read_speed(path, READERS)


def bus_speed(device: str) -> float | None:
    """From pinned memory to the GPU; None without one."""
    if device == "cpu":
        return None
    pinned = torch.empty(PINNED, dtype=torch.uint8, pin_memory=True)
    there = torch.empty_like(pinned, device=device)
    there.copy_(pinned)
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    for _ in range(COPIES):
        there.copy_(pinned, non_blocking=True)
    torch.cuda.synchronize(device)
    return COPIES * pinned.nbytes / (time.perf_counter() - start)


def _direct_speed(path: Path) -> float:
    """O_DIRECT wants buffers, offsets and lengths that are aligned: pages of their own, here."""
    file = os.open(path, os.O_RDONLY | os.O_DIRECT)
    size = path.stat().st_size

    def pull(reader: int) -> int:
        with mmap.mmap(-1, PIECE) as buffer:
            return sum(
                os.preadv(file, [buffer], offset)
                for offset in range(reader * PIECE, size, READERS * PIECE)
            )

    try:
        begin = time.perf_counter()
        with ThreadPoolExecutor(READERS) as pool:
            done = sum(pool.map(pull, range(READERS)))
        return done / (time.perf_counter() - begin)
    finally:
        os.close(file)
