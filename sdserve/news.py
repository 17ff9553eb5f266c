"""What the scripts publish: which job, or which app as a whole, looks different now. Pure.

A message says only that there is something to see; who wants to see it looks. So a lost message, or
two in one look, lose nothing that the next look does not show.
"""

from dataclasses import dataclass
from enum import StrEnum

from sdserve import keys

APP_CHANGED = ""  # the text of a message about an app
APP_DEPLOYED = " deployed"  # the same, where its specification is another, or is gone


class Change(StrEnum):
    """What is new."""

    APP = "app"  # the order of its queue, its replicas: all its queued jobs look different
    JOB = "job"
    ENDED = "ended"  # the job is final
    PREVIEW = "preview"  # there is a newer preview of the job
    DEPLOYED = "deployed"  # the app was deployed, again perhaps, or deleted


@dataclass(frozen=True, kw_only=True)
class News:
    """One message."""

    app: str
    job_id: str  # "" for news of the app
    change: Change


def read_news(channel: bytes, text: bytes) -> News:
    """The message that a script has published.

    A word that a later version says means at least that something looks different.
    """
    app = channel.decode().removeprefix(keys.CHANNEL)
    job_id, _, word = text.decode().partition(" ")
    change = _WORDS.get(word, Change.JOB if job_id else Change.APP)
    return News(app=app, job_id=job_id, change=change)


_WORDS = {change.value: change for change in Change}
