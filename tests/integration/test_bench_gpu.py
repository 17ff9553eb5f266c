"""The GPU benchmark runs where neither Ray nor Redis is; without a GPU it claims nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
CODE = """
import sys
for name in ("ray", "redis", "rq", "fastapi", "starlette"):
    sys.modules[name] = None
from bench.gpu import main
sys.exit(main(sys.argv[1:]))
"""


def test_it_measures_at_tiny_size_on_a_cpu_and_says_so(tmp_path: Path) -> None:
    options = ["--folder", tmp_path, "--out", tmp_path, "--kinds", "sd1", "--size", "tiny"]
    options += ["--steps", "2", "--pictures", "2", "--no-loading"]
    subprocess.run(
        [sys.executable, "-c", CODE, *map(str, options)],
        cwd=ROOT,
        env={"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
        check=True,
        timeout=280,
    )
    told = json.loads((tmp_path / "gpu.json").read_text())
    rows = {row["goal"]: row for row in told["rows"]}
    assert {"same", "G5", "G6", "G11"} <= rows.keys()
    assert {row["verdict"] for row in told["rows"]} == {"not measured on a GPU"}
    assert rows["same"]["figure"].startswith("0 of 255; ")
    assert told["samples"]["sd1"]["equality"]["together"] < 1e-4
    assert "**not measured on a GPU**" in (tmp_path / "gpu.md").read_text()
