"""docs/client.md: its examples run."""

import re
from pathlib import Path

import pytest

from tests.fake_server import APP, FakeServer

PAGE = Path(__file__).parents[2] / "docs" / "client.md"


def test_the_examples_of_the_page_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    examples = "\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL))
    with FakeServer() as server:
        examples = examples.replace("http://127.0.0.1:8000", server.url)
        examples = examples.replace("sd-tiny-shapes-sd15", APP)
        exec(compile(examples, str(PAGE), "exec"), {"__name__": "page"})  # noqa: S102
    shown = capsys.readouterr().out
    assert "succeeded" in shown
    assert "422 invalid_parameter" in shown
    assert len(list((tmp_path / "out").glob("*.png"))) == 3
