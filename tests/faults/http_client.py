"""Clients of the product as it is: HTTP, idempotency keys, polls and cancels, all noted."""

import hashlib
import json
import threading
import time
from base64 import b64decode
from contextlib import suppress
from random import Random
from typing import Any, Literal

import httpx

from sdserve.api_keys import Token
from tests.faults.history import Asked, CancelAsked, History, Pried, Seen, digests
from tests.keys import bearer

PATIENCE = 30.0  # seconds for one answer; a held request is answered within 10
PAUSE = 0.15  # seconds between two actions
RETRY = 0.5  # seconds
OPEN = 3  # jobs that one client waits for at most: queues stay short, so faults hit what runs
FINAL = ("succeeded", "failed", "cancelled", "missing", "expired")
LONG = 100  # steps: a second or two
PRYING: tuple[tuple[Literal["look", "image", "cancel"], str, str], ...] = (
    ("look", "GET", ""), ("look", "GET", "?wait=1"), ("image", "GET", "/image"),
    ("cancel", "DELETE", ""),
)  # fmt: skip
PROMPTS = ("a red circle on a blue background", "a green square on a white background")


class HttpClient(threading.Thread):
    """One client, whose doings its seed decides."""

    def __init__(
        self,
        seed: str,
        apps: tuple[str, ...],
        url: str,
        history: History,
        *,
        keys: int,
        token: Token,
        is_admin: bool = False,
    ) -> None:
        """Args:
        keys: how many idempotency keys there are; clients meet on them when they are few.
        token: API key; clients with the same one are the same to the product.
        """
        super().__init__(name=f"client {seed}", daemon=True)
        self._random = Random(seed)
        self._apps = apps
        self.key_id = token.key_id
        self._eyes = None if is_admin else token.key_id  # whose jobs it may see
        self._http = httpx.Client(
            base_url=url, timeout=PATIENCE, trust_env=False, headers=bearer(token)
        )
        self.rivals: tuple[HttpClient, ...] = ()  # whose jobs it tries to get at
        self._history = history
        self._keys = keys
        self._stopped = threading.Event()
        self.known: dict[str, str] = {}  # id -> app of what was accepted here
        self._open: set[str] = set()  # those of which no end has been seen

    def stop(self) -> None:
        self._stopped.set()

    def close(self) -> None:
        self._http.close()

    def run(self) -> None:
        while not self._stopped.wait(self._random.uniform(0, 2 * PAUSE)):
            chance = self._random.random()
            if len(self._open) >= OPEN:
                self.look(self._random.choice(sorted(self._open)), wait=2)
            elif chance < 0.55 or not self.known:
                self._submit_something()
            elif chance < 0.6:
                self.pry()
            elif chance < 0.65:
                self.list_jobs()
            elif chance < 0.9:
                job_id = self._random.choice(list(self.known))
                self.look(job_id, wait=self._random.choice((0, 0, 3)))
            else:
                self.cancel(self._random.choice(list(self.known)[-10:]))
        self.close()

    def _submit_something(self) -> None:
        number = self._random.randrange(self._keys)
        app = self._apps[number % len(self._apps)]
        prefer = self._random.choice((None, "respond-async", "respond-async", "wait=8"))
        priority = number % 3 - 1
        if number % 10 == 0:  # the same from three sides at once
            threads = [
                threading.Thread(target=self.submit, args=(app, number, prefer, priority))
                for _ in range(3)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        else:
            self.submit(app, number, prefer, priority)

    def submit(
        self, app: str, number: int, prefer: str | None = "respond-async", priority: int = 0
    ) -> str | None:
        """Ask with idempotency key `number`, again until there is an answer that says something.

        Returns:
            the job's id; None if it was refused, or this client was stopped before.
        """
        body = {**_body(number), "priority": priority}
        # A key's body is always the same, except by a mistake.
        if self._random.random() < 0.03:
            body = {**body, "seed": number + 10**6}
        headers = {"Idempotency-Key": f"key {number}"} | ({"Prefer": prefer} if prefer else {})
        while True:
            asked, job = self._ask(app, body, headers)
            if asked.job_id is not None:
                if asked.job_id not in self.known:
                    self.known[asked.job_id] = app
                    self._open.add(asked.job_id)
                if job is not None and "status" in job:
                    self._note(asked.job_id, asked.began, job)
                return asked.job_id
            refused = asked.status in (404, 422) or (asked.problem or "").endswith(":app_broken")
            if refused or self._stopped.wait(RETRY):
                return None

    def _ask(
        self, app: str, body: dict[str, Any], headers: dict[str, str]
    ) -> tuple[Asked, dict[str, Any] | None]:
        digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        began, status, problem, job_id, answer = time.time(), None, None, None, None
        try:
            response = self._http.post(f"/{app}/v1/generate", json=body, headers=headers)
        except httpx.HTTPError:
            pass  # no answer: it may have been accepted or not
        else:
            status = response.status_code
            answer = _json(response)
            problem = answer.get("type")
            is_conflict = problem is not None and problem.endswith(":idempotency_conflict")
            if not is_conflict:  # whose job id is the other request's
                job_id = answer.get("id") or answer.get("job_id")
        asked = Asked(
            began=began, at=time.time(), app=app, body=digest, key=headers["Idempotency-Key"],
            status=status, problem=problem, job_id=job_id, client=self.key_id,
        )  # fmt: skip
        self._history.add(asked)
        return asked, answer

    def look(self, job_id: str, *, wait: float = 0) -> str | None:
        """Look at a job, and at its pictures; its status, or None if the product did not say."""
        began = time.time()
        try:
            response = self._http.get(f"/v1/jobs/{job_id}", params={"wait": wait})
        except httpx.HTTPError:
            return None
        job = _json(response)
        if response.status_code != 200:
            gone = {404: "missing", 410: "expired"}.get(response.status_code)
            if gone and (job.get("type") or "").endswith((":job_not_found", ":job_expired")):
                self._note(job_id, began, {"status": gone})
            return None
        self._note(job_id, began, job)
        return job["status"]

    def _note(self, job_id: str, began: float, job: dict[str, Any]) -> None:
        if isinstance(job["status"], int):  # a problem that tells of a final job: look, then
            return
        is_result = job["status"] == "success"  # the 200 answer of a generation
        result = job if is_result else job.get("result")
        status = "succeeded" if is_result else job["status"]
        if status in FINAL:
            self._open.discard(job_id)
        error = job.get("error")
        self._history.add(
            Seen(
                began=began,
                at=time.time(),
                job_id=job_id,
                status=status,
                attempt=job.get("attempt", 0),
                error=error["code"] if error else None,
                images=_digests(result) if result else None,
                client=self._eyes,
            )
        )

    def pry(self) -> None:
        """Try to get at a job of somebody else."""
        others = [
            job_id
            for rival in self.rivals
            for job_id in list(rival.known)
            if rival.key_id != self.key_id
        ]
        if not others:
            return
        job_id = self._random.choice(others)
        what, method, path = self._random.choice(PRYING)
        began, status = time.time(), None
        with suppress(httpx.HTTPError):  # no answer
            status = self._http.request(method, f"/v1/jobs/{job_id}{path}").status_code
        self._history.add(
            Pried(
                began=began, at=time.time(), job_id=job_id, client=self.key_id, what=what,
                status=status,
            )
        )  # fmt: skip

    def list_jobs(self) -> None:
        """See every job of a page as it is listed."""
        began = time.time()
        try:
            response = self._http.get("/v1/jobs", params={"limit": 50})
        except httpx.HTTPError:
            return
        if response.status_code == 200:
            for job in _json(response).get("data", []):
                self._note(job["id"], began, {**job, "result": None})

    def cancel(self, job_id: str) -> None:
        began, status = time.time(), None
        try:
            response = self._http.delete(f"/v1/jobs/{job_id}")
        except httpx.HTTPError:
            pass
        else:
            status = response.status_code
        self._history.add(CancelAsked(began=began, at=time.time(), job_id=job_id, status=status))


def _body(number: int) -> dict[str, Any]:
    steps = LONG if number % 4 == 0 else 2 + number % 11
    return {
        "prompt": PROMPTS[number % 2],
        "seed": number,
        "num_inference_steps": steps,
        "num_images": 2 if number % 3 == 0 else 1,
    }


def _digests(result: dict[str, Any]) -> tuple[str, ...] | None:
    images = result.get("images") or [result["image"]]
    if None in images:
        return ("missing",)
    return digests(b64decode(image.partition(",")[2]) for image in images)


def _json(response: httpx.Response) -> dict[str, Any]:
    """The body; {} of an answer that is not the product's but of Serve's proxy."""
    kind = response.headers.get("Content-Type", "")
    return response.json() if kind.startswith(("application/json", "application/problem")) else {}
