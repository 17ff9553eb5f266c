"""The tasks behind webhooks: the sweep that asks for deliveries, and the delivery of one event."""

import logging
import random
import time
from datetime import UTC, datetime, timedelta

from redis import Redis
from redis.exceptions import OutOfMemoryError

from sdserve.errors import InvalidParameterError
from sdserve.outbox import BeginHook, HookOutcome, HookTry, SettleHook, TakeHooks
from sdserve.redis_server import ensure_redis
from sdserve.settings import Settings, read_settings
from sdserve.store import RedisJobStore, connect
from sdserve.webhook_signature import parse_secrets
from workers.outgoing import TIME_LIMIT, DeliveryError, Sender
from workers.task_queue import FAILURE_TTL, QueueName, task_queue
from workers.webhook_event import WebhookEvent
from workers.webhook_retry import SLOW, Verdict, back_off, judge

log = logging.getLogger(__name__)

SWEEP_INTERVAL = timedelta(seconds=1)
# Tasks in RQ's queue. The others wait in the outbox: there they keep their order and cost nothing.
MAX_QUEUED = 24
# After which a task that has not begun counts as lost. One that is only late does no harm then:
# whichever comes second finds nothing to do.
PATIENCE = timedelta(seconds=30)
BUSY = TIME_LIMIT + timedelta(seconds=10)  # after which one that has begun counts as lost
TASK_LIMIT = int((TIME_LIMIT + timedelta(seconds=8)).total_seconds())  # seconds; RQ's own


def sweep(redis: Redis) -> None:
    """Ask for the delivery of due events, and again for those whose task was lost."""
    queue = task_queue(redis, QueueName.WEBHOOKS)
    room = MAX_QUEUED - queue.count
    if room <= 0:
        return
    for event in RedisJobStore(redis).run(TakeHooks(limit=room, patience=PATIENCE)):
        try:
            queue.enqueue(
                deliver, event, job_timeout=TASK_LIMIT, result_ttl=0, failure_ttl=FAILURE_TTL
            )
        except OutOfMemoryError:  # what is delivered makes room; the others are due again soon
            log.warning("Redis is full: the clock delivers an event itself")
            deliver(event)
            return


def deliver(event: str) -> None:
    """Try to deliver an event once, unless it is not to be tried now."""
    settings = read_settings()
    store = RedisJobStore(connect(ensure_redis(settings), reply_timeout=5))
    attempt = store.run(BeginHook(event=event, busy=BUSY))
    if attempt is None:
        return
    started = time.monotonic()
    verdict = _try(attempt, settings)
    took = timedelta(seconds=time.monotonic() - started)
    has_failed = verdict.outcome is not HookOutcome.DELIVERED
    is_slow = took >= SLOW
    state = store.run(
        SettleHook(
            event=event,
            number=attempt.number,
            outcome=verdict.outcome,
            delay=verdict.delay,
            reason=verdict.reason,
            is_slow=has_failed and is_slow,
            rest=took if is_slow else timedelta(0),
        )
    )
    # Not the URL: its path or query may be a secret.
    log.info("%s: try %d: %s %s", event, attempt.number, state, verdict.reason)


def _try(attempt: HookTry, settings: Settings) -> Verdict:
    number, luck = attempt.since_start, random.random()  # noqa: S311 (no secret)

    def failed(reason: str) -> Verdict:
        return Verdict(outcome=HookOutcome.RETRY, delay=back_off(number, luck), reason=reason)

    targets = settings.webhook_targets
    if targets is None:
        return failed("SD_WEBHOOK_SECRETS is not set where the webhooks worker runs")
    try:
        event, now = WebhookEvent.of(attempt), datetime.now(UTC)
    except (LookupError, TypeError, ValueError) as error:  # written by another version, say
        log.exception("%s cannot be read", attempt.event)
        return failed(f"the event cannot be read: {error!r}")
    headers = event.headers(parse_secrets(settings.webhook_secrets), now)
    try:
        answer = Sender(targets=targets).post(attempt.url, event.body, headers)
    except (DeliveryError, InvalidParameterError) as error:
        return failed(str(error))
    return judge(answer, number=number, luck=luck, now=now)
