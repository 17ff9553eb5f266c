"""`gpu.json` and `gpu.md`: what has been measured so far, also by an earlier run of the command."""

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from bench.gpu.findings import Findings, Row
from bench.gpu.parts import GOALS, UNBUILT, Turn
from bench.gpu.plan import Plan
from bench.gpu.table import Entry, markdown
from bench.machine import facts


class Record:
    """The two files of a folder."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        """Go on with what is there, if it is of the same commit, device and plan."""
        self._folder = folder
        # As JSON has it, so that it compares with what is read.
        self._where: dict[str, Any] = json.loads(json.dumps(_where(plan)))
        self._parts = dict[str, dict[str, Any]]()
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "gpu.json"
        if file.exists():
            before = json.loads(file.read_text("utf-8"))
            if before["where"] == self._where:
                self._parts = before["parts"]
            else:  # another's: kept, out of the way
                at = datetime.now(UTC)
                file.rename(file.with_name(f"gpu-before-{at:%Y%m%dT%H%M%S}.json"))

    def has(self, turn: Turn) -> bool:
        """Whether it was measured, and did not fail."""
        return turn.key in self._parts and self._parts[turn.key]["failed"] is None

    @property
    def failures(self) -> list[str]:
        return [key for key, part in self._parts.items() if part["failed"] is not None]

    def add(
        self, turn: Turn, found: Findings, *, seconds: float, load: float, failed: str | None
    ) -> None:
        """Write both files anew.

        Args:
            turn: what was measured.
            found: what came of it.
            seconds: that it took.
            load: average of the machine before it.
            failed: why it is incomplete, if it is.
        """
        self._parts[turn.key] = {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(seconds, 1),
            "load average": load,
            "failed": failed,
            "rows": [asdict(row) for row in found.rows],
            "samples": found.samples,
        }
        # Over the old ones in one go: who is killed while writing still has those.
        _replace(
            self._folder / "gpu.json",
            json.dumps({"where": self._where, "parts": self._parts}, indent=1) + "\n",
        )
        _replace(self._folder / "gpu.md", self.markdown)

    @property
    def markdown(self) -> str:
        entries = [
            Entry(row=Row(**row), at=part["at"], load=part["load average"])
            for part in self._parts.values()
            for row in part["rows"]
        ]
        told = {entry.row.goal for entry in entries}
        left = {
            goal: UNBUILT.get(goal, f"not measured yet: --only {goal}, or the same command again")
            for goal in GOALS
            if goal not in told
        }
        return markdown(self._where, entries, left)


def _where(plan: Plan) -> dict[str, Any]:
    """On what, and with what: two runs that agree in it are one."""
    machine = facts(threads=plan.threads)
    gpu = torch.cuda.get_device_name(plan.device) if plan.is_gpu else None
    return {
        "device": gpu or f"{machine['cpu']}, {plan.threads} thread",
        "cores": machine["cores"],
        "commit": machine["git"],
        "cuda": torch.version.cuda,
        "python": machine["python"],
        "versions": machine["versions"],
        "is_measured": plan.is_measured,
        "plan": asdict(plan),
    }


def _replace(file: Path, text: str) -> None:
    part = file.with_name(file.name + ".part")
    part.write_text(text, "utf-8")
    part.replace(file)
