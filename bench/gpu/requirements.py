"""What must be installed for `python -m bench.gpu`, told before anything is measured."""

from collections.abc import Sequence
from importlib.util import find_spec

# By the names of their imports; the first two are the GPU machine's own affair.
PACKAGES = {
    "torch": "torch",
    "numpy": "numpy",
    "PIL": "pillow",
    "diffusers": "diffusers",
    "transformers": "transformers",
    "accelerate": "accelerate",
    "safetensors": "safetensors",
    "pydantic": "pydantic",
    "psutil": "psutil",
    "pynvml": "nvidia-ml-py",
}
SERVER = ("ray", "redis", "fastapi", "uvicorn", "httpx")  # of the part `server` alone


def missing() -> list[str]:
    """The packages that are not installed, by their names for pip."""
    return [package for module, package in PACKAGES.items() if find_spec(module) is None]


def told(packages: Sequence[str]) -> str:
    """Of these, what to do."""
    names = " ".join(packages)
    return (
        f"Not installed here: {names}.\n"
        f"    pip install -c constraints.txt {names}\n"
        "Without a network, on a machine with the same Python and one:\n"
        f"    pip install --target carried --no-deps -c constraints.txt {names}\n"
        "and then here: PYTHONPATH=carried python -m bench.gpu ..."
    )


def server_missing() -> list[str]:
    """What the part `server` needs besides."""
    return [module for module in SERVER if find_spec(module) is None]
