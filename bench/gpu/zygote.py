"""A process with the libraries imported, and children of it: a replica's start, without Ray.

`workers/standby.py` is the product's, but it needs Redis and answers to Ray's node. This one makes
itself ready by the same function (`import_libraries`), forks by the same call, and measures.
"""

import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

from bench.load import Row, Setting, measure
from workers.libraries import ENVIRONMENT, import_libraries

ROOT = Path(__file__).parents[2]
MB = 10**6


@dataclass(frozen=True, kw_only=True)
class Zygote:
    """The process, from outside."""

    process: "subprocess.Popen[str]"
    ready: Row  # what it told of itself once it was

    def load(self, way: str, path: Path, setting: Setting) -> Row:
        """As `bench.load.run`, in a child of it."""
        return self._ask({"way": way, "path": str(path), "setting": asdict(setting)})

    def first_operation(self, device: str) -> Row:
        """From the request to a first result of the device, in a child of it."""
        return self._ask({"device": device})

    def _ask(self, request: dict[str, Any]) -> Row:
        """The figures, with the seconds from now to the end of them as `process`.

        Raises:
            RuntimeError: the child failed; why is on standard error.
        """
        begin = time.perf_counter()
        assert self.process.stdin is not None  # noqa: S101 (both are pipes)
        assert self.process.stdout is not None  # noqa: S101
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        seconds = time.perf_counter() - begin
        if not answer.startswith("{"):
            raise RuntimeError(f"a child of the standby process failed ({request}): see above")
        return json.loads(answer) | {"process": seconds}


@contextmanager
def zygote(threads: int) -> Generator[Zygote]:
    """One that is ready.

    Raises:
        RuntimeError: it ends before it is.
    """
    with subprocess.Popen(
        [sys.executable, "-m", "bench.gpu.zygote"],
        cwd=ROOT, env={**os.environ, **ENVIRONMENT, "OMP_NUM_THREADS": str(threads)}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdin is not None  # noqa: S101 (both are pipes)
        assert process.stdout is not None  # noqa: S101
        told = process.stdout.readline()
        if not told:
            raise RuntimeError("the standby process ended before it was ready: see above")
        yield Zygote(process=process, ready=json.loads(told))
        process.stdin.close()  # which ends it


def _first_operation(device: str) -> Row:
    import torch

    value = torch.ones(8, device=device).sum().item()  # waits for the device
    return {"value": float(value)}


def _requested(request: dict[str, Any]) -> Callable[[], Row]:
    if "device" in request:
        return lambda: _first_operation(request["device"])
    setting = Setting(**request["setting"])
    return lambda: measure(request["way"], Path(request["path"]), setting)


def _be_child(work: Callable[[], Row]) -> NoReturn:
    code = 1
    try:
        print(json.dumps(work()), flush=True)
        code = 0
    except BaseException:  # noqa: BLE001 (it is told, and the parent answers that it failed)
        traceback.print_exc()
    finally:
        os._exit(code)  # not the end of the parent's `with` blocks; and it ends a compiler's thread


def _memory() -> Row:
    """Of this process: MB, and whether it has a context on a GPU."""
    import psutil
    import torch

    memory = psutil.Process().memory_full_info()
    return {
        "rss": memory.rss / MB,
        "private": memory.uss / MB,
        "has_context": float(torch.cuda.is_initialized()),
    }


def main() -> None:
    import_libraries()
    print(json.dumps(_memory()), flush=True)
    for line in sys.stdin:
        work = _requested(json.loads(line))
        child = os.fork()
        if child == 0:
            _be_child(work)
        _, status = os.waitpid(child, 0)
        if status:
            print("failed", flush=True)


if __name__ == "__main__":
    main()
