"""What follows a try to deliver a webhook."""

from datetime import UTC, datetime, timedelta

import pytest

from sdserve.outbox import SPAN, HookOutcome
from workers.outgoing import Answer
from workers.webhook_retry import BACK_OFF, LONGEST, SHORTEST, Verdict, back_off, judge

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


def verdict(status: int, retry_after: str | None = None, number: int = 1) -> Verdict:
    answer = Answer(status=status, retry_after=retry_after)
    return judge(answer, number=number, luck=0.5, now=NOW)


@pytest.mark.parametrize("status", [200, 202, 204])
def test_any_2xx_delivers(status: int) -> None:
    assert verdict(status) == Verdict(outcome=HookOutcome.DELIVERED)


def test_410_ends_it() -> None:
    assert verdict(410).outcome is HookOutcome.DEAD


@pytest.mark.parametrize("status", [301, 307, 400, 401, 404, 429, 500, 503])
def test_anything_else_is_tried_again(status: int) -> None:
    found = verdict(status)
    assert (found.outcome, found.delay) == (HookOutcome.RETRY, BACK_OFF[0])
    assert str(status) in found.reason


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("60", timedelta(seconds=60)),
        ("Tue, 24 Nov 2026 12:30:00 GMT", timedelta(minutes=30)),
        ("0", SHORTEST),
        ("Tue, 24 Nov 2020 12:30:00 GMT", SHORTEST),
        ("9" * 50, LONGEST),
        ("soon", BACK_OFF[0]),
        ("-5", BACK_OFF[0]),
    ],
)
def test_retry_after_is_honoured_within_bounds(status: int, text: str, expected: timedelta) -> None:
    assert verdict(status, text).delay == expected


def test_retry_after_of_another_status_is_not() -> None:
    assert verdict(500, "60").delay == BACK_OFF[0]


def test_the_pauses_grow_and_fill_a_day() -> None:
    pauses = [back_off(number, 0.5) for number in range(1, 12)]
    assert pauses == sorted(pauses)
    assert sum(pauses, timedelta(0)) > SPAN
    assert pauses[:3] == [timedelta(seconds=5), timedelta(seconds=30), timedelta(minutes=2)]


def test_pauses_are_spread() -> None:
    assert back_off(1, 0) == timedelta(seconds=4)
    assert back_off(1, 1) == timedelta(seconds=6)
