"""What takes seconds to import, imported once for all children of a process."""

import gc
from importlib import import_module
from types import MappingProxyType

# What the libraries read when they are imported: of the process and of its children.
ENVIRONMENT = MappingProxyType(
    {
        "HF_HUB_OFFLINE": "1",
        "THP_MEM_ALLOC_ENABLE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # diffusers asks torch for a GPU while it is imported. Else torch asks CUDA, which then
        # cannot be used in a fork any more (pytorch.org/docs, "Poison fork in multiprocessing").
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
    }
)


def import_libraries() -> None:
    """Be ready to fork, in ENVIRONMENT: no device is touched, so that children may use CUDA."""
    import_module("workers.assembly")
    gc.collect()
    gc.freeze()  # the collector would write to pages that children share
