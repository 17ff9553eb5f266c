"""The end of what a revoked API key has waiting and running. Idempotent: again, it goes on."""

from datetime import timedelta

from sdserve.batch_operations import CloseLines, ListBatches
from sdserve.job_list import ListJobs
from sdserve.jobs import JobStatus
from sdserve.operations import Cancel
from sdserve.store import RedisJobStore

PAGE = 500


def cancel_work(store: RedisJobStore, client: str, *, job_ttl: timedelta) -> int:
    """Cancel the jobs and batches of a client. Returns how many jobs that were queued or ran.

    Args:
        store: the job store.
        client: id of the key.
        job_ttl: how long an ended job or batch is kept.
    """
    # Batches first: then nothing feeds the queues while they are emptied.
    after = ""
    while page := store.run(ListBatches(client=client, after=after, limit=PAGE)):
        for batch_id in page:
            store.run(CloseLines(batch_id=batch_id, job_ttl=job_ttl))
        after = page[-1]
    cancelled = 0
    for status in (JobStatus.QUEUED, JobStatus.RUNNING):
        place = None
        while True:
            jobs = store.run(ListJobs(client=client, status=status, limit=PAGE, after=place))
            for job in jobs.jobs:
                store.run(Cancel(app=job.app, job_id=job.id, job_ttl=job_ttl))
            cancelled += len(jobs.jobs)
            place = jobs.last
            if place is None:
                break
    return cancelled
