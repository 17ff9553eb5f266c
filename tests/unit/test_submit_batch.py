"""submit_batch over real HTTP: what it promises when lines, jobs, servers and clients fail."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy_scripts.submit_batch import main
from tests.fake_server import APP, FakeServer, picture, problem, wait_until

ROOT = Path(__file__).parents[2]


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        yield running


class Batch:
    """A prompt file and an output folder, submitted from here or from a process to kill."""

    def __init__(self, server: FakeServer, folder: Path) -> None:
        self.server = server
        self.folder = folder
        self.file = folder / "prompts.txt"
        self.out = folder / "out"

    def arguments(self, *options: str) -> list[str]:
        fixed = [str(self.file), "--app", APP, "--out", str(self.out), "--url", self.server.url]
        return [*fixed, *options]

    def submit(self, *options: str) -> int:
        return main(self.arguments(*options))

    def start(self, *options: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "deploy_scripts.submit_batch", *self.arguments(*options)]
        return subprocess.Popen(
            command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def write(self, text: str, name: str = "prompts.txt") -> None:
        self.file = self.folder / name
        self.file.write_text(text)

    @property
    def images(self) -> list[str]:
        return sorted(path.name for path in self.out.iterdir() if path.name[0].isdigit())

    @property
    def records(self) -> list[dict[str, Any]]:
        lines = (self.out / "results.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]


@pytest.fixture
def batch(server: FakeServer, tmp_path: Path) -> Batch:
    return Batch(server, tmp_path)


def prompts(count: int) -> str:
    return "".join(f"prompt {n}\n" for n in range(1, count + 1))


def test_every_prompt_becomes_an_image_and_a_record(batch: Batch) -> None:
    batch.write("# animals\n\na fox\n  a hen \n")
    assert batch.submit("--seed", "7", "--steps", "4", "--guidance", "5") == 0
    assert batch.images == ["0001.png", "0002.png"]
    assert (batch.out / "0001.png").read_bytes() == picture(7)
    first, second = sorted(batch.records, key=lambda record: record["number"])
    assert (first["line"], first["prompt"], first["status"]) == (3, "a fox", "succeeded")
    assert (second["line"], second["prompt"]) == (4, "a hen")
    assert first["files"] == ["0001.png"]
    assert first["seed"] == 7
    assert first["seconds"] == 2.0
    assert first["compute_metrics"] == {"query_duration_seconds": 2.0}
    assert first["job_id"] in batch.server.jobs
    body = {"prompt": "a fox", "seed": 7, "num_inference_steps": 4, "guidance_scale": 5.0}
    assert batch.server.jobs[first["job_id"]].body == body


def test_csv_columns_are_typed_fields_that_win_over_options(batch: Batch) -> None:
    text = 'prompt,seed,width,guidance_scale\n"a fox, red",3,512,2.5\n\n"two\nlines",,,\n'
    batch.write(text, "prompts.csv")
    assert batch.submit("--seed", "9", "--in-flight", "1") == 0
    first, second = (job.body for job in batch.server.jobs.values())
    assert first == {"prompt": "a fox, red", "seed": 3, "width": 512, "guidance_scale": 2.5}
    assert second == {"prompt": "two\nlines", "seed": 9}
    assert [record["line"] for record in batch.records] == [2, 4]


def test_jsonl_lines_are_requests_and_several_images_get_several_names(batch: Batch) -> None:
    batch.write('{"prompt": "a fox", "num_images": 2, "format": "jpeg", "seed": null}\n', "p.jsonl")
    assert batch.submit() == 0
    assert batch.images == ["0001-1.jpg", "0001-2.jpg"]
    assert batch.records[0]["files"] == ["0001-1.jpg", "0001-2.jpg"]


@pytest.mark.parametrize(
    ("name", "text", "line", "reason"),
    [
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": }\n', 2, "is not JSON"),
        ("p.jsonl", '{"prompt": "a"}\n["a"]\n', 2, "is not a JSON object"),
        ("p.jsonl", '{"seed": 1}\n', 1, "prompt: Field required"),
        ("p.jsonl", '{"prompt": "a", "sede": 1}\n', 1, "did you mean 'seed'"),
        ("p.jsonl", '{"prompt": "a", "guidance_scale": NaN}\n', 1, "NaN is not a number"),
        ("p.jsonl", '{"prompt": "a", "num_images": 9}\n', 1, "num_images: .* 8"),
        ("p.jsonl", '{"prompt": "a", "scheduler": "magic"}\n', 1, "scheduler: 'magic' is unknown"),
        ("p.jsonl", '{"prompt": "  "}\n', 1, "prompt: is blank"),
        ("p.jsonl", '{"prompt": "\\ud800"}\n', 1, "prompt: "),
        ("p.jsonl", '\n{"prompt": "a", "width": 100}\n', 2, "100 is not a multiple of 8"),
        ("p.jsonl", '{"prompt": "a", "height": 2048}\n', 1, "2048 is outside 64..1024"),
        ("p.csv", "prompt,steps\na,4\n", 1, "column 'steps' is unknown"),
        ("p.csv", "prompt,prompt\na,b\n", 1, "appears twice"),
        ("p.csv", "seed\n1\n", 1, "no column 'prompt'"),
        ("p.csv", "prompt,seed\na,1\nb,two\n", 3, "seed: .*integer"),
        ("p.csv", "prompt,seed\na,b,1\n", 2, "put quotes"),
        ("p.csv", 'prompt\n"a\n', 2, "is not CSV"),
        ("p.txt", "a\n" + "b" * 2001 + "\n", 2, "at most 2000"),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_submitted(
    batch: Batch, capsys: pytest.CaptureFixture[str], name: str, text: str, line: int, reason: str
) -> None:
    batch.write(text, name)
    assert batch.submit() == 2
    assert re.search(f"line {line}: .*{reason}", capsys.readouterr().err)
    assert batch.server.submissions == []


def test_all_bad_lines_are_named_at_once(batch: Batch, capsys: pytest.CaptureFixture[str]) -> None:
    batch.write('{"prompt": ""}\n{"prompt": "a"}\nnonsense\n', "p.jsonl")
    assert batch.submit() == 2
    said = capsys.readouterr().err
    assert "2 bad lines" in said
    assert "line 1: prompt: " in said
    assert "line 3: is not JSON" in said


def test_a_file_that_is_not_utf_8_is_refused_with_its_line(
    batch: Batch, capsys: pytest.CaptureFixture[str]
) -> None:
    batch.file.write_bytes(b"a fox\ncaf\xe9\n")
    assert batch.submit() == 2
    assert "line 2: is not UTF-8 text" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("p.txt", "# nothing\n", "holds no prompt"),
        ("p.yaml", "a", "must end in .txt, .csv, .jsonl"),
    ],
)
def test_a_file_without_prompts_is_refused(
    batch: Batch, capsys: pytest.CaptureFixture[str], name: str, text: str, said: str
) -> None:
    batch.write(text, name)
    assert batch.submit() == 2
    assert said in capsys.readouterr().err


def test_a_missing_file_is_a_sentence(batch: Batch, capsys: pytest.CaptureFixture[str]) -> None:
    assert batch.submit() == 2
    assert "No such file or directory" in capsys.readouterr().err


def test_an_unknown_app_is_refused_with_the_known_ones(
    batch: Batch, capsys: pytest.CaptureFixture[str]
) -> None:
    batch.write("a\n")
    assert batch.submit("--app", "sd-huge") == 2
    assert f"No app 'sd-huge' is deployed. Deployed apps: {APP}." in capsys.readouterr().err


@pytest.mark.parametrize(
    "option",
    [
        ["--steps", "0"],
        ["--steps", "many"],
        ["--guidance", "31"],
        ["--scheduler", "magic"],
        ["--format", "gif"],
        ["--in-flight", "0"],
        ["--timeout", "-1"],
        ["--timeout", "nan"],
        ["--timeout", "soon"],
    ],
)
def test_a_bad_option_is_bad_usage(batch: Batch, option: list[str]) -> None:
    batch.write("a\n")
    with pytest.raises(SystemExit) as caught:
        batch.submit(*option)
    assert caught.value.code == 2


def test_the_bound_in_flight_is_respected_and_used(batch: Batch) -> None:
    batch.write(prompts(9))
    batch.server.seconds = 0.15
    assert batch.submit("--in-flight", "3") == 0
    assert batch.server.most_in_flight == 3


def test_finished_prompts_are_skipped(batch: Batch, capsys: pytest.CaptureFixture[str]) -> None:
    batch.write(prompts(3))
    assert batch.submit() == 0
    batch.write(prompts(4))
    assert batch.submit() == 0
    assert sorted(batch.server.prompts) == [f"prompt {n}" for n in (1, 2, 3, 4)]
    assert len(batch.server.submissions) == 4
    assert "3 of 4 prompts already done" in capsys.readouterr().out
    assert batch.submit() == 0
    assert "4 prompts, all succeeded" in capsys.readouterr().out


def test_a_failed_prompt_is_reported_and_retried_as_a_new_job(
    batch: Batch, capsys: pytest.CaptureFixture[str]
) -> None:
    batch.write(prompts(2))
    batch.server.failing_prompts = {"prompt 2"}
    assert batch.submit() == 1
    said = capsys.readouterr()
    assert "line 2: failed: The model said no." in said.out
    assert "1 prompt failed: see" in said.err
    assert batch.images == ["0001.png"]
    batch.server.failing_prompts = set()
    assert batch.submit() == 0
    assert sorted(batch.server.prompts) == ["prompt 1", "prompt 2", "prompt 2"]
    assert [record["attempt"] for record in batch.records if record["number"] == 2] == [1, 2]


def test_a_prompt_that_the_server_refuses_does_not_stop_the_others(batch: Batch) -> None:
    batch.write(prompts(3))
    batch.server.refused_prompts = {"prompt 1"}
    assert batch.submit() == 1
    assert batch.images == ["0002.png", "0003.png"]
    bad = next(record for record in batch.records if record["number"] == 1)
    assert bad["error"] == {"code": "http_422", "message": "prompt: this server dislikes it"}
    assert bad["job_id"] is None


def test_a_full_queue_is_waited_for(batch: Batch, capsys: pytest.CaptureFixture[str]) -> None:
    batch.write(prompts(2))
    batch.server.refusals = [problem(503, "queue_full", "It is full.", retry_after=1)] * 3
    assert batch.submit() == 0
    assert "Waiting: It is full." in capsys.readouterr().out


def test_a_server_that_stays_away_is_a_sentence(
    batch: Batch, capsys: pytest.CaptureFixture[str]
) -> None:
    batch.write(prompts(2))
    batch.server.stop()
    assert batch.submit("--timeout", "0.5") == 1
    said = capsys.readouterr().err
    assert "has not answered for" in said
    assert f"submit_batch {batch.file} --app {APP}" in said


def test_a_server_that_dies_and_comes_back_costs_nothing(batch: Batch) -> None:
    batch.write(prompts(8))
    batch.server.seconds = 0.2
    done: list[int] = []
    client = threading.Thread(target=lambda: done.append(batch.submit("--in-flight", "2")))
    client.start()
    wait_until(lambda: len(batch.server.jobs) >= 3)
    batch.server.stop()
    time.sleep(0.5)
    batch.server.start()
    client.join(30)
    assert done == [0]
    assert sorted(batch.server.prompts) == [f"prompt {n}" for n in range(1, 9)]
    assert len(batch.images) == 8


def test_a_lost_answer_to_a_submission_makes_no_second_job(batch: Batch) -> None:
    batch.write(prompts(3))
    batch.server.lose_answers = 3
    assert batch.submit() == 0
    assert len(batch.server.submissions) == 6
    assert len(batch.server.jobs) == 3


@pytest.mark.parametrize("with_signal", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_is_killed_resumes_without_a_second_job(
    batch: Batch, with_signal: signal.Signals
) -> None:
    batch.write(prompts(6))
    batch.server.seconds = 0.5
    process = batch.start("--in-flight", "2")
    wait_until(lambda: len(batch.server.jobs) >= 3, 30)
    process.send_signal(with_signal)
    _, said = process.communicate(timeout=60)
    if with_signal is signal.SIGINT:
        assert process.returncode == 130
        assert said.startswith("Interrupted: jobs that were submitted go on at the server.")
        assert "Go on with:\n  python -m deploy_scripts.submit_batch" in said
        assert "Traceback" not in said
    before = len(batch.server.jobs)
    time.sleep(0.3)
    assert len(batch.server.jobs) == before < 6

    assert batch.submit() == 0

    assert sorted(batch.server.prompts) == [f"prompt {n}" for n in range(1, 7)]
    assert len(batch.server.submissions) > 6  # the jobs of the killed run were asked for again
    assert sorted(record["number"] for record in batch.records) == [1, 2, 3, 4, 5, 6]


def test_ctrl_c_does_not_wait_for_a_long_job(batch: Batch) -> None:
    batch.write(prompts(2))
    batch.server.seconds = 600
    with batch.start() as process:
        wait_until(lambda: batch.server.polls >= 2, 30)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130


def test_a_job_that_failed_after_the_client_died_is_recorded_then_retried(batch: Batch) -> None:
    batch.write(prompts(1))
    batch.server.failing_prompts = {"prompt 1"}
    batch.server.seconds = 0.3
    process = batch.start()
    wait_until(lambda: len(batch.server.jobs) == 1, 30)
    process.kill()
    process.communicate()
    time.sleep(0.4)
    assert batch.submit() == 1
    assert batch.records[0]["error"]["message"] == "The model said no."
    assert batch.records[0]["job_id"] in batch.server.jobs
    batch.server.failing_prompts = set()
    assert batch.submit() == 0
    assert len(batch.server.jobs) == 2


def test_a_result_that_expired_unseen_is_made_again(batch: Batch) -> None:
    batch.write(prompts(1))
    assert batch.submit() == 0
    (batch.out / "0001.png").unlink()
    batch.server.expired_ids = set(batch.server.jobs)
    assert batch.submit() == 0
    assert len(batch.server.jobs) == 2
    assert batch.images == ["0001.png"]
    assert batch.submit() == 0
    assert len(batch.server.jobs) == 2


def test_a_deleted_image_comes_back_from_its_job(batch: Batch) -> None:
    batch.write(prompts(1))
    assert batch.submit() == 0
    (batch.out / "0001.png").unlink()
    assert batch.submit() == 0
    assert batch.images == ["0001.png"]
    assert len(batch.server.jobs) == 1


def test_a_changed_line_is_new_work_and_said_so(
    batch: Batch, capsys: pytest.CaptureFixture[str]
) -> None:
    batch.write("a fox\na hen\na cow\n")
    assert batch.submit() == 0
    batch.write("a fox\na goat\n")
    capsys.readouterr()
    assert batch.submit("--format", "base64") == 0
    said = capsys.readouterr().out
    assert "Changed since the last run, in text or options: 2 prompts (line 1, 2)." in said
    assert "No longer in the file: 1 prompt of the last run." in said
    batch.write("a fox\na hen\n")
    assert batch.submit() == 0
    # The first two were drawn before: their jobs are found again.
    assert sorted(batch.server.prompts) == ["a cow", "a fox", "a fox", "a goat", "a hen"]


def test_an_image_of_another_format_replaces_the_old_one(batch: Batch) -> None:
    batch.write(prompts(1))
    assert batch.submit() == 0
    assert batch.submit("--format", "webp") == 0
    assert batch.images == ["0001.webp"]


def test_a_results_file_cut_by_a_crash_is_mended(batch: Batch) -> None:
    batch.write(prompts(2))
    assert batch.submit("--in-flight", "1") == 0
    results = batch.out / "results.jsonl"
    os.truncate(results, results.stat().st_size - 20)
    assert batch.submit() == 0
    assert [record["number"] for record in batch.records] == [1, 2]
    assert len(batch.server.jobs) == 2


def test_two_runs_cannot_share_a_folder(batch: Batch, capsys: pytest.CaptureFixture[str]) -> None:
    batch.write(prompts(1))
    batch.server.seconds = 60
    process = batch.start()
    wait_until(lambda: len(batch.server.jobs) == 1, 30)
    assert batch.submit() == 2
    assert "another submit_batch is working here" in capsys.readouterr().err
    process.kill()
    process.communicate()


@pytest.mark.parametrize("content", ["{", "{}", "[]", '{"id": 4}'])
def test_a_damaged_folder_is_a_sentence(
    batch: Batch, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    batch.write(prompts(1))
    batch.out.mkdir()
    (batch.out / "batch.json").write_text(content)
    assert batch.submit() == 2
    assert "batch.json: is damaged" in capsys.readouterr().err


def test_a_folder_with_foreign_images_is_refused(
    batch: Batch, capsys: pytest.CaptureFixture[str]
) -> None:
    batch.write(prompts(1))
    batch.out.mkdir()
    (batch.out / "0001.png").write_bytes(b"precious")
    assert batch.submit() == 2
    assert "choose a new folder" in capsys.readouterr().err
    assert (batch.out / "0001.png").read_bytes() == b"precious"


def test_the_shell_script_shows_help_from_any_folder(tmp_path: Path) -> None:
    script = ROOT / "deploy_scripts" / "submit_batch.sh"
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    shown = subprocess.run(
        ["/bin/bash", str(script), "--help"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "nothing runs twice" in shown.stdout
    assert f"usage: bash {script}" in shown.stdout
