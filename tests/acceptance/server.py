"""The product as an HTTP client sees it: nothing but requests and answers."""

import io
import time
from base64 import b64decode
from collections.abc import Callable
from typing import Any, Self

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image

LIMIT = 180.0  # seconds for anything that must happen, on a loaded machine


class Server:
    """One base URL."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._http = httpx.Client(base_url=url, timeout=LIMIT, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self._http.get(path, **options)

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        return self._http.request(method, path, **options)

    def generate(
        self, app: str, *, headers: dict[str, str] | None = None, **body: Any
    ) -> httpx.Response:
        return self._http.post(f"/{app}/v1/generate", json=body, headers=headers)

    def submit(self, app: str, **body: Any) -> str:
        """The id of a job that is not waited for."""
        answer = self.generate(app, headers={"Prefer": "respond-async"}, **body)
        assert answer.status_code == 202, answer.text
        return answer.json()["id"]

    def health(self, app: str) -> dict[str, Any]:
        return self.get(f"/{app}/v1/health").json()

    def replica_pids(self, app: str) -> list[int]:
        return [replica["pid"] for replica in self.health(app)["replicas"]]

    def finished(self, job_id: str, phases: list[str] | None = None) -> dict[str, Any]:
        """The job once it is final; every phase seen on the way goes into `phases`."""
        deadline = time.monotonic() + LIMIT
        while True:
            answer = self.get(f"/v1/jobs/{job_id}", params={"wait": 0.2})
            # Redis may be restarting under this test: 503 is then the right answer.
            if answer.status_code != 503:
                assert answer.status_code == 200, answer.text
                job = answer.json()
                if phases is not None and job["phase"] not in (None, *phases[-1:]):
                    phases.append(job["phase"])
                if job["status"] in ("succeeded", "failed", "cancelled"):
                    return job
            assert time.monotonic() < deadline, answer.text

    def warm(self, app: str) -> None:
        """Return once the app has a free replica."""
        answer = self.generate(app, prompt="a red circle on a blue background")
        if answer.status_code == 202:
            assert self.finished(answer.json()["id"])["status"] == "succeeded"
        self.until(app, lambda health: health["state"] == "ready")

    def until(self, app: str, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The app's health once it fulfils `condition`."""
        deadline = time.monotonic() + LIMIT
        while True:
            health = self.health(app)
            if condition(health):
                return health
            assert time.monotonic() < deadline, health
            time.sleep(0.1)

    def running(self, job_id: str, step: int) -> dict[str, Any]:
        """The job once it runs and has done `step` steps."""
        deadline = time.monotonic() + LIMIT
        while True:
            job = self.get(f"/v1/jobs/{job_id}").json()
            if job["status"] == "running" and job["progress"]["step"] >= step:
                return job
            assert job["status"] in ("queued", "running"), job
            assert time.monotonic() < deadline, job
            time.sleep(0.02)


def pixels(data_uri: str) -> NDArray[np.uint8]:
    """The picture [H, W, 3] of a data URI."""
    return decode(b64decode(data_uri.partition(",")[2]))


def decode(data: bytes) -> NDArray[np.uint8]:
    """The picture [H, W, 3] of encoded bytes."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
