"""`python -m bench COMMAND ...`: each command is a module of this folder, with its own --help."""

import sys
from importlib import import_module

COMMANDS = ("compare", "smoke")


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        sys.exit(f"usage: python -m bench {{{','.join(COMMANDS)}}} ... ; more: bench/*.py")
    import_module(f"bench.{sys.argv[1]}").main(sys.argv[2:])


if __name__ == "__main__":
    main()
