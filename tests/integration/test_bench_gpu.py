"""The GPU benchmark runs where neither Ray nor Redis is; without a GPU it claims nothing."""

import json
import subprocess
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.gpu.__main__ import main
from bench.gpu.findings import Findings, Row
from bench.gpu.goodput import one_at_a_time
from bench.gpu.measurement import measure_all
from bench.gpu.parts import GOALS, PARTS, UNBUILT, turns
from bench.gpu.plan import Plan
from bench.gpu.record import Record

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
CODE = """
import sys
for name in ("ray", "redis", "rq", "fastapi", "starlette", "uvicorn", "httpx", "uvloop"):
    sys.modules[name] = None
from bench.gpu.__main__ import main
sys.exit(main(sys.argv[1:]))
"""
UNMEASURED = "not measured on a GPU"
SERVER = {"G7", "G8", "C7", "C8"}


def run(folder: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    options = ("--folder", str(folder), "--out", str(folder), "--smallest", *options)
    return subprocess.run(
        [sys.executable, "-c", CODE, *options],
        cwd=ROOT,
        env={"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=590,
    )


@pytest.mark.timeout(600)
def test_it_measures_at_tiny_size_on_a_cpu_and_says_so(tmp_path: Path) -> None:
    done = run(tmp_path, "--kinds", "sdxl")
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "gpu.json").read_text())
    rows: list[dict[str, Any]] = [row for part in told["parts"].values() for row in part["rows"]]
    shown = {row["goal"] for row in rows} - {""}
    assert shown == {*GOALS} - UNBUILT.keys() - SERVER - {"G5", "G6"}
    assert {row["verdict"] for row in rows if row["target"]} == {UNMEASURED}
    assert told["parts"]["equality sdxl"]["samples"]["pixels"] == 0
    assert told["parts"]["equality sdxl"]["samples"]["together"] < 1e-4
    assert {"as served", "bfloat16", "compiled"} <= told["parts"]["variants sdxl"]["samples"].keys()
    page = (tmp_path / "gpu.md").read_text()
    assert f"**{UNMEASURED}**" in page
    assert "failed" not in page
    # What is there is not measured again; what needs Ray says so when it is asked for.
    assert "] 0 of 13 parts to measure" in run(tmp_path, "--kinds", "sdxl").stderr
    assert run(tmp_path, "--only", "G7").returncode == 0
    assert "ray, redis, fastapi, uvicorn, httpx absent" in (tmp_path / "gpu.md").read_text()


def test_a_part_that_fails_is_a_row_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_subject: object) -> Findings:
        raise RuntimeError("the board | caught\nfire")

    def find(_subject: object) -> Findings:
        return Findings(rows=[Row(goal="G10", what="energy", figure="1 J")])

    for name, measure in (("latency", fail), ("energy", find)):
        monkeypatch.setattr(f"bench.gpu.{name}.measure", measure)
    options = Namespace(folder=tmp_path, out=tmp_path, only=["G1", "G10"], kinds=["sdxl"])
    assert measure_all(Plan.here(size="tiny", is_smallest=True), options) == 1
    page = (tmp_path / "gpu.md").read_text()
    reason = "failed: RuntimeError: the board / caught fire"
    assert f"| G1 | latency sdxl | {reason} |  | failed |" in page
    assert f"| G2 | latency sdxl | {reason} |  | failed |" in page
    assert "| G10 | energy | 1 J |" in page


def test_what_was_measured_of_something_else_is_kept_apart(tmp_path: Path) -> None:
    plan = Plan.here(size="tiny", is_smallest=True)
    (turn,) = turns(["sd1"], ["equality"])
    record = Record(tmp_path, plan)
    found = Findings(rows=[Row(what="equality", figure="0")])
    record.add(turn, found, seconds=1.0, load=0.0, failed=None)
    assert Record(tmp_path, plan).has(turn)
    other = Record(tmp_path, replace(plan, steps=plan.steps + 1))
    assert not other.has(turn)
    (before,) = tmp_path.glob("gpu-before-*.json")
    assert json.loads(before.read_text())["parts"].keys() == {turn.key}


def test_every_goal_is_some_parts_or_said_to_be_unbuilt() -> None:
    shown = [goal for part in PARTS for goals in part.goals.values() for goal in goals]
    assert sorted([*shown, *UNBUILT]) == sorted(GOALS)
    assert {turn.name for turn in turns(["sd1", "sdxl"], [])} == {part.name for part in PARTS}
    assert [turn.key for turn in turns(["sd1", "sdxl"], ["G5"])] == ["latency sd1"]


def test_who_draws_one_at_a_time_keeps_the_others_waiting() -> None:
    assert one_at_a_time([0.0, 0.5, 4.0], 1.0) == [1.0, 1.5, 1.0]


def test_what_is_not_installed_is_told_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert main(["--kinds", "sd1"]) == 2
    assert "pip install -c constraints.txt diffusers nvidia-ml-py" in capsys.readouterr().err
