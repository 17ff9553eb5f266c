"""What an operation is: one Lua script, its keys, its arguments, and how its reply is read."""

from functools import cache
from importlib.resources import files
from typing import Any, ClassVar, Generic, TypeVar

from sdserve import keys
from sdserve.jobs import HIGHEST_PRIORITY, LOWEST_PRIORITY
from sdserve.limits import REMEMBERED, UNRUN_LIMIT, UNRUN_TTL
from sdserve.usage import KEPT_DAYS

# What common.lua takes from here, by the names it has for it: keys that it makes itself, bounds.
_NAMES_OF_COMMON: dict[str, str | int] = {
    "JOB": keys.JOB,
    "QUEUE": keys.QUEUE,
    "LEASE": keys.LEASE,
    "REPLICAS": keys.REPLICAS,
    "APP": keys.APP,
    "INDEX": keys.INDEX,
    "MINE": keys.MINE,
    "UNRUN": keys.UNRUN,
    "USAGE": keys.USAGE,
    "PREVIEW": keys.PREVIEW,
    "HOOKS": keys.HOOKS,
    "HOOK": keys.HOOK,
    "BATCH": keys.BATCH,
    "UNRUN_TTL": int(UNRUN_TTL.total_seconds()),
    "UNRUN_LIMIT": UNRUN_LIMIT,
    "INDEX_TTL": int(REMEMBERED.total_seconds()),
    "USAGE_TTL": KEPT_DAYS * 86400,
    "LOWEST": LOWEST_PRIORITY,
    "HIGHEST": HIGHEST_PRIORITY,
}

Reply = TypeVar("Reply")
Argument = str | int | float | bytes


class Operation(Generic[Reply]):
    """One atomic script call."""

    script: ClassVar[str]

    @property
    def keys(self) -> list[str]:
        raise NotImplementedError

    @property
    def arguments(self) -> list[Argument]:
        raise NotImplementedError

    def read(self, reply: Any) -> Reply:
        raise NotImplementedError


@cache
def script_text(name: str) -> str:
    """The script, with what all scripts share after its first line, which names its flags."""
    names = "".join(f"local {name} = {value!r}\n" for name, value in _NAMES_OF_COMMON.items())
    folder = files("sdserve").joinpath("lua")
    flags, body = folder.joinpath(f"{name}.lua").read_text().split("\n", 1)
    return f"{flags}\n{names}{folder.joinpath('common.lua').read_text()}{body}"
