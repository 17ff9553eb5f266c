"""Counts what this process sends to Redis: each packet of commands that is answered is a trip."""

import hashlib
from collections import Counter
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from typing import Any
from unittest.mock import patch

from redis.asyncio.connection import AbstractConnection as AsyncConnection
from redis.connection import AbstractConnection

from sdserve import keys
from sdserve.operations.operation import script_text

# What comes by the clock, whoever asks for what.
BACKGROUND = frozenset({"reap", "beat", "PING", "PSUBSCRIBE", "HELLO", "CLIENT", "AUTH", "SELECT"})


class RoundTrips:
    """What was sent since the last `take`, by name: a script's, or the first command's."""

    def __init__(self) -> None:
        self._sent = Counter[str]()

    def note(self, packet: Any) -> None:
        """A packet as redis-py packs it: bytes, or parts of them."""
        parts = [packet] if isinstance(packet, bytes) else list(packet)
        self._sent[_name(b"".join(part[:200] for part in parts[:4]))] += 1

    def has(self, name: str) -> bool:
        """Whether this was sent."""
        return self._sent[name] > 0

    def take(self) -> Counter[str]:
        """The counts, without what comes by the clock; they begin anew."""
        sent, self._sent = self._sent, Counter[str]()
        return Counter({name: number for name, number in sent.items() if name not in BACKGROUND})


@contextmanager
def counted() -> Generator[RoundTrips]:
    """Count, on every connection of redis-py in this process."""
    trips = RoundTrips()
    blocking: Callable[..., Any] = AbstractConnection.send_packed_command
    waiting: Callable[..., Any] = AsyncConnection.send_packed_command

    def send(self: Any, command: Any, check_health: bool = True) -> Any:  # noqa: FBT001, FBT002
        packet = command if isinstance(command, bytes) else list(command)
        trips.note(packet)
        return blocking(self, packet, check_health)

    async def send_soon(self: Any, command: Any, check_health: bool = True) -> Any:  # noqa: FBT001, FBT002
        packet = command if isinstance(command, bytes | str) else list(command)
        trips.note(packet)
        return await waiting(self, packet, check_health)

    with (
        patch.object(AbstractConnection, "send_packed_command", send),
        patch.object(AsyncConnection, "send_packed_command", send_soon),
    ):
        yield trips


def _name(head: bytes) -> str:
    words = [word.decode("latin-1") for word in _words(head)]
    command = words[0].upper() if words else "?"
    if command in ("EVALSHA", "EVAL") and len(words) > 1:
        return _digests().get(words[1], command)
    if command in ("SET", "MGET") and len(words) > 1 and words[1].startswith(keys.RESULT):
        return f"{command} result"
    return command


def _words(head: bytes) -> Iterable[bytes]:
    """The words of the first command, as RESP has them: *n, then $length and the word."""
    lines = head.split(b"\r\n")
    return lines[2::2] if lines[0].startswith(b"*") else lines[:1]


@cache
def _digests() -> dict[str, str]:
    scripts = [file.name.removesuffix(".lua") for file in (files("sdserve") / "lua").iterdir()]
    return {
        hashlib.sha1(script_text(name).encode(), usedforsecurity=False).hexdigest(): name
        for name in scripts
        if name != "common"  # it is put before the others
    }
