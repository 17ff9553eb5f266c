"""BentoML and diffusers.

Settings: one worker, one thread of it at a time (`threads`), a time-out above the longest queue, no
metrics, no access log. The picture is returned as bytes with a content type.

    python -m bench.peers.bentoml_peer --model FILE --port N
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Annotated

import bentoml  # pyright: ignore[reportMissingImports] (in .venv-bench alone)
from bentoml.validators import ContentType  # pyright: ignore[reportMissingImports]

from bench.peers.drawing import Drawer, Request

MODEL, THREADS = "BENCH_MODEL", "BENCH_THREADS"


@bentoml.service(
    workers=1,
    threads=1,
    traffic={"timeout": 600},
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
)
class Diffusion:
    """A model in a process of its own."""

    def __init__(self) -> None:
        self._drawer = Drawer(Path(os.environ[MODEL]), int(os.environ[THREADS]))

    @bentoml.api
    def generate(
        self,
        prompt: str,
        num_inference_steps: int,
        guidance_scale: float,
        width: int,
        height: int,
        seed: int,
    ) -> Annotated[bytes, ContentType("image/png")]:
        return self._drawer.draw_png(
            Request(
                prompt=prompt,
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                width=width,
                height=height,
                seed=seed,
            )
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    environment = os.environ | {
        MODEL: str(options.model.resolve()),
        THREADS: str(options.threads),
        "BENTOML_DO_NOT_TRACK": "True",
    }
    command = [
        sys.executable, "-m", "bentoml", "serve", "bench.peers.bentoml_peer:Diffusion",
        "--host", "127.0.0.1", "--port", str(options.port),
    ]  # fmt: skip
    os.execve(sys.executable, command, environment)  # noqa: S606 (ourselves)


if __name__ == "__main__":
    main()
