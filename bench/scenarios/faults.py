"""Scenarios in which a process is killed under load: S9."""

import asyncio
import json
import os
import signal
from pathlib import Path

from bench.open_loop import Run
from bench.scenarios.app_under_test import SLO, AppUnderTest, Pace, Rows

LOAD = 0.5  # of the measured capacity


async def killed_replica(app: AppUnderTest) -> Rows:
    """S9: kill -9 of the replica in the middle of a Poisson run."""
    pace = await app.pace()
    (replica,) = (await app.health())["replicas"]
    killed = app.seconds / 3

    async def kill() -> None:
        await asyncio.sleep(killed)
        os.kill(replica["pid"], signal.SIGKILL)

    run, _ = await asyncio.gather(app.fire(LOAD * pace.capacity), kill())
    return [["S9", f"kill -9 of the replica, Poisson at {LOAD:.0%}", _told(run, killed, pace)]]


async def killed_redis(app: AppUnderTest) -> Rows:
    """S9: kill -9 of Redis, and at once the command that brings it back."""
    pace = await app.pace()
    record = Path(app.stack.environment["SD_STATE_DIR"]) / "redis" / "server.json"
    killed = app.seconds / 3

    async def kill() -> None:
        await asyncio.sleep(killed)
        os.kill(json.loads(record.read_text())["pid"], signal.SIGKILL)
        await asyncio.to_thread(app.stack.run, "deploy_scripts.stack", "up")

    run, _ = await asyncio.gather(app.fire(LOAD * pace.capacity), kill())
    what = f"kill -9 of Redis, then `stack up`, Poisson at {LOAD:.0%}"
    return [["S9", what, _told(run, killed, pace)]]


def _told(run: Run, killed: float, pace: Pace) -> str:
    """What was lost, and when all was as before."""
    late = [
        shot for shot in run.shots
        if shot.status != 200 or shot.done - shot.due > SLO * pace.alone
    ]  # fmt: skip
    after = max((shot.due for shot in late if shot.due >= killed), default=killed) - killed
    others = {status or "no answer": n for status, n in run.statuses.items() if status != 200}
    slowest = max(shot.done - shot.due for shot in run.shots)
    return (
        f"answers other than 200 of {len(run.shots)}: {others or 'none'}; slowest {slowest:.2f} s; "
        f"the last late one came {after:.1f} s after the kill; {pace.goodput(run)}"
    )
