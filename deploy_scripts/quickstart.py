"""The tour: bring the stack up with the demo checkpoints and show what the system is for.

A cold request, its job followed to the picture, and a warm one answered at once.
"""

import sys
import time
from datetime import timedelta
from pathlib import Path

from deploy_scripts import stack
from deploy_scripts.command import run_command
from deploy_scripts.progress import follow
from deploy_scripts.table import print_table
from sdserve.client import JobView, SdClient
from sdserve.errors import SdServeError
from sdserve.jobs import JobStatus
from sdserve.settings import Settings

OUT = Path("out")
PROMPTS = ("a red circle on a blue background", "a yellow triangle on a black background")


class TourError(SdServeError):
    """The tour did not go as it must; the message says where."""

    code = "tour"


def main() -> int:
    return run_command(_tour)


def _tour(settings: Settings) -> int:
    stack.up(settings, demo=True)
    base = f"http://{settings.http_host}:{settings.http_port}"
    with SdClient(base, patience=timedelta(minutes=2)) as client:
        models = client.models()
        print("\nThe deployed apps (GET /v1/models):")
        rows = [[model["id"], model["family"], model["state"], model["route"]] for model in models]
        print_table(["APP", "FAMILY", "STATE", "ROUTE"], rows)
        demo = sorted(path.stem for path in stack.DEMO_MODELS.glob("*.safetensors"))
        apps = [model["id"] for model in models if Path(model["checkpoint"]).stem in demo]
        for app, prompt in zip(apps, PROMPTS, strict=True):
            _visit(client, base, app, prompt)
    _farewell(base, apps[0])
    return 0


def _visit(client: SdClient, base: str, app: str, prompt: str) -> None:
    body = {"prompt": prompt, "seed": 7}
    print(f"\nPOST {base}/{app}/v1/generate  {body}")
    start = time.monotonic()
    job = client.submit(app, body)
    _say(job, base, time.monotonic() - start)
    if not job.status.is_final:
        job = follow(client, job.id)
    _save(client, job, app)
    print("the same again, now that a replica is warm:")
    start = time.monotonic()
    job = client.submit(app, {**body, "seed": 8})
    _say(job, base, time.monotonic() - start)
    if not job.status.is_final:
        raise TourError(f"{app} is warm and free, yet it answered 202 for job {job.id}.")
    metrics = job.compute_metrics or {}
    for name in ("query_duration_seconds", "queue_seconds", "encode_seconds", "denoise_seconds",
                 "decode_seconds", "image_encode_seconds", "cpu_seconds", "replica_memory_mb",
                 "gpu_seconds", "replica_gpu_memory_allocated_mb"):  # fmt: skip
        value = metrics.get(name)
        print(f"  {name:32} {'null' if value is None else f'{value:.3f}'}")


def _say(job: JobView, base: str, seconds: float) -> None:
    if job.status is JobStatus.SUCCEEDED:
        print(f"200 OK after {seconds:.2f} s: the image is in the answer")
    else:
        print(f"202 Accepted after {seconds * 1000:.0f} ms: {base}/v1/jobs/{job.id}")


def _save(client: SdClient, job: JobView, app: str) -> None:
    if job.status is not JobStatus.SUCCEEDED:
        reason = job.error.message if job.error else job.status
        raise TourError(f"Job {job.id} of {app} did not succeed: {reason}")
    for path in client.save(job, OUT, f"quickstart-{app}"):
        print(f"saved {path}")


def _farewell(base: str, app: str) -> None:
    print(f"""
Go on with:
  curl -s {base}/{app}/v1/generate -H 'Content-Type: application/json' \\
       -d '{{"prompt": "a green square on a white background"}}'
  curl -s {base}/{app}/v1/generate -H 'Content-Type: application/json' -H 'Accept: image/png' \\
       -d '{{"prompt": "a white circle on a red background"}}' -o out/circle.png
  curl -s {base}/v1/models
  bash deploy_sd.sh --status
Stop everything with `make down`; `make up` starts it again.""")


if __name__ == "__main__":
    sys.exit(main())
