"""What a warm request costs, as counts that no busy machine changes; and a few generous ratios.

    python -m bench smoke

Everything runs in this process, so that all of it can be counted: the gateway under uvicorn, a
replica with an engine that only sleeps (bench/stub_engine.py), and a Redis. The counts are exact
gates: whoever changes one on purpose changes it in `GATES`, and says why. The exit code is 1 when
one is broken.
"""

import argparse
import binascii
import json
import math
import statistics
import sys
import tempfile
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from socket import create_server
from typing import Any
from unittest.mock import patch

import httpx
import uvicorn

from api.edge import EdgeSettings
from api.gateway import create_app
from bench import stub_engine
from bench.own_app import APP, HOUR, MODEL, replica_settings, spec_of
from bench.report import table
from bench.round_trips import RoundTrips, counted
from bench.statistics import abba, bootstrap_ratio
from sdserve.apps import AppState
from sdserve.generation import EncodedImage
from sdserve.redis_server import ensure_redis, stop_redis
from sdserve.settings import Settings
from sdserve.store import RedisJobStore, connect
from workers.images import encode_image
from workers.puller import Puller

PATIENCE = 60.0  # seconds
ROUNDS = 15  # of each kind of request; the median is what counts
STEPS = 4
CLIENTS = 4
SIDE = 256  # pixels, the most that the demo model draws
STEP_SECONDS = 0.025  # of a saturated engine
ENCODING = 0.7  # of its time for a picture
PICTURES = 20
PICTURE_BYTES = 1000  # less is no picture
Body = Mapping[str, Any]
Headers = Mapping[str, str]
NO_HEADERS: Headers = {}
SMALL: Body = {"prompt": "a red circle", "num_inference_steps": STEPS, "seed": 1}
LARGE: Body = {**SMALL, "width": SIDE, "height": SIDE}
RAW: Headers = {"Accept": "image/png"}
HELD: Headers = {"Prefer": "wait=60"}

# Round trips to Redis, by the first script or command of each. Of a warm request: the edge submits,
# and looks at the end, which brings the pictures; the replica is woken, claims, looks for a second
# job, stores the pictures with the end of the job, and waits again.
WARM = {"BLPOP": 1, "SET result": 1, "claim": 2, "look": 1, "submit": 1}
GATES: dict[str, Any] = {
    "round trips of a warm request": WARM,
    "round trips of a warm request, raw": WARM,
    "round trips of a 202": {"look": 1, "submit": 1},
    "round trips of a poll, queued": {"look": 1},
    "round trips of a poll, ended": {"MGET result": 1, "look": 1},
    "round trips of an image": {"MGET result": 1, "look": 1},
    "base64 encodings of a warm request": 1,
    "base64 encodings of a warm request, raw": 0,
    "threads of a replica": ["engine", "finish_0", "heartbeat", "watchdog"],
    "threads that 50 requests add to the gateway": [],
}
# Bounds far from what a quiet machine shows: they catch a lost property, not noise.
COPIES = 8.0  # pictures' sizes of memory that the edge takes for one JSON answer: 5.4 measured
BESIDE_LIVENESS = 40.0  # p50 of a warm request by that of a route without Redis: 9 measured
SATURATED = (
    0.7  # of the sleeping engine's pictures: 0.59 were the next one to wait for the encoding
)


@dataclass(frozen=True, kw_only=True)
class Found:
    """One figure and its gate."""

    name: str
    figure: Any
    gate: str
    is_met: bool


@dataclass(frozen=True, kw_only=True)
class Bound:
    """A ratio that may not be more, or less."""

    name: str
    measure: Callable[[], float]
    at_most: float = math.inf
    at_least: float = -math.inf

    def __str__(self) -> str:
        return f"<= {self.at_most:g}" if math.isfinite(self.at_most) else f">= {self.at_least:g}"

    def holds(self, ratio: float) -> bool:
        return self.at_least <= ratio <= self.at_most


class Smoke:
    """The app, and what is asked of it."""

    def __init__(self, url: str, redis_url: str, store: RedisJobStore, trips: RoundTrips) -> None:
        self._redis_url = redis_url
        self._http = httpx.Client(base_url=url, timeout=PATIENCE, trust_env=False)
        self._store = store
        self._trips = trips
        self._replica: Puller | None = None
        self._before = set[threading.Thread]()  # threads, when the replica was started

    def run(self, only: str | None = None) -> list[Found]:
        """Everything, or what is called `only`, once."""
        warm: dict[str, Callable[[], Any]] = {
            "threads of a replica": lambda: self._threads,
            "round trips of a warm request": lambda: self._trips_of(
                lambda: self._generate(SMALL), is_drawn=True
            ),
            "round trips of a warm request, raw": lambda: self._trips_of(
                lambda: self._generate(SMALL, RAW), is_drawn=True
            ),
            "round trips of a poll, ended": lambda: self._trips_of_look(""),
            "round trips of an image": lambda: self._trips_of_look("/image"),
            "base64 encodings of a warm request": lambda: self._encodings(NO_HEADERS),
            "base64 encodings of a warm request, raw": lambda: self._encodings(RAW),
            "threads that 50 requests add to the gateway": self._threads_of_requests,
            **{bound.name: bound.measure for bound in self._bounds()},
        }
        later = {"Prefer": "respond-async"}
        cold: dict[str, Callable[[], Any]] = {
            "round trips of a 202": lambda: self._trips_of(lambda: self._post(SMALL, later)),
            "round trips of a poll, queued": lambda: self._trips_of_look("", later),
        }
        found = list[Found]()
        for figures, is_warm in ((warm, True), (cold, False)):
            chosen = {name: each for name, each in figures.items() if only in (None, name)}
            if chosen and is_warm:
                self.start_replica(0.0)
                self._generate(SMALL)  # the finisher's thread is there from the first job on
            elif chosen:
                self.stop_replica()
            found += [self._judge(name, each()) for name, each in chosen.items()]
        return found

    def _bounds(self) -> list["Bound"]:
        return [
            Bound(
                name="pictures' sizes of memory for one answer",
                measure=self._copies,
                at_most=COPIES,
            ),
            Bound(
                name="a warm request / a route without Redis",
                measure=self._beside_liveness,
                at_most=BESIDE_LIVENESS,
            ),
            Bound(
                name="saturated / the engine's own rate",
                measure=self._saturated,
                at_least=SATURATED,
            ),
        ]

    def _judge(self, name: str, figure: Any) -> Found:
        for bound in self._bounds():
            if bound.name == name:
                return Found(
                    name=name, figure=round(figure, 2), gate=str(bound), is_met=bound.holds(figure)
                )
        gate = GATES[name]
        return Found(name=name, figure=figure, gate=json.dumps(gate), is_met=figure == gate)

    def start_replica(self, step_seconds: float) -> None:
        """Stop the one there is; a new one is ready afterwards."""
        self.stop_replica()
        self._before = set(threading.enumerate())
        self._replica = Puller(
            self._store.apps()[APP],
            replica_settings(self._redis_url),
            born=time.monotonic(),
            load=stub_engine.loads(step_seconds),
            end_process=sys.exit,
        )
        deadline = time.monotonic() + PATIENCE
        while self._store.app_status(APP).state is not AppState.READY:
            if time.monotonic() > deadline:
                raise TimeoutError("the replica does not come up")
            time.sleep(0.02)

    @property
    def _threads(self) -> list[str]:
        """Of the replica, once it has drawn a picture."""
        return sorted(one.name for one in set(threading.enumerate()) - self._before)

    def close(self) -> None:
        self.stop_replica()
        self._http.close()

    def stop_replica(self) -> None:
        if self._replica:
            self._replica.stop()
        self._replica = None

    def _trips_of(self, ask: Callable[[], object], *, is_drawn: bool = False) -> dict[str, int]:
        """The median of each count: what a replica does twice a second falls on few requests.

        Args:
            ask: the request.
            is_drawn: a replica draws it; when it waits for work again, it has sent all it had to.
        """
        counts = list[Counter[str]]()
        for _ in range(ROUNDS):
            self._trips.take()
            ask()
            deadline = time.monotonic() + PATIENCE
            while is_drawn and not self._trips.has("BLPOP") and time.monotonic() < deadline:
                time.sleep(0.005)
            counts.append(self._trips.take())
        names = sorted({name for each in counts for name in each})
        medians = {name: statistics.median_low(each[name] for each in counts) for name in names}
        return {name: number for name, number in medians.items() if number}

    def _trips_of_look(self, part: str, headers: Headers = NO_HEADERS) -> dict[str, int]:
        """Of a look at a part of a job that was sent with these headers."""
        job_id = self._post(SMALL, headers).headers["X-Job-Id"]
        return self._trips_of(lambda: self._get(f"{job_id}{part}"))

    def _encodings(self, headers: Headers) -> int:
        """How often a picture is encoded as base64 for one request."""
        encode, sizes = binascii.b2a_base64, list[int]()

        def note(data: bytes, **options: Any) -> bytes:
            sizes.append(len(data))
            return encode(data, **options)

        with patch.object(binascii, "b2a_base64", note):
            self._generate(SMALL, headers)
        return sum(size > PICTURE_BYTES for size in sizes)

    def _threads_of_requests(self) -> list[str]:
        """Threads that are there after many requests at once, and were not before."""
        before = set(threading.enumerate())
        with ThreadPoolExecutor(CLIENTS) as clients:
            list(clients.map(self._generate, [SMALL] * 50, [HELD] * 50))
        return sorted(one.name for one in set(threading.enumerate()) - before)

    def _copies(self) -> float:
        """The most memory that the edge takes for a JSON answer, by the bytes of its pictures."""
        body = {**LARGE, "num_images": 8, "num_inference_steps": 1}
        key = {"Idempotency-Key": "copies", **HELD}
        job_id = self._generate(body, key)["job_id"]
        size = sum(len(self._get(f"{job_id}/image/{k}").content) for k in range(8))
        peaks = list[int]()
        tracemalloc.start()
        for _ in range(5):
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            # The same key: no replica is asked. What is read is dropped: a client is not the edge.
            with self._http.stream("POST", "/v1/generate", json=body, headers=key) as answer:
                for _ in answer.iter_raw():
                    pass
            peaks.append(tracemalloc.get_traced_memory()[1] - before)
        tracemalloc.stop()
        return statistics.median(peaks) / size

    def _beside_liveness(self) -> float:
        """The low end of the interval: above the bound it is slower without a doubt."""
        asks: dict[str, Callable[[], object]] = {
            "warm": lambda: self._generate(SMALL, RAW),
            "alive": lambda: self._http.get("/v1/health/live"),
        }
        samples: dict[str, list[list[float]]] = {name: [] for name in asks}
        for turns in abba(list(asks), 5):
            for blocks in samples.values():
                blocks.append([])
            for name in turns:
                samples[name][-1] += [_seconds(asks[name]) for _ in range(10)]
        return bootstrap_ratio(samples["warm"], samples["alive"]).low

    def _saturated(self) -> float:
        """Pictures per second by those of the engine alone, beside an encoding that is slow."""
        self.start_replica(STEP_SECONDS)

        def encode(*arguments: Any, **options: Any) -> EncodedImage:
            time.sleep(ENCODING * STEPS * STEP_SECONDS)
            return encode_image(*arguments, **options)

        with (
            patch("workers.images.encode_image", encode),
            ThreadPoolExecutor(CLIENTS) as clients,
        ):
            begin = time.perf_counter()
            drawn = list(clients.map(self._generate, [SMALL] * PICTURES, [HELD] * PICTURES))
            seconds = time.perf_counter() - begin
        metrics = [each["compute_metrics"] for each in drawn]
        parts = ("encode_seconds", "denoise_seconds", "decode_seconds")
        alone = statistics.median(sum(each[part] for part in parts) for each in metrics)
        return (PICTURES - 1) * alone / (seconds - alone)  # the first encodes beside nothing

    def _generate(self, body: Body, headers: Headers = NO_HEADERS) -> Any:
        """The JSON of a picture that was drawn; of raw bytes nothing."""
        answer = self._post(body, headers)
        if answer.status_code != 200:
            raise RuntimeError(f"not drawn: {answer.status_code} {answer.text}")
        return None if headers is RAW else answer.json()

    def _post(self, body: Body, headers: Headers = NO_HEADERS) -> httpx.Response:
        return self._http.post("/v1/generate", json=body, headers=headers)

    def look(self) -> None:
        """The first request of all: the app's routes are made, the connections too."""
        self._http.get("/v1/health").raise_for_status()

    def _get(self, path: str) -> httpx.Response:
        return self._http.get(f"/v1/jobs/{path}").raise_for_status()


def _seconds(ask: Callable[[], object]) -> float:
    begin = time.perf_counter()
    ask()
    return time.perf_counter() - begin


@contextmanager
def smoke() -> Generator[Smoke]:
    """The app, in this process."""
    spec = spec_of(MODEL)
    with tempfile.TemporaryDirectory() as folder, counted() as trips:
        settings = Settings(redis_url=None, state_dir=Path(folder))
        redis_url = ensure_redis(settings)
        store = RedisJobStore(connect(redis_url))
        store.register_app(spec)
        edge = EdgeSettings(redis_url=redis_url, job_ttl=HOUR, sync_wait=HOUR)
        config = uvicorn.Config(create_app(edge), log_level="warning", access_log=False)
        server = uvicorn.Server(config)
        socket = create_server(("127.0.0.1", 0), backlog=4096)
        thread = threading.Thread(target=server.run, args=([socket],), daemon=True)
        thread.start()
        one = Smoke(f"http://127.0.0.1:{socket.getsockname()[1]}/{APP}", redis_url, store, trips)
        try:
            one.look()
            yield one
        finally:
            one.close()
            server.should_exit = True
            thread.join(PATIENCE)
            socket.close()
            stop_redis(settings)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="bench smoke", description=__doc__)
    parser.parse_args(arguments)
    with smoke() as one:
        found = one.run()
    rows = [
        [each.name, json.dumps(each.figure), each.gate, "" if each.is_met else "**broken**"]
        for each in found
    ]
    print("\n".join(table(["what", "figure", "gate", ""], rows)))
    if not all(each.is_met for each in found):
        sys.exit(1)


if __name__ == "__main__":
    main()
