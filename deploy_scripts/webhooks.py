"""Webhooks that are not delivered: those that wait for their next try, those that were given up."""

import argparse
import os
import sys
from collections.abc import Sequence

from deploy_scripts.command import run_command
from deploy_scripts.table import print_table
from sdserve.errors import SdServeError
from sdserve.outbox import DEAD_LIMIT, HookView, ReplayHook, ViewHooks
from sdserve.redis_server import ensure_redis
from sdserve.settings import Settings
from sdserve.store import RedisJobStore, connect

SHOWN = 100  # rows


class EventNotFoundError(SdServeError):
    """No undelivered event has this id."""

    code = "event_not_found"

    def __init__(self, event: str) -> None:
        super().__init__(
            f"No undelivered webhook has the id '{event}': it was delivered or has expired. "
            "`list` and `dead` show those there are."
        )


def main(arguments: Sequence[str] | None = None) -> int:
    prog = os.environ.get("WEBHOOKS_PROG", "python -m deploy_scripts.webhooks")
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="those that wait, the soonest due first")
    commands.add_parser("dead", help="those that were given up in the last 7 days")
    replay = commands.add_parser("replay", help="try again now, for another day")
    which = replay.add_mutually_exclusive_group(required=True)
    which.add_argument("event", nargs="?", metavar="ID", help="of `list` or `dead`")
    which.add_argument("--all", action="store_true", help="all that were given up")
    options = parser.parse_args(arguments)

    def work(settings: Settings) -> int:
        store = RedisJobStore(connect(ensure_redis(settings), reply_timeout=5))
        if options.command != "replay":
            show(store.run(ViewHooks(dead=options.command == "dead", limit=SHOWN)))
            return 0
        if not options.all:
            if not store.run(ReplayHook(event=options.event)):
                raise EventNotFoundError(options.event)
            print(f"{options.event} is tried now")
            return 0
        dead = store.run(ViewHooks(dead=True, limit=DEAD_LIMIT))
        replayed = sum(store.run(ReplayHook(event=view.event)) for view in dead)
        print(f"{replayed} are tried now")
        return 0

    return run_command(work)


def show(views: Sequence[HookView]) -> None:
    if not views:
        print("none")
        return
    print_table(
        ("id", "tries", "at", "url", "last failure"),
        [
            (view.event, str(view.tries), f"{view.at:%Y-%m-%d %H:%M:%S}Z", view.url,
             view.error or "")
            for view in views
        ],
    )  # fmt: skip
    if len(views) == SHOWN:
        print(f"... the first {SHOWN} of them")


if __name__ == "__main__":
    sys.exit(main())
