"""Whether an error means that the device is lost to this process."""

import re

import torch

from workers.memory import is_out_of_memory

# Those that torch 2.13 raises as a bare RuntimeError: cuBLAS ("CUDA error: CUBLAS_STATUS_..."),
# cuDNN and the driver.
_MESSAGES = re.compile(r"(CUDA|HIP|cuDNN|CUDA driver) error:")


def is_device_lost(error: BaseException) -> bool:
    """Whether this process can do nothing more on its device.

    After a failed kernel every later CUDA call fails too, until the process ends. Some errors of
    these types leave the device usable; to take one of them for a loss costs a start, the other
    mistake costs every job that this replica claims.
    """
    if is_out_of_memory(error) or not isinstance(error, RuntimeError):
        return False
    return isinstance(error, torch.AcceleratorError) or _MESSAGES.match(str(error)) is not None
