"""`python -m bench COMMAND ...`: each command is a module of this folder, with its own --help."""

import signal
import sys
from importlib import import_module
from types import FrameType

COMMANDS = ("compare", "scenarios", "smoke")


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        sys.exit(f"usage: python -m bench {{{','.join(COMMANDS)}}} ... ; more: bench/*.py")
    # What it started is stopped by the ends of its `with` blocks, also when it is told to end.
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    import_module(f"bench.{sys.argv[1]}").main(sys.argv[2:])


def _leave(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    main()
