"""FastAPI and diffusers in a thread: what most people write first.

Settings: a plain `def` route, which FastAPI runs in its thread pool ("Concurrency and async /
await" of its documentation), uvicorn with httptools and uvloop where installed, no access log.

    python -m bench.peers.fastapi_peer --model FILE --port N
"""

import argparse
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Response

from bench.peers.drawing import Drawer, Request


def create_app(drawer: Drawer) -> FastAPI:
    app = FastAPI()

    @app.post("/generate")
    def generate(body: Request) -> Response:
        return Response(drawer.draw_png(body), media_type="image/png")

    del generate  # FastAPI has it
    return app


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    app = create_app(Drawer(options.model, options.threads))
    uvicorn.run(app, host="127.0.0.1", port=options.port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
