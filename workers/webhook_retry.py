"""What to do after a try to deliver a webhook. Pure."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

from sdserve.outbox import HookOutcome
from workers.outgoing import Answer

# After the first, second, ... failed try; the last one again and again, until the day is over.
BACK_OFF = tuple(
    timedelta(seconds=seconds) for seconds in (5, 30, 120, 600, 3600, 3 * 3600, 6 * 3600)
)
JITTER = 0.2  # each way, so that the events of an outage do not come back all at once
SLOW = timedelta(seconds=2)  # a failure that takes longer is one of a receiver that hangs
SHORTEST, LONGEST = timedelta(seconds=5), timedelta(hours=6)  # of what Retry-After may ask for
GONE = 410
BUSY = (429, 503)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """How a try went, and what follows."""

    outcome: HookOutcome
    delay: timedelta = timedelta(0)
    reason: str = ""


def judge(answer: Answer, *, number: int, luck: float, now: datetime) -> Verdict:
    """What an answer means.

    Args:
        answer: of the receiver.
        number: of the try, counted from 1.
        luck: drawn from 0..1.
        now: for a Retry-After that is a date.
    """
    if 200 <= answer.status < 300:
        return Verdict(outcome=HookOutcome.DELIVERED)
    reason = f"the receiver answered {answer.status}"
    if answer.status == GONE:
        return Verdict(outcome=HookOutcome.DEAD, reason=f"{reason}: it wants no more")
    if 300 <= answer.status < 400:
        reason += ", and redirects are not followed: give the final URL"
    delay = back_off(number, luck)
    if answer.status in BUSY and answer.retry_after is not None:
        wished = _span(answer.retry_after, now)
        delay = delay if wished is None else min(max(wished, SHORTEST), LONGEST)
    return Verdict(outcome=HookOutcome.RETRY, delay=delay, reason=reason)


def back_off(number: int, luck: float) -> timedelta:
    """How long to wait after the failed try `number`, counted from 1; `luck` is from 0..1."""
    return BACK_OFF[min(number, len(BACK_OFF)) - 1] * (1 - JITTER + 2 * JITTER * luck)


def _span(text: str, now: datetime) -> timedelta | None:
    """A Retry-After (RFC 9110 §10.2.3): seconds, or a date. None: it is neither."""
    if text.isascii() and text.isdigit():
        return timedelta(seconds=min(int(text[:10]), 10**9))
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - now
