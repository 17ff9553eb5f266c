"""A replica in a process of its own, with an engine that misbehaves as a job's prompt says."""

import multiprocessing
import os
import signal
import threading
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import torch

from sdserve.apps import AppSpec
from sdserve.generation import GenerationParams
from tests.fake_engine import loads
from tests.waiting import until
from workers.puller import Puller
from workers.replica_settings import ReplicaSettings

# What a prompt may say. Any other waits at its last step until a file is there.
POISON, HANG, LOSE_DEVICE = "poison", "hang", "lose the device"
STEPS = 3

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.replica_process"])  # torch is imported once


def start_replica(app: AppSpec, settings: ReplicaSettings, gate: Path) -> ForkServerProcess:
    process = CONTEXT.Process(target=_run, args=(app, settings, gate), daemon=True)
    process.start()
    return process


def _run(app: AppSpec, settings: ReplicaSettings, gate: Path) -> None:
    steps = iter(range(10**9))

    def on_step(of: GenerationParams) -> None:
        if of.prompt == POISON:
            os.kill(os.getpid(), signal.SIGKILL)
        elif of.prompt == HANG:
            threading.Event().wait()
        elif of.prompt == LOSE_DEVICE:
            raise torch.AcceleratorError("CUDA error: unspecified launch failure")
        elif next(steps) % STEPS == STEPS - 1:
            until(gate.exists)  # a file: nobody who opens it waits for a frozen process

    Puller(app, settings, born=time.monotonic(), load=loads(on_step))
    threading.Event().wait()
