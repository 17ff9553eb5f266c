"""How fast bytes get from a file to the device at best: the limits of loading, bytes a second."""

import errno
import mmap
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch

from bench.load import drop_from_cache, fill_cache, read_speed

READERS = 8
PIECE = 16 << 20  # bytes
PINNED = 256 << 20  # bytes
COPIES = 8


@dataclass(frozen=True, kw_only=True)
class Links:
    """Of one file and one device, bytes a second."""

    storage: float
    page_cache: float
    bus: float | None  # from pinned memory to the GPU; None without one

    @classmethod
    def of(cls, path: Path, device: str) -> Self:
        storage = _storage_speed(path)
        fill_cache(path)
        return cls(
            storage=storage,
            page_cache=read_speed(path, READERS),
            bus=None if device == "cpu" else _bus_speed(device),
        )

    def slowest(self, first: float) -> float:
        """Of a way that begins with the storage, or with the page cache."""
        return first if self.bus is None else min(first, self.bus)

    def __str__(self) -> str:
        bus = "" if self.bus is None else f", bus {self.bus / 1e9:.1f}"
        return f"storage {self.storage / 1e9:.2f}, page cache {self.page_cache / 1e9:.2f}{bus} GB/s"


def _storage_speed(path: Path) -> float:
    """Past the page cache where the file system can, else with that emptied."""
    try:
        return _direct_speed(path)
    except OSError as error:
        if error.errno != errno.EINVAL:  # what tmpfs and some overlays say to O_DIRECT
            raise
        drop_from_cache(path)
        return read_speed(path, READERS)


def _bus_speed(device: str) -> float:
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
