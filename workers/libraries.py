"""What takes seconds to import, imported once for all children of a process."""

import gc
from importlib import import_module
from types import MappingProxyType

# What the libraries read when they are imported: of the process and of its children.
ENVIRONMENT = MappingProxyType(
    {"HF_HUB_OFFLINE": "1", "THP_MEM_ALLOC_ENABLE": "1", "TOKENIZERS_PARALLELISM": "false"}
)


def import_libraries() -> None:
    """Be ready to fork: no device and no tensor is touched, so that children may use CUDA."""
    import_module("workers.assembly")
    gc.collect()
    gc.freeze()  # the collector would write to pages that children share
