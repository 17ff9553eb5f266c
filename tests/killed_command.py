"""submit_batch, killed (-9) around one of its calls.

python -m tests.killed_command before|after MODULE:CLASS.METHOD COUNT ARGUMENT...
"""

import os
import signal
import sys
from importlib import import_module
from typing import Any

from deploy_scripts.submit_batch import main


def kill_at(when: str, where: str, count: int) -> None:
    """Die at the `count`-th call."""
    module, _, name = where.partition(":")
    owner, _, method = name.partition(".")
    kind = getattr(import_module(module), owner)
    original = getattr(kind, method)
    calls = iter(range(count - 1, -1, -1))

    def called(*args: Any, **options: Any) -> Any:
        is_last = next(calls) == 0
        if is_last and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        answer = original(*args, **options)
        if is_last:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer

    setattr(kind, method, called)


if __name__ == "__main__":
    kill_at(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    sys.exit(main(sys.argv[4:]))
