"""The main job from the outside, in the order of a user's day: HTTP and the commands only.

The tests of this module build on each other and run in this order.
"""

import hashlib
import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.acceptance.conftest import Stack
from tests.acceptance.server import Server, decode, pixels
from tests.judge import obeys

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(600)]

A, B = "sd-tiny-shapes-sd15", "sd-tiny-shapes-sdxl"
LONG = 150  # steps: some seconds, time enough to do something to a running job

GPU_FIELDS = (
    "replica_gpu_memory_allocated_mb",
    "replica_gpu_memory_reserved_mb",
    "replica_gpu_memory_total_mb",
    "replica_gpu_memory_used_mb",
    "replica_gpu_utilization_percent",
    "gpu_seconds",
    "gpu_energy_joules",
    "energy_quality",
    "peak_gpu_memory_mb",
)


def deploy(stack: Stack, name: str, *options: str) -> str:
    done = stack.deploy_sd(stack.add_model(name).name, *options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_checkpoint_of_the_models_folder_becomes_an_app(stack: Stack, server: Server) -> None:
    out = deploy(stack, "tiny-shapes-sd15", "--idle-timeout", "600")
    assert f"{A}: deployed" in out
    (model,) = server.get("/v1/models").json()["data"]
    assert (model["id"], model["family"], model["state"]) == (A, "sd1", "cold")
    assert server.health(A)["replicas"] == []


def test_a_cold_app_answers_at_once_loads_and_draws_what_the_prompt_says(server: Server) -> None:
    prompt = "a red circle on a blue background"
    start = time.monotonic()
    answer = server.generate(A, prompt=prompt, seed=7)
    assert time.monotonic() - start < 1
    assert answer.status_code == 202
    job = answer.json()
    assert answer.headers["Location"] == f"/v1/jobs/{job['id']}"
    assert int(answer.headers["Retry-After"]) >= 1
    assert (job["status"], job["position"]) == ("queued", 0)

    phases = list[str]()
    done = server.finished(job["id"], phases)
    assert done["status"] == "succeeded", done
    # A tiny model loads between two heartbeats, a large one shows "reading file 43%" as well.
    assert phases[0] in ("waiting for a CPU", "starting a process"), phases
    assert obeys(pixels(done["result"]["image"]), prompt)
    assert done["compute_metrics"]["load_seconds"] > 0


def test_a_warm_app_answers_synchronously_with_the_same_shape_and_bytes(server: Server) -> None:
    server.warm(A)
    body: dict[str, Any] = {"prompt": "a green square on a white background", "seed": 11}
    answer = server.generate(A, **body)
    assert answer.status_code == 200, answer.text
    result = answer.json()
    assert result["status"] == "success"
    assert result["parameters"]["seed"] == 11
    assert obeys(pixels(result["image"]), body["prompt"])

    later = server.generate(A, **body, headers={"Prefer": "respond-async"})
    assert later.status_code == 202
    assert later.headers["Preference-Applied"] == "respond-async"
    job = server.finished(later.json()["id"])
    assert job["result"].keys() == result.keys()
    assert job["result"]["image"] == result["image"]
    raw = server.get(f"/v1/jobs/{job['id']}/image")
    assert raw.headers["Content-Type"] == "image/png"
    assert obeys(decode(raw.content), body["prompt"])


def test_the_bill_adds_up(server: Server) -> None:
    server.warm(A)
    metrics = server.generate(A, prompt="a red square on a white background").json()[
        "compute_metrics"
    ]
    parts = sum(
        metrics[f"{part}_seconds"]
        for part in ("queue", "load", "encode", "denoise", "decode", "image_encode")
    )
    assert parts == pytest.approx(metrics["query_duration_seconds"], rel=0.1, abs=0.1)
    steps = metrics["seconds_per_step"] * 12
    assert steps == pytest.approx(metrics["denoise_seconds"], rel=0.01)
    assert metrics["replica_memory_mb"] > 100
    assert metrics["cpu_seconds"] > 0
    assert [metrics[field] for field in GPU_FIELDS] == [None] * len(GPU_FIELDS)


def test_listings_show_the_hash_of_the_file(stack: Stack, server: Server) -> None:
    file = stack.models / "tiny-shapes-sd15.safetensors"
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    deadline = time.monotonic() + 60
    while (listed := server.get("/v1/models").json()["data"][0])["sha256"] is None:
        assert time.monotonic() < deadline  # a worker computes it in the background
        time.sleep(0.1)
    assert listed["sha256"] == sha256
    assert server.get(f"/{A}/v1/models").json()["data"] == [listed]
    assert sha256[:12] in stack.deploy_sd("--list").stdout


def test_raw_bytes_and_other_formats_on_request(server: Server) -> None:
    server.warm(A)
    prompt = "a yellow triangle on a black background"
    for media_type in ("image/png", "image/jpeg", "image/webp"):
        answer = server.generate(A, prompt=prompt, seed=3, headers={"Accept": media_type})
        assert (answer.status_code, answer.headers["Content-Type"]) == (200, media_type)
        assert obeys(decode(answer.content), prompt)


def test_several_images_have_several_seeds(server: Server) -> None:
    server.warm(A)
    prompt = "a white circle on a green background"
    answer = server.generate(A, prompt=prompt, seed=5, num_images=2).json()
    assert len(answer["images"]) == 2
    assert answer["images"][0] != answer["images"][1]
    alone = server.generate(A, prompt=prompt, seed=6).json()
    assert alone["image"] == answer["images"][1]


def test_of_two_at_once_one_is_answered_and_one_is_queued(server: Server) -> None:
    server.warm(A)
    answers = list[httpx.Response]()

    def go() -> None:
        prompt = "a blue circle on a yellow background"
        answers.append(server.generate(A, prompt=prompt, seed=9, num_inference_steps=LONG))

    threads = [threading.Thread(target=go) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    by_status = {answer.status_code: answer.json() for answer in answers}
    assert sorted(by_status) == [200, 202], by_status
    job = server.finished(by_status[202]["id"])
    assert job["result"]["image"] == by_status[200]["image"]


def test_an_idempotency_key_makes_one_job(server: Server) -> None:
    prompt = "a red circle on a white background"
    headers = {"Idempotency-Key": "the same", "Prefer": "wait=60"}
    first = server.generate(A, prompt=prompt, num_images=1, headers=headers)
    second = server.generate(A, num_images=1, prompt=prompt, headers=headers)
    assert first.headers["X-Job-Id"] == second.headers["X-Job-Id"]
    assert first.json() == second.json()
    other = server.generate(A, prompt="another", headers=headers)
    assert (other.status_code, other.json()["type"]) == (
        422,
        "urn:sdserve:problem:idempotency_conflict",
    )


def test_a_running_job_is_cancelled_within_a_step_and_shows_no_result(server: Server) -> None:
    server.warm(A)
    headers = {"Prefer": "respond-async"}
    body: dict[str, Any] = {"num_inference_steps": LONG, "num_images": 8}
    job_id = server.generate(A, prompt="anything", **body, headers=headers).json()["id"]
    server.running(job_id, 2)
    waiting = server.generate(A, prompt="waits", headers=headers).json()["id"]
    assert server.request("DELETE", f"/v1/jobs/{waiting}").status_code == 200
    assert server.request("DELETE", f"/v1/jobs/{job_id}").status_code == 202
    job = server.finished(job_id)
    assert (job["status"], job["result"]) == ("cancelled", None)
    assert job["progress"]["step"] < LONG
    assert server.request("DELETE", f"/v1/jobs/{job_id}").status_code == 200


def test_deploying_another_app_leaves_this_ones_replica_alone(stack: Stack, server: Server) -> None:
    server.warm(A)
    before = server.replica_pids(A)
    out = deploy(stack, "tiny-shapes-sdxl", "--idle-timeout", "5")
    assert f"{B}: deployed" in out
    prompt = "a blue square on a red background"
    job = server.finished(server.generate(B, prompt=prompt, seed=2).json()["id"])
    assert obeys(pixels(job["result"]["image"]), prompt)
    assert server.replica_pids(A) == before
    assert {model["id"] for model in server.get("/v1/models").json()["data"]} == {A, B}


def test_an_idle_app_goes_to_zero_and_wakes_again(server: Server) -> None:
    server.warm(B)
    (pid,) = server.replica_pids(B)
    server.until(B, lambda health: health["state"] == "cold")
    psutil.wait_procs([process for process in psutil.process_iter() if process.pid == pid], 60)
    assert not _is_replica(pid)
    prompt = "a white triangle on a blue background"
    answer = server.generate(B, prompt=prompt)
    assert answer.status_code == 202
    job = server.finished(answer.json()["id"])
    assert obeys(pixels(job["result"]["image"]), prompt)


def test_deploying_the_same_again_changes_nothing(stack: Stack, server: Server) -> None:
    server.warm(A)
    before = server.replica_pids(A)
    done = stack.deploy_sd("tiny-shapes-sd15.safetensors", "--idle-timeout", "600")
    assert (done.returncode, "unchanged" in done.stdout) == (0, True), done.stderr
    assert server.replica_pids(A) == before


def test_the_batch_command_draws_a_file_of_prompts(
    stack: Stack, server: Server, tmp_path: Path
) -> None:
    prompts = ["a red circle on a white background", "a black square on a yellow background",
               "a green triangle on a black background"]  # fmt: skip
    file, out = tmp_path / "prompts.txt", tmp_path / "out"
    file.write_text("\n".join(prompts))
    command = ["bash", "deploy_scripts/submit_batch.sh", "--app", A, str(file), "--out", str(out)]
    done = stack.run(*command, "--url", server.url)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert sorted(line["prompt"] for line in lines) == sorted(prompts)
    for number, prompt in enumerate(prompts, 1):
        assert obeys(decode((out / f"{number:04d}.png").read_bytes()), prompt)
    again = stack.run(*command, "--url", server.url)
    assert again.returncode == 0
    assert len((out / "results.jsonl").read_text().splitlines()) == 3


def test_a_job_survives_the_kill_of_its_replica(server: Server) -> None:
    server.warm(A)
    prompt = "a yellow circle on a red background"
    headers = {"Prefer": "respond-async"}
    body: dict[str, Any] = {"num_inference_steps": LONG, "seed": 4, "prompt": prompt}
    job_id = server.generate(A, **body, headers=headers).json()["id"]
    server.running(job_id, 5)
    (pid,) = server.replica_pids(A)
    os.kill(pid, signal.SIGKILL)
    job = server.finished(job_id)
    assert (job["status"], job["attempt"]) == ("succeeded", 2), job
    assert obeys(pixels(job["result"]["image"]), prompt)
    assert server.replica_pids(A) != [pid]


def test_nothing_is_lost_when_redis_is_killed_while_a_job_runs(
    stack: Stack, server: Server
) -> None:
    server.warm(A)
    headers = {"Prefer": "respond-async"}
    body: dict[str, Any] = {"prompt": "a red square on a black background", "seed": 8}
    ids = [
        server.generate(A, **body, num_inference_steps=LONG, headers=headers).json()["id"]
        for _ in range(2)
    ]
    server.running(ids[0], 2)
    state = Path(stack.environment["SD_STATE_DIR"])
    redis = json.loads((state / "redis" / "server.json").read_text())["pid"]
    os.kill(redis, signal.SIGKILL)
    psutil.wait_procs([psutil.Process(redis)] if psutil.pid_exists(redis) else [], 30)

    start = time.monotonic()
    away = server.generate(A, prompt="nobody keeps this")
    assert (away.status_code, time.monotonic() - start < 5) == (503, True), away.text
    assert away.headers["Retry-After"]
    assert away.json()["type"] == "urn:sdserve:problem:store_unavailable"

    assert stack.stack("up").returncode == 0
    jobs = [server.finished(job_id) for job_id in ids]
    assert [job["status"] for job in jobs] == ["succeeded", "succeeded"]
    assert jobs[0]["result"]["image"] == jobs[1]["result"]["image"]


def test_an_idle_app_gives_its_place_to_one_that_waits(stack: Stack, server: Server) -> None:
    server.warm(A)
    copy = stack.models / "wants-all-cpus.safetensors"
    copy.write_bytes((stack.models / "tiny-shapes-sd15.safetensors").read_bytes())
    done = stack.deploy_sd(copy.name, "--cpus", str(len(os.sched_getaffinity(0))))
    assert done.returncode == 0, done.stderr
    answer = server.generate("sd-wants-all-cpus", prompt="a red circle on a blue background")
    assert server.finished(answer.json()["id"])["status"] == "succeeded"
    assert server.replica_pids(A) == []
    assert stack.deploy_sd("--delete", "sd-wants-all-cpus").returncode == 0


def test_a_file_that_goes_bad_fails_its_jobs_with_the_reason_until_redeployed(
    stack: Stack, server: Server
) -> None:
    file = stack.models / "goes-bad.safetensors"
    good = (stack.models / "tiny-shapes-sd15.safetensors").read_bytes()
    file.write_bytes(good)
    assert stack.deploy_sd(file.name).returncode == 0
    file.write_bytes(good[:-1000])
    job = server.finished(server.generate("sd-goes-bad", prompt="x").json()["id"])
    assert (job["status"], job["error"]["code"]) == ("failed", "app_broken")
    assert "1,000 bytes are missing" in job["error"]["message"]
    _is_problem(server.generate("sd-goes-bad", prompt="x"), 503)
    _is_problem(server.get("/sd-goes-bad/v1/health"), 503)
    file.write_bytes(good)
    assert stack.deploy_sd(file.name).returncode == 0
    again = server.generate("sd-goes-bad", prompt="x")
    assert server.finished(again.json()["id"])["status"] == "succeeded"
    # Replaced by another good file, under a warm replica.
    shutil.copy(stack.models / "tiny-shapes-sdxl.safetensors", file)
    broken = server.until("sd-goes-bad", lambda health: health.get("status") == 503)
    assert "was replaced after it was deployed" in broken["detail"]
    _is_problem(server.generate("sd-goes-bad", prompt="x"), 503)
    assert "sdxl" in stack.deploy_sd(file.name).stdout
    healed = server.generate("sd-goes-bad", prompt="x")
    assert server.finished(healed.json()["id"])["status"] == "succeeded"
    assert stack.deploy_sd("--delete", "sd-goes-bad").returncode == 0


def test_asking_for_more_than_the_cluster_has_is_refused(stack: Stack) -> None:
    done = stack.deploy_sd("tiny-shapes-sd15.safetensors", "--cpus", "1000")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "--cpus 1000: the Ray cluster has" in done.stderr


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": "x" * 2001}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": "x", "unknown": 1}, "unknown"),
        ({"prompt": "x", "num_inference_steps": 0}, "num_inference_steps"),
        ({"prompt": "x", "num_inference_steps": 151}, "num_inference_steps"),
        ({"prompt": "x", "scheduler": "lcm", "num_inference_steps": 51}, "num_inference_steps"),
        ({"prompt": "x", "guidance_scale": 31}, "guidance_scale"),
        ({"prompt": "x", "guidance_scale": "much"}, "guidance_scale"),
        ({"prompt": "x", "width": 100}, "width"),
        ({"prompt": "x", "height": 8192}, "height"),
        ({"prompt": "x", "seed": -1}, "seed"),
        ({"prompt": "x", "seed": 2**32}, "seed"),
        ({"prompt": "x", "num_images": 9}, "num_images"),
        ({"prompt": "x", "scheduler": "magic"}, "scheduler"),
        ({"prompt": "x", "format": "gif"}, "format"),
        ({"prompt": "x", "priority": 99}, "priority"),
        ([1], "body"),
        (None, "body"),
        ("text", "body"),
    ],
)
def test_a_wrong_body_is_a_problem_that_names_the_field(
    server: Server, body: Any, field: str
) -> None:
    answer = server.request("POST", f"/{A}/v1/generate", json=body)
    _is_problem(answer, 422)
    assert field in [error["field"] for error in answer.json()["errors"]], answer.text


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 5000, b"not json"])
def test_a_malformed_body_is_a_problem(server: Server, content: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    answer = server.request("POST", f"/{A}/v1/generate", content=content, headers=headers)
    _is_problem(answer, 422)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/jobs/nonsense", 404),
        ("GET", "/v1/jobs/01890a5d-ac96-774b-bcce-b302099a8057", 404),
        ("GET", "/v1/jobs/01890a5d-ac96-774b-bcce-b302099a8057?wait=1000", 422),
        ("GET", "/v1/jobs/01890a5d-ac96-774b-bcce-b302099a8057?wait=soon", 422),
        ("GET", "/v1/jobs/01890a5d-ac96-774b-bcce-b302099a8057/image", 404),
        ("GET", "/v1/jobs/01890a5d-ac96-774b-bcce-b302099a8057/image/9", 422),
        ("DELETE", "/v1/jobs/01890a5d-ac96-774b-bcce-b302099a8057", 404),
        ("GET", f"/{A}/v1/jobs/nonsense", 404),
        ("POST", "/v1/models", 405),
        ("GET", f"/{A}/v1/generate", 405),
        ("POST", "/sd-nowhere/v1/generate", 404),
        ("GET", "/nothing/here", 404),
    ],
)
def test_a_wrong_address_is_a_problem(server: Server, method: str, path: str, status: int) -> None:
    _is_problem(server.request(method, path), status)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Idempotency-Key": ""}, 400),
        ({"Idempotency-Key": "k" * 201}, 400),
        ({"Accept": "image/jpeg"}, 406),
    ],
)
def test_a_wrong_header_is_a_problem(server: Server, headers: dict[str, str], status: int) -> None:
    body = {"prompt": "a red circle on a blue background", "format": "png"}
    _is_problem(server.generate(A, **body, headers=headers), status)


def test_every_answer_is_declared_in_the_openapi_page(server: Server) -> None:
    for prefix in ("", f"/{A}"):
        schema = server.get(f"{prefix}/openapi.json").json()
        for path, operations in schema["paths"].items():
            for method, operation in operations.items():
                if path.endswith("/live"):
                    continue
                assert {"500", "503"} <= operation["responses"].keys(), (method, path)
    generate = server.get(f"/{A}/openapi.json").json()["paths"]["/v1/generate"]["post"]
    assert {"200", "202", "400", "406", "409", "422"} <= generate["responses"].keys()


def test_logs_show_neither_the_password_nor_a_prompt(stack: Stack, server: Server) -> None:
    server.warm(A)
    (pid,) = server.replica_pids(A)
    files = [Path(file.path) for file in psutil.Process(pid).open_files()]
    logs = next(folder for file in files for folder in file.parents if folder.name == "logs")
    texts = [path.read_bytes() for path in logs.rglob("*.*") if path.is_file()]
    assert any(b"QueuePolicy" in text for text in texts)  # Serve logs the policy's arguments
    password = (Path(stack.environment["SD_STATE_DIR"]) / "redis" / "password").read_bytes()
    for unwanted in (password, b"a red circle on a blue background"):
        assert not any(unwanted in text for text in texts)


def test_a_deleted_app_is_gone_and_the_other_stays(stack: Stack, server: Server) -> None:
    assert stack.deploy_sd("--delete", B).returncode == 0
    deadline = time.monotonic() + 60
    while server.generate(B, prompt="x").status_code != 404:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert [model["id"] for model in server.get("/v1/models").json()["data"]] == [A]
    server.warm(A)
    missing = stack.deploy_sd("--delete", B)
    assert (missing.returncode, f"No app '{B}'" in missing.stderr) == (1, True)


def _is_problem(answer: httpx.Response, status: int) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == status
    assert problem["type"].startswith("urn:sdserve:problem:")
    assert problem["detail"]


def _is_replica(pid: int) -> bool:
    try:
        return "workers.standby" in psutil.Process(pid).cmdline()
    except psutil.NoSuchProcess:
        return False
