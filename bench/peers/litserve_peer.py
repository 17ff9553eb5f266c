"""LitServe and diffusers.

Settings: one worker on the device, `fast_queue` (ZeroMQ between its processes, which its
documentation recommends for speed), raw bytes as the response (its image generation example).

    python -m bench.peers.litserve_peer --model FILE --port N
"""

import argparse
from pathlib import Path

import litserve as ls  # pyright: ignore[reportMissingImports] (in .venv-bench alone)
from fastapi import Response

from bench.peers.drawing import Drawer, Request


class Diffusion(ls.LitAPI):  # pyright: ignore[reportUntypedBaseClass]
    """A model in a process of its own."""

    def __init__(self, model: Path, threads: int) -> None:
        super().__init__()
        self._model = model
        self._threads = threads

    def setup(self, device: str) -> None:
        del device  # the CPU
        self._drawer = Drawer(self._model, self._threads)

    def predict(self, x: Request) -> bytes:
        return self._drawer.draw_png(x)

    def encode_response(self, output: bytes) -> Response:
        return Response(output, media_type="image/png")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    server = ls.LitServer(
        Diffusion(options.model, options.threads),
        accelerator="cpu",
        workers_per_device=1,
        timeout=600,
        fast_queue=True,
    )
    server.run(host="127.0.0.1", port=options.port, log_level="warning", generate_client_file=False)


if __name__ == "__main__":
    main()
