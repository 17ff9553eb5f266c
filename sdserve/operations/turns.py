"""The turns of periodic chores: of many processes that would do one, the first has it."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ClassVar

from sdserve import keys
from sdserve.operations.operation import Argument, Operation
from sdserve.operations.wire import milliseconds


@dataclass(frozen=True, kw_only=True)
class Turn:
    """Whose turn it is, and when the next one comes."""

    is_mine: bool
    left: timedelta


@dataclass(frozen=True, kw_only=True)
class TakeTurn(Operation[Turn]):
    """Take the turn of a chore; the next one is after `interval`. A full store gives turns too."""

    script: ClassVar[str] = "take_turn"
    chore: str
    interval: timedelta

    @property
    def keys(self) -> list[str]:
        return [keys.CHORE + self.chore]

    @property
    def arguments(self) -> list[Argument]:
        return [milliseconds(self.interval)]

    def read(self, reply: Any) -> Turn:
        return Turn(is_mine=reply[0] == 1, left=timedelta(milliseconds=reply[1]))
