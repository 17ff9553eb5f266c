"""A job's Server-Sent Events (WHATWG HTML, section 9.2), for one client.

`id` is the job's version. Where a client comes back with it (`Last-Event-ID`), the state is sent at
once unless he has it: that of a running job is told by its version alone; that of a queued one also
by its place and by what its app is doing, which no version counts, so it is always sent; and an end
always is. Compared for equality, not order: after Redis has lost its last second a version may come
again. So no id ever hides a state that the client has not seen.
"""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

from sse_starlette import EventSourceResponse, ServerSentEvent

from api.viewers import Sight, Viewers
from sdserve.jobs import Job, JobStatus

MEDIA_TYPE = "text/event-stream"
RETRY = 2000  # milliseconds until a client that lost its connection comes back
PING = 15  # seconds
# A stream ends after so long, and its client comes back: to a key that was revoked meanwhile, or to
# another process.
LIFE = timedelta(hours=1)


def event_stream(
    viewers: Viewers, job: Job, *, previews: bool, last_event_id: str | None
) -> EventSourceResponse:
    """The answer that tells every change of `job` until its end."""
    return EventSourceResponse(
        _events(viewers, job, previews=previews, last_event_id=last_event_id),
        ping=PING,
        ping_message_factory=lambda: ServerSentEvent(comment="ping"),
    )


async def _events(
    viewers: Viewers, job: Job, *, previews: bool, last_event_id: str | None
) -> AsyncIterator[ServerSentEvent]:
    clock = asyncio.get_running_loop().time
    end = clock() + LIFE.total_seconds()
    # Something at once: whatever stands between us and the client sees that this is a stream.
    yield ServerSentEvent(comment=f"job {job.id}", retry=RETRY)
    with viewers.open(job, wants_previews=previews) as viewer:
        while not viewer.is_over and await viewer.wait(end - clock()):
            trouble, preview, sight = viewer.take()
            if trouble:
                yield ServerSentEvent(comment=trouble)
            if preview and not (sight and sight.status.is_final):
                yield ServerSentEvent(data=preview, event="preview")
            if sight and not _is_known(sight, last_event_id):
                yield ServerSentEvent(data=sight.text, event="job", id=str(sight.version))
            if sight and sight.status.is_final:
                return
            last_event_id = None if sight else last_event_id


def _is_known(sight: Sight, last_event_id: str | None) -> bool:
    return sight.status is JobStatus.RUNNING and str(sight.version) == last_event_id
