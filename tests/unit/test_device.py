"""Which errors mean that the device is lost. The texts are torch 2.13's."""

import pytest
import torch

from workers.device import is_device_lost
from workers.memory import is_out_of_memory

LAUNCH = "CUDA error: unspecified launch failure\nCUDA kernel errors might be reported later"
CUBLAS = "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx(...)`"
NO_MEMORY = "CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation'"


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError(LAUNCH),
        RuntimeError(CUBLAS),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        RuntimeError("CUDA driver error: device not ready"),
    ],
)
def test_lost(error: BaseException) -> None:
    assert is_device_lost(error)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        torch.AcceleratorError(NO_MEMORY),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        MemoryError(),
    ],
)
def test_out_of_memory_is_not_lost(error: BaseException) -> None:
    assert is_out_of_memory(error)
    assert not is_device_lost(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("The size of tensor a (4) must match the size of tensor b (9)"),
        ValueError("CUDA error: in somebody's prompt"),
        RuntimeError("the prompt says CUDA error: haha"),
    ],
)
def test_a_defect_of_ours_is_not_lost(error: BaseException) -> None:
    assert not is_device_lost(error)
    assert not is_out_of_memory(error)
