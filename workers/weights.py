"""The tensors of a .safetensors file on a device, as near to the hardware's limit as it goes.

Weights that keep their type on the CPU are views of the mapped file: no copy, and replicas of one
node share the page cache. All others go through the buffers of several readers: while one reads,
another casts, or copies to the GPU from pinned memory, so that storage and the rest are both busy.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from sdserve.safetensors_header import SafetensorsHeader, Span

_READERS = 4
_CHUNK = 16 << 20  # bytes of one buffer; a larger tensor gets a larger one

# By the format's names.
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E5M2": torch.float8_e5m2, "F8_E4M3": torch.float8_e4m3fn,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


def map_tensors(path: Path, names: Iterable[str]) -> dict[str, Tensor]:
    """Tensors as views of the file, which must not be written to while they live."""
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in names}


def copy_tensors(
    path: Path,
    header: SafetensorsHeader,
    names: Iterable[str],
    device: torch.device,
    dtype: torch.dtype,
    on_bytes: Callable[[int], None] = lambda _: None,
) -> dict[str, Tensor]:
    """Tensors on a device, floating-point ones cast to `dtype` there.

    `on_bytes` is told of each chunk's bytes, by the readers' threads.

    Raises:
        OSError: the file cannot be read.
        RuntimeError, MemoryError: the device is full.
    """
    chunks = list(_chunks(header, names))
    tensors: dict[str, Tensor] = {}
    with ThreadPoolExecutor(_READERS, thread_name_prefix="copy") as readers:
        shares = [chunks[reader::_READERS] for reader in range(_READERS)]
        jobs = [
            readers.submit(_copy_chunks, path, share, device, dtype, tensors, on_bytes)
            for share in shares
            if share
        ]
        for job in jobs:
            job.result()
    return tensors


@dataclass(frozen=True, kw_only=True)
class _Chunk:
    """Neighbouring tensors that are read at once."""

    begin: int  # in the file, bytes
    spans: tuple[tuple[str, Span], ...]

    @property
    def size(self) -> int:
        return self.spans[-1][1].end - self.begin


def _chunks(header: SafetensorsHeader, names: Iterable[str]) -> Iterator[_Chunk]:
    wanted = sorted(((name, header.spans[name]) for name in names), key=lambda one: one[1].begin)
    group: list[tuple[str, Span]] = []
    for name, span in wanted:
        # Not across a gap either: what lies in it was not asked for.
        if group and (span.end - group[0][1].begin > _CHUNK or span.begin != group[-1][1].end):
            yield _Chunk(begin=group[0][1].begin, spans=tuple(group))
            group = []
        group.append((name, span))
    if group:
        yield _Chunk(begin=group[0][1].begin, spans=tuple(group))


def _copy_chunks(
    path: Path,
    chunks: list[_Chunk],
    device: torch.device,
    dtype: torch.dtype,
    tensors: dict[str, Tensor],
    on_bytes: Callable[[int], None],
) -> None:
    on_gpu = device.type == "cuda"
    largest = max(chunk.size for chunk in chunks)
    buffer = torch.empty(largest, dtype=torch.uint8, pin_memory=on_gpu)
    array: Any = buffer.numpy()
    stream = torch.cuda.Stream(device) if on_gpu else None
    file = os.open(path, os.O_RDONLY)
    try:
        for chunk in chunks:
            _read(file, memoryview(array)[: chunk.size], chunk.begin)
            with torch.cuda.stream(stream) if stream else nullcontext():
                for name, span in chunk.spans:
                    raw = buffer[span.begin - chunk.begin : span.end - chunk.begin]
                    tensors[name] = _place(raw, span, device, dtype)
            if stream:
                stream.synchronize()  # the buffer is read until then; the other readers go on
            on_bytes(chunk.size)
    finally:
        os.close(file)


def _place(raw: Tensor, span: Span, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A tensor out of its bytes in a buffer; what it returns shares nothing with the buffer."""
    of_file = DTYPES[span.dtype]
    if raw.storage_offset() % of_file.itemsize:  # behind a tensor of a narrower type
        raw = raw.clone()
    tensor = raw.view(of_file).view(span.shape)
    # Over the bus in the file's type, which is hardly ever the wider one; then cast.
    moved = tensor.to(device, non_blocking=True) if device.type == "cuda" else tensor
    wanted = dtype if of_file.is_floating_point else of_file
    return moved.to(wanted, copy=moved is tensor)


def _read(file: int, into: memoryview, offset: int) -> None:
    done = 0
    while done < len(into):
        count = os.preadv(file, [into[done:]], offset + done)  # releases the GIL
        if count == 0:
            raise OSError(None, "the file became shorter while it was read")
        done += count
