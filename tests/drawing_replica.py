"""A replica that draws with a real checkpoint, and does as prompts say: `slow ...`, `bad ...`."""

import multiprocessing
import threading
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from sdserve.apps import AppSpec
from sdserve.generation import GenerationParams
from tests.waiting import until
from workers.denoising import Denoising
from workers.engine import DiffusionEngine
from workers.loading import load_engine
from workers.puller import Puller
from workers.replica_settings import ReplicaSettings

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["workers.assembly"])


class Moods:
    """Files that tell the replica what is the matter with some prompts."""

    def __init__(self, folder: Path) -> None:
        self.shut = folder / "shut"  # slow prompts wait for as long as it is there
        self.broken = folder / "broken"  # bad prompts fail for as long as it is there

    def clear(self) -> None:
        self.shut.unlink(missing_ok=True)
        self.broken.unlink(missing_ok=True)


def start_drawing(app: AppSpec, settings: ReplicaSettings, folder: Path) -> ForkServerProcess:
    process = CONTEXT.Process(target=_run, args=(app, settings, Moods(folder)), daemon=True)
    process.start()
    return process


def _run(app: AppSpec, settings: ReplicaSettings, moods: Moods) -> None:
    def load(*args: Any, **options: Any) -> DiffusionEngine:
        engine = load_engine(*args, **options)
        begin = engine.begin

        def moody(params: GenerationParams, image_index: int) -> Denoising:
            if params.prompt.startswith("slow"):
                until(lambda: not moods.shut.exists())
            if params.prompt.startswith("bad") and moods.broken.exists():
                raise ValueError("The model said no.")
            return begin(params, image_index)

        engine.begin = moody
        return engine

    Puller(app, settings, born=time.monotonic(), load=load)
    threading.Event().wait()
