"""submit_batch without a server: what it refuses before anything is sent."""

import os
import re
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from deploy_scripts.batch_folder import BatchFolder
from deploy_scripts.submit_batch import main

ROOT = Path(__file__).parents[2]


class Batch:
    """A prompt file and an output folder, for a server that is not there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "prompts.txt"
        self.out = folder / "out"

    def submit(self, *options: str) -> int:
        fixed = [str(self.file), "--app", "sd-tiny", "--out", str(self.out)]
        return main([*fixed, "--url", "http://127.0.0.1:9", "--timeout", "0", *options])

    def write(self, text: str, name: str = "prompts.txt") -> None:
        self.file = self.folder / name
        self.file.write_text(text)


@pytest.fixture
def batch(tmp_path: Path) -> Batch:
    return Batch(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "line", "reason"),
    [
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": }\n', 2, "is not JSON"),
        ("p.jsonl", '{"prompt": "a"}\n["a"]\n', 2, "is not a JSON object"),
        ("p.jsonl", '{"seed": 1}\n', 1, "prompt: Field required"),
        ("p.jsonl", '{"prompt": "a", "sede": 1}\n', 1, "did you mean 'seed'"),
        ("p.jsonl", '{"prompt": "a", "guidance_scale": NaN}\n', 1, "NaN is not a number"),
        ("p.jsonl", '{"prompt": "a", "num_images": 9}\n', 1, "num_images: .* 8"),
        ("p.jsonl", '{"prompt": "a", "scheduler": "magic"}\n', 1, "scheduler: 'magic' is unknown"),
        ("p.jsonl", '{"prompt": "  "}\n', 1, "prompt: is blank"),
        ("p.jsonl", '{"prompt": "\\ud800"}\n', 1, "prompt: "),
        ("p.csv", "prompt,steps\na,4\n", 1, "column 'steps' is unknown"),
        ("p.csv", "prompt,prompt\na,b\n", 1, "appears twice"),
        ("p.csv", "seed\n1\n", 1, "no column 'prompt'"),
        ("p.csv", "prompt,seed\na,1\nb,two\n", 3, "seed: .*integer"),
        ("p.csv", "prompt,seed\na,b,1\n", 2, "put quotes"),
        ("p.csv", 'prompt\n"a\n', 2, "is not CSV"),
        ("p.txt", "a\n" + "b" * 2001 + "\n", 2, "at most 2000"),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_submitted(
    batch: Batch, capsys: pytest.CaptureFixture[str], name: str, text: str, line: int, reason: str
) -> None:
    batch.write(text, name)
    assert batch.submit() == 2
    assert re.search(f"line {line}: .*{reason}", capsys.readouterr().err)
    assert not batch.out.exists()  # exit 1 would be the server that is not there


def test_all_bad_lines_are_named_at_once(batch: Batch, capsys: pytest.CaptureFixture[str]) -> None:
    batch.write('{"prompt": ""}\n{"prompt": "a"}\nnonsense\n', "p.jsonl")
    assert batch.submit() == 2
    said = capsys.readouterr().err
    assert "2 bad lines" in said
    assert "line 1: prompt: " in said
    assert "line 3: is not JSON" in said


def test_a_file_that_is_not_utf_8_is_refused_with_its_line(
    batch: Batch, capsys: pytest.CaptureFixture[str]
) -> None:
    batch.file.write_bytes(b"a fox\ncaf\xe9\n")
    assert batch.submit() == 2
    assert "line 2: is not UTF-8 text" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("p.txt", "# nothing\n", "holds no prompt"),
        ("p.yaml", "a", "must end in .txt, .csv, .jsonl"),
    ],
)
def test_a_file_without_prompts_is_refused(
    batch: Batch, capsys: pytest.CaptureFixture[str], name: str, text: str, said: str
) -> None:
    batch.write(text, name)
    assert batch.submit() == 2
    assert said in capsys.readouterr().err


def test_a_missing_file_is_a_sentence(batch: Batch, capsys: pytest.CaptureFixture[str]) -> None:
    assert batch.submit() == 2
    assert "No such file or directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    "option",
    [
        ["--steps", "0"],
        ["--steps", "many"],
        ["--guidance", "31"],
        ["--scheduler", "magic"],
        ["--format", "gif"],
        ["--timeout", "-1"],
        ["--timeout", "nan"],
        ["--timeout", "soon"],
    ],
)
def test_a_bad_option_is_bad_usage(batch: Batch, option: list[str]) -> None:
    batch.write("a\n")
    with pytest.raises(SystemExit) as caught:
        batch.submit(*option)
    assert caught.value.code == 2


def test_a_folder_with_foreign_images_is_refused(
    batch: Batch, capsys: pytest.CaptureFixture[str]
) -> None:
    batch.write("a\n")
    batch.out.mkdir()
    (batch.out / "0001.png").write_bytes(b"precious")
    assert batch.submit() == 2
    assert "choose a new folder" in capsys.readouterr().err
    assert (batch.out / "0001.png").read_bytes() == b"precious"


def test_the_shell_script_shows_help_from_any_folder(tmp_path: Path) -> None:
    script = ROOT / "deploy_scripts" / "submit_batch.sh"
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    shown = subprocess.run(
        ["/bin/bash", str(script), "--help"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "nothing runs twice" in shown.stdout
    assert f"usage: bash {script}" in shown.stdout


def test_a_server_that_stays_away_is_a_sentence(
    batch: Batch, capsys: pytest.CaptureFixture[str]
) -> None:
    batch.write("a\n")
    assert batch.submit() == 1
    said = capsys.readouterr().err
    assert "has not answered for" in said
    assert f"submit_batch {batch.file} --app sd-tiny" in said


def test_two_runs_cannot_share_a_folder(batch: Batch, capsys: pytest.CaptureFixture[str]) -> None:
    batch.write("a\n")
    with closing(BatchFolder.open(batch.out)):
        assert batch.submit() == 2
    assert "another submit_batch is working here" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["upload-0a", "batch-01a2"])
@pytest.mark.parametrize("content", ["{", "{}", "[]", '{"custom_id": "7", "app": "a"}'])
def test_an_upload_that_somebody_changed_is_a_sentence(
    batch: Batch, capsys: pytest.CaptureFixture[str], name: str, content: str
) -> None:
    batch.write("a\n")
    BatchFolder.open(batch.out).close()
    (batch.out / f"{name}.jsonl").write_text(content)
    assert batch.submit() == 2
    assert f"{name}.jsonl: is damaged" in capsys.readouterr().err


def test_a_damaged_result_is_a_sentence(batch: Batch, capsys: pytest.CaptureFixture[str]) -> None:
    batch.write("a\n")
    batch.out.mkdir()
    (batch.out / "results.jsonl").write_text("{}\n")
    assert batch.submit() == 2
    assert "line 1 is damaged" in capsys.readouterr().err
