"""The denominator: FastAPI under uvicorn and nothing else, with bodies like ours."""

import multiprocessing
import socket
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel


class _Body(BaseModel):
    prompt: str
    num_inference_steps: int
    seed: int


def _create_app(job: dict[str, Any]) -> FastAPI:
    app = FastAPI()

    @app.post("/v1/generate", status_code=202)
    async def generate(_body: _Body) -> dict[str, Any]:
        return job

    @app.get("/v1/jobs/{job_id}")
    async def look(job_id: str) -> dict[str, Any]:
        return {**job, "id": job_id}

    return app


def _serve(job: dict[str, Any], server: socket.socket) -> None:
    """Until killed."""
    config = uvicorn.Config(_create_app(job), log_level="warning", access_log=False)
    uvicorn.Server(config).run([server])


@contextmanager
def bare_server(job: dict[str, Any]) -> Generator[str]:
    """The URL of a process that answers `job` to everything."""
    server = socket.create_server(("127.0.0.1", 0), backlog=4096)
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_serve, args=(job, server))
    process.start()
    try:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
    finally:
        process.kill()
        process.join()
        server.close()
