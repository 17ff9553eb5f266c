"""A job's progress on a terminal: a bar through loading and denoising, or plain lines in a log."""

import re
import sys
from typing import TextIO

from tqdm import tqdm

from sdserve.client import JobView, SdClient
from sdserve.jobs import JobStatus


def describe(view: JobView) -> str:
    """What the job does right now, in words."""
    if view.status.is_final:
        return view.status.value
    if view.phase:
        return view.phase
    if view.status is JobStatus.QUEUED and view.position:
        return f"queued, {view.position} ahead"
    return view.status.value


def follow(client: SdClient, job_id: str, out: TextIO | None = None) -> JobView:
    """Show the job until it is final and return it, whatever its outcome.

    Args:
        client: the server that has the job.
        job_id: id of a 202 answer.
        out: where to show it; standard output when absent.

    Raises:
        ClientError: the job is unknown, has expired, or the server went away.
    """
    where = out or sys.stdout
    return _follow_on_bar(client, job_id, where) if where.isatty() else _log(client, job_id, where)


def _follow_on_bar(client: SdClient, job_id: str, out: TextIO) -> JobView:
    layout = "{desc:<24} |{bar:30}| {percentage:3.0f}% {elapsed}"
    with tqdm(total=100, file=out, bar_format=layout) as bar:
        for view in (event.job for event in client.stream(job_id)):
            # Steps and percentages share one bar: each phase is a bar of its own from 0 to 100.
            bar.set_description_str(describe(view), refresh=False)
            bar.n = _percent(view)
            bar.refresh()
            if view.status.is_final:
                return view
    raise AssertionError("a stream ends with a final view")


def _log(client: SdClient, job_id: str, out: TextIO) -> JobView:
    last_kind = ""
    for view in (event.job for event in client.stream(job_id)):
        words = describe(view)
        # One line a phase: "step 1 of 30" and "step 2 of 30" are the same phase.
        kind = re.sub(r"\d+", "", words)
        if kind != last_kind:
            print(words, file=out, flush=True)
            last_kind = kind
        if view.status.is_final:
            return view
    raise AssertionError("a stream ends with a final view")


def _percent(view: JobView) -> int:
    """How far the present phase has come, 0..100."""
    if view.status is JobStatus.SUCCEEDED:
        return 100
    if found := re.search(r"(\d+)\s*%", view.phase or ""):
        return min(100, int(found[1]))
    if view.progress and view.progress.steps:
        return min(100, 100 * view.progress.step // view.progress.steps)
    return 0
