"""submit_batch against the real server: its gateway, its Redis, its feeder, a model that draws."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis

from api.gateway import create_app
from deploy_scripts import batch_folder
from deploy_scripts.submit_batch import main
from sdserve import keys
from sdserve.apps import AppState
from sdserve.batches import BatchState
from sdserve.checkpoints import inspect_checkpoint
from sdserve.client import SdClient
from sdserve.limits import BatchLimits
from sdserve.redis_server import ensure_redis, stop_redis
from sdserve.settings import Settings
from sdserve.store import RedisJobStore, connect
from tests.drawing_replica import Moods, start_drawing
from tests.http_app import HttpApp, edge_settings
from tests.rq_worker import working
from tests.values import APP, replica_settings, spec
from tests.waiting import LIMIT, until
from workers.task_queue import QueueName

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "demo_models" / "tiny-shapes-sd15.safetensors"
CLIENT, FOLDER = "sdserve.client:SdClient", "deploy_scripts.batch_folder:BatchFolder"


class Server:
    """One app and a warm replica of it; the gateway can go and come back at its address."""

    def __init__(self, redis_url: str, moods: Moods) -> None:
        self.moods = moods
        self.redis: Redis = connect(redis_url)
        self._settings = edge_settings(redis_url)
        self._http = HttpApp(create_app(self._settings))
        self._http.__enter__()
        self.port = self._http.port
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = SdClient(self.url)

    def start(self) -> None:
        self._http = HttpApp(create_app(self._settings), self.port)
        self._http.__enter__()

    def stop(self) -> None:
        self._http.__exit__()

    @property
    def job_ids(self) -> list[str]:
        return [job.id for job in self.client.jobs(page=100)]

    @property
    def batch_ids(self) -> list[str]:
        answer = httpx.get(f"{self.url}/v1/batches", params={"limit": 100}, trust_env=False)
        return [batch["id"] for batch in answer.json()["data"]]

    def forget_job(self, job_id: str) -> None:
        """As if its time had come."""
        self.redis.delete(keys.JOB + job_id)

    def forget_batch(self, batch_id: str) -> None:
        self.redis.delete(keys.BATCH + batch_id)

    def end_of(self, batch_id: str) -> None:
        until(lambda: self.client.batch(batch_id).status is BatchState.COMPLETED)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder: Path = tmp_path_factory.mktemp("drawing")
    settings = Settings(redis_url=None, state_dir=folder)
    redis_url = ensure_redis(settings)
    checkpoint, defaults = inspect_checkpoint(DEMO)
    app = spec(checkpoint=checkpoint, defaults=defaults)
    store = RedisJobStore(connect(redis_url))
    store.register_app(app)
    replica = start_drawing(app, replica_settings(redis_url), folder)
    try:
        until(lambda: store.app_status(APP).state is AppState.READY)
        with working(redis_url, queue=QueueName.BATCHES):
            server = Server(redis_url, Moods(folder))
            yield server
            server.stop()
            server.client.close()
            server.redis.close()
    finally:
        replica.kill()
        replica.join()
        stop_redis(settings)


@pytest.fixture
def server(running: Server) -> Iterator[Server]:
    running.moods.clear()
    for batch_id in running.batch_ids:
        running.forget_batch(batch_id)
    for job_id in running.job_ids:
        running.forget_job(job_id)
    yield running
    running.moods.clear()


class Batch:
    """A prompt file and an output folder, submitted from here or from a process to kill."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server = server
        self.folder = folder
        self.file = folder / "prompts.txt"
        self.out = folder / "out"

    def arguments(self, *options: str) -> list[str]:
        fixed = [str(self.file), "--app", APP, "--out", str(self.out), "--url", self.server.url]
        return [*fixed, "--steps", "1", *options]

    def submit(self, *options: str) -> int:
        return main(self.arguments(*options))

    def start(self, *command: str) -> subprocess.Popen[str]:
        command = command or ("deploy_scripts.submit_batch",)
        return subprocess.Popen(
            [sys.executable, "-m", *command, *self.arguments()],
            cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def die(self, when: str, where: str, count: int = 1) -> None:
        """A run that is killed before or after the `count`-th call of `where`."""
        process = self.start("tests.killed_command", when, where, str(count))
        _, said = process.communicate(timeout=LIMIT)
        assert process.returncode == -signal.SIGKILL, said

    def write(self, text: str, name: str = "prompts.txt") -> None:
        self.file = self.folder / name
        self.file.write_text(text)

    @property
    def images(self) -> list[str]:
        return sorted(path.name for path in self.out.iterdir() if path.name[0].isdigit())

    @property
    def uploads(self) -> list[str]:
        return [path.stem for path in self.out.glob("*-*.jsonl")]

    @property
    def records(self) -> list[dict[str, Any]]:
        lines = (self.out / "results.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def tries(self) -> list[tuple[int, int, str]]:
        return [(one["number"], one["attempt"], one["status"]) for one in self.records]


@pytest.fixture
def batch(server: Server, tmp_path: Path) -> Batch:
    return Batch(server, tmp_path)


def prompts(count: int, mood: str = "") -> str:
    return "".join(f"{mood} prompt {n}\n" for n in range(1, count + 1))


# --- a run ---------------------------------------------------------------------------------------


def test_every_prompt_becomes_an_image_and_a_record(batch: Batch) -> None:
    batch.write("# animals\n\na fox\n  a hen \n")
    assert batch.submit("--seed", "7", "--width", "256") == 0
    assert batch.images == ["0001.png", "0002.png"]
    first, second = sorted(batch.records, key=lambda record: record["number"])
    assert (first["line"], first["prompt"], first["status"]) == (3, "a fox", "succeeded")
    assert (second["line"], second["prompt"]) == (4, "a hen")
    assert (first["files"], first["seed"]) == (["0001.png"], 7)
    assert first["seconds"] > 0
    assert first["compute_metrics"]["denoise_seconds"] > 0
    (batch_id,) = batch.server.batch_ids
    assert batch.server.client.batch(batch_id).lines == 2
    job = batch.server.client.job(first["job_id"])
    assert (job.parameters["width"], job.parameters["num_inference_steps"]) == (256, 1)
    assert batch.uploads == []


def test_csv_columns_are_typed_fields_that_win_over_options(batch: Batch) -> None:
    text = 'prompt,seed,width,guidance_scale\n"a fox, red",3,128,2.5\n\n"two\nlines",,,\n'
    batch.write(text, "prompts.csv")
    assert batch.submit("--seed", "9") == 0
    records = sorted(batch.records, key=lambda record: record["number"])
    assert [(record["line"], record["seed"]) for record in records] == [(2, 3), (4, 9)]
    found = [batch.server.client.job(record["job_id"]).parameters for record in records]
    assert [one["prompt"] for one in found] == ["a fox, red", "two\nlines"]
    assert (found[0]["width"], found[0]["guidance_scale"]) == (128, 2.5)


def test_jsonl_lines_are_requests_and_several_images_get_several_names(batch: Batch) -> None:
    batch.write('{"prompt": "a fox", "num_images": 2, "format": "jpeg", "seed": null}\n', "p.jsonl")
    assert batch.submit() == 0
    assert batch.images == ["0001-1.jpg", "0001-2.jpg"]
    assert batch.records[0]["files"] == ["0001-1.jpg", "0001-2.jpg"]


def test_a_file_that_is_larger_than_a_batch_becomes_several_in_order(
    batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch.write(prompts(4) + "a much longer prompt than those before\n")
    monkeypatch.setattr(batch_folder, "_LIMITS", BatchLimits(lines=3, upload_bytes=300))
    assert batch.submit() == 0
    counts = [batch.server.client.batch(one).lines for one in batch.server.batch_ids]
    assert (sum(counts), len(counts) > 1, max(counts) <= 3) == (5, True, True)
    assert len(batch.images) == len(batch.server.job_ids) == 5


def test_what_the_server_refuses_is_named_by_its_line_and_nothing_is_submitted(
    batch: Batch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = '{"prompt": "a"}\n\n{"prompt": "a", "width": 100}\n'
    batch.write(text + '{"prompt": "a", "height": 2048}\n', "p.jsonl")
    assert batch.submit() == 2
    said = capsys.readouterr().err
    assert "2 bad lines, so nothing was submitted" in said
    assert "line 3: width: 100 is not a multiple of 8" in said
    assert "line 4: height: " in said
    assert (batch.server.batch_ids, batch.uploads) == ([], [])


def test_an_unknown_app_is_refused_with_the_known_ones(
    batch: Batch, capsys: pytest.CaptureFixture[str]
) -> None:
    batch.write("a\n")
    assert batch.submit("--app", "sd-huge") == 2
    assert f"No app 'sd-huge' is deployed. Deployed apps: {APP}." in capsys.readouterr().err


# --- again ---------------------------------------------------------------------------------------


def test_finished_prompts_are_skipped(batch: Batch, capsys: pytest.CaptureFixture[str]) -> None:
    batch.write(prompts(2))
    assert batch.submit() == 0
    batch.write(prompts(3))
    assert batch.submit() == 0
    assert len(batch.server.job_ids) == 3
    assert "2 of 3 prompts already done" in capsys.readouterr().out
    assert batch.submit() == 0
    assert "3 prompts, all succeeded" in capsys.readouterr().out
    assert len(batch.server.batch_ids) == 2


def test_a_failed_prompt_is_reported_and_tried_again_as_a_new_job(
    batch: Batch, capsys: pytest.CaptureFixture[str]
) -> None:
    batch.write("a fox\nbad\n")
    batch.server.moods.broken.touch()
    assert batch.submit() == 1
    said = capsys.readouterr()
    assert "line 2: failed: " in said.out
    assert "1 prompt failed: see" in said.err
    assert batch.images == ["0001.png"]
    batch.server.moods.clear()
    assert batch.submit() == 0
    assert batch.tries()[1:] == [(2, 1, "failed"), (2, 2, "succeeded")]
    assert len(batch.server.job_ids) == 3


def test_a_changed_line_is_new_work_and_said_so(
    batch: Batch, capsys: pytest.CaptureFixture[str]
) -> None:
    batch.write("a fox\na hen\na cow\n")
    assert batch.submit() == 0
    batch.write("a fox\na goat\n")
    capsys.readouterr()
    assert batch.submit() == 0
    said = capsys.readouterr().out
    assert "Changed since the last run, in text or options: 1 prompt (line 2)." in said
    assert "No longer in the file: 1 prompt of the last run." in said
    assert len(batch.server.job_ids) == 4


def test_an_image_of_another_format_replaces_the_old_one(batch: Batch) -> None:
    batch.write(prompts(1))
    assert batch.submit() == 0
    assert batch.submit("--format", "webp") == 0
    assert batch.images == ["0001.webp"]


def test_a_deleted_image_is_drawn_again(batch: Batch) -> None:
    batch.write(prompts(2))
    assert batch.submit("--seed", "3") == 0
    before = (batch.out / "0001.png").read_bytes()
    (batch.out / "0001.png").unlink()
    assert batch.submit("--seed", "3") == 0
    assert (batch.out / "0001.png").read_bytes() == before
    assert len(batch.server.job_ids) == 3


# --- who dies ------------------------------------------------------------------------------------


def test_a_run_that_is_killed_anywhere_again_and_again_makes_one_batch(batch: Batch) -> None:
    batch.write(prompts(5))
    batch.die("before", f"{CLIENT}.create_batch")
    assert [name.split("-")[0] for name in batch.uploads] == ["upload"]
    assert batch.server.batch_ids == []
    batch.die("after", f"{CLIENT}.create_batch")  # nobody has seen the answer
    (batch_id,) = batch.server.batch_ids
    batch.die("after", f"{FOLDER}.accepted")
    assert batch.uploads == [f"batch-{batch_id}"]
    batch.die("after", f"{FOLDER}.save")  # an image without its record
    assert (batch.images, batch.records) == (["0001.png"], [])
    results = batch.out / "results.jsonl"
    batch.die("after", f"{FOLDER}.append", 2)
    os.truncate(results, results.stat().st_size - 20)  # as if in the middle of it
    batch.die("before", f"{FOLDER}.end")
    assert len(batch.records) == 5

    assert batch.submit() == 0

    assert batch.server.batch_ids == [batch_id]
    assert len(batch.server.job_ids) == 5
    assert sorted(batch.tries()) == [(n, 1, "succeeded") for n in range(1, 6)]
    assert batch.images == [f"{n:04d}.png" for n in range(1, 6)]
    assert batch.uploads == []


def test_ctrl_c_leaves_the_batch_and_says_how_to_go_on_and_how_to_cancel(batch: Batch) -> None:
    batch.write(prompts(2, "slow"))
    batch.server.moods.shut.touch()
    process = batch.start()
    until(lambda: batch.server.job_ids)
    until(lambda: any(name.startswith("batch-") for name in batch.uploads))
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=LIMIT)
    assert process.returncode == 130
    (batch_id,) = batch.server.batch_ids
    assert said.startswith("Interrupted. The batch goes on at the server; ")
    assert f"curl -X DELETE {batch.server.url}/v1/batches/{batch_id} cancels it" in said
    assert "Go on with:\n  python -m deploy_scripts.submit_batch" in said
    assert "Traceback" not in said
    batch.server.moods.clear()
    batch.server.end_of(batch_id)
    assert batch.submit() == 0
    assert (batch.server.batch_ids, len(batch.server.job_ids)) == ([batch_id], 2)


def test_a_cancelled_batch_is_told_and_drawn_by_the_next_run(
    batch: Batch, capsys: pytest.CaptureFixture[str]
) -> None:
    batch.write(prompts(2, "slow"))
    batch.server.moods.shut.touch()
    batch.die("after", f"{FOLDER}.accepted")
    batch.server.client.cancel_batch(batch.server.batch_ids[0])
    batch.server.moods.clear()
    assert batch.submit() == 1
    assert "line 2: cancelled: " in capsys.readouterr().out
    assert batch.submit() == 0
    assert sorted(batch.tries()) == [
        (n, attempt, status)
        for n in (1, 2)
        for attempt, status in ((1, "cancelled"), (2, "succeeded"))
    ]


def test_a_job_that_failed_after_the_client_died_is_recorded_then_tried_again(
    batch: Batch,
) -> None:
    batch.write("bad\n")
    batch.server.moods.broken.touch()
    batch.die("after", f"{FOLDER}.accepted")
    batch.server.end_of(batch.server.batch_ids[0])
    batch.server.moods.clear()
    assert batch.submit() == 1
    assert batch.tries() == [(1, 1, "failed")]
    assert batch.submit() == 0


def test_images_that_expired_unseen_are_drawn_again_by_the_same_run(batch: Batch) -> None:
    batch.write(prompts(3))
    batch.die("after", f"{FOLDER}.accepted")
    batch.server.end_of(batch.server.batch_ids[0])
    for job_id in batch.server.job_ids[:2]:
        batch.server.forget_job(job_id)
    assert batch.submit() == 0
    assert [one["error"]["code"] for one in batch.records if one["error"]] == ["images_expired"] * 2
    assert len(batch.images) == 3
    assert len(batch.server.batch_ids) == 2


def test_a_batch_that_the_server_has_forgotten_is_handed_in_again(
    batch: Batch, capsys: pytest.CaptureFixture[str]
) -> None:
    batch.write(prompts(3))
    batch.die("after", f"{FOLDER}.append")
    (first,) = batch.server.batch_ids
    batch.server.end_of(first)
    batch.server.forget_batch(first)
    assert batch.submit() == 0
    assert "What it has not told is to be drawn again." in capsys.readouterr().out
    (second,) = batch.server.batch_ids
    assert (second != first, batch.server.client.batch(second).lines) == (True, 2)


def test_a_server_that_goes_away_and_comes_back_costs_nothing(
    batch: Batch, capsys: pytest.CaptureFixture[str]
) -> None:
    batch.write(prompts(4, "slow"))
    batch.server.moods.shut.touch()
    done = list[int]()
    client = threading.Thread(target=lambda: done.append(batch.submit()))
    client.start()
    until(lambda: batch.server.job_ids)
    batch.server.stop()
    said = list[str]()

    def is_waiting() -> bool:
        said.append(capsys.readouterr().out)
        return "Waiting: " in "".join(said)

    until(is_waiting)
    batch.server.moods.clear()
    batch.server.start()
    client.join(LIMIT)
    assert done == [0]
    assert len(batch.server.batch_ids) == 1
    assert len(batch.server.job_ids) == len(batch.images) == 4
