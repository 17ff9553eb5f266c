"""Clients of the job store itself, without HTTP: they submit, look and cancel, and note it all."""

import hashlib
import threading
import time
from random import Random
from typing import Any

from redis import Redis
from redis.exceptions import RedisError

from sdserve.errors import StoreFullError, StoreUnavailableError
from sdserve.job_list import ListJobs
from sdserve.jobs import Job, JobStatus
from sdserve.operations import Admission, Cancel, ViewJob
from sdserve.store import RedisJobStore, connect
from tests.faults.history import Asked, CancelAsked, History, Seen, digests
from tests.faults.light_replica import POISON, STALL
from tests.values import JOB_TTL, params, submit

PAUSE = 0.01  # seconds between two actions
KEYS = 300  # so few that clients meet on them

_STATUS = {
    Admission.RUN_NOW: 202, Admission.QUEUED: 202, Admission.DUPLICATE: 202,
    Admission.CONFLICT: 422, Admission.FULL: 503, Admission.BROKEN: 503,
}  # fmt: skip


class LightClient(threading.Thread):
    """One client, whose doings its seed decides."""

    def __init__(
        self, seed: str, apps: tuple[str, ...], url: str, history: History, key_id: str = "ann"
    ) -> None:
        """Be the client with this API key, or one of several that share it."""
        super().__init__(name=f"client {seed}", daemon=True)
        self._random = Random(seed)
        self._apps = apps
        self._key_id = key_id
        self._redis = connect(url)
        self._store = RedisJobStore(self._redis)
        self._history = history
        self._stopped = threading.Event()
        self.known: dict[str, str] = {}  # id -> app of what was accepted here

    def stop(self) -> None:
        self._stopped.set()

    def run(self) -> None:
        while not self._stopped.wait(PAUSE):
            chance = self._random.random()
            if chance < 0.6 or not self.known:
                self._submit_something()
            elif chance < 0.65:
                self.list_jobs()
            elif chance < 0.9:
                self.look(self._random.choice(list(self.known)))
            else:
                self.cancel(self._random.choice(list(self.known)[-20:]))
        self._redis.close()

    def _submit_something(self) -> None:
        number = self._random.randrange(KEYS)
        app = self._apps[number % len(self._apps)]
        key = f"key {number}" if number % 2 else None
        prompt = {5: POISON, 6: STALL}.get(number % 25, "innocent")
        # A key's body is always the same, except by a mistake.
        seed = number if self._random.random() < 0.95 else number + KEYS
        self.submit(app, prompt, seed, key)

    def submit(self, app: str, prompt: str, seed: int, key: str | None = None) -> str | None:
        """Submit once; the job's id if it is known to be accepted."""
        wanted = params(prompt=prompt, seed=seed)
        body = hashlib.sha256(wanted.to_json().encode()).hexdigest()
        began = time.time()
        status, job_id = None, None
        try:
            operation = submit(
                app=app, params=wanted, digest=body, idempotency_key=key, client=self._key_id
            )
            answer = self._store.run(operation)
        except StoreFullError:
            status = 503
        except StoreUnavailableError:
            pass  # no answer: it may have been accepted or not
        else:
            status = _STATUS[answer.admission]
            job_id = answer.job_id if status == 202 else None
        self._history.add(
            Asked(
                began=began,
                at=time.time(),
                app=app,
                body=body,
                key=key,
                status=status,
                job_id=job_id,
                may_fail=("worker_lost",) if prompt == POISON else (),
                client=self._key_id,
            )
        )
        if job_id:
            self.known[job_id] = app
        return job_id

    def look(self, job_id: str) -> Job | None:
        """Look at a job and its result; None while the store is away."""
        began = time.time()
        try:
            job = self._store.run(ViewJob(job_id=job_id))
            images = results(self._redis, job)
        except (StoreUnavailableError, RedisError):
            return None
        self._see(job, began, images)
        return job

    def list_jobs(self) -> None:
        """See every job of a page, as one who may see only his own."""
        began = time.time()
        try:
            page = self._store.run(ListJobs(client=self._key_id, limit=50))
        except StoreUnavailableError:
            return
        for job in page.jobs:
            self._see(job, began, client=self._key_id)

    def _see(
        self,
        job: Job,
        began: float,
        images: tuple[str, ...] | None = None,
        client: str | None = None,
    ) -> None:
        self._history.add(
            Seen(
                began=began,
                at=time.time(),
                job_id=job.id,
                status=job.status,
                attempt=job.attempt,
                error=job.error.code if job.error else None,
                images=images,
                client=client,
            )
        )

    def cancel(self, job_id: str) -> int | None:
        """Cancel a job, with the answer that HTTP would give."""
        began, status = time.time(), None
        try:
            was = self._store.run(Cancel(app=self.known[job_id], job_id=job_id, job_ttl=JOB_TTL))
        except StoreUnavailableError:
            pass
        else:
            now = {JobStatus.QUEUED: 200, JobStatus.CANCELLED: 200, JobStatus.RUNNING: 202}
            status = now.get(was, 409) if was else 404
        cancel = CancelAsked(began=began, at=time.time(), job_id=job_id, status=status)
        self._history.add(cancel)
        return status


def results(redis: Redis, job: Job) -> tuple[str, ...] | None:
    """The digests of a job's images."""
    if not job.result_keys:
        return None
    blobs: Any = redis.mget(job.result_keys)
    return digests(blob or b"missing" for blob in blobs)
