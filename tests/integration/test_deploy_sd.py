"""A new user's mistakes with deploy_sd.sh: one clear sentence each, and a non-zero exit."""

import os
import pickle
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parent.parent.parent
DEMO = ROOT / "demo_models" / "tiny-shapes-sd15.safetensors"


def deploy_sd(
    *arguments: str, folder: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    base = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "REDIS_URL")}
    return subprocess.run(
        ["bash", str(ROOT / "deploy_sd.sh"), *arguments],
        cwd=folder,
        env={
            **base,
            "SD_STATE_DIR": str(folder / "state"),
            "SD_MODELS_DIR": str(folder / "models"),
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def refused(done: subprocess.CompletedProcess[str], words: str) -> None:
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_file(tmp_path: Path) -> None:
    refused(deploy_sd("nothing.safetensors", folder=tmp_path), "there is no such file here")


def test_a_renamed_pickle(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(pickle.dumps({"weights": list(range(1000))}))
    refused(deploy_sd(str(file), folder=tmp_path), "pickle")


def test_a_truncated_download(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(DEMO.read_bytes()[:-4321])
    refused(deploy_sd(file.name, folder=tmp_path), "4,321 bytes are missing")


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        ("lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight", "LoRA"),
        ("encoder.conv_in.weight", "VAE"),
    ],
)
def test_a_file_that_is_no_checkpoint(tmp_path: Path, tensor: str, words: str) -> None:
    header = f'{{"{tensor}":{{"dtype":"F16","shape":[1],"data_offsets":[0,2]}}}}'.encode()
    file = tmp_path / "model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0")
    refused(deploy_sd(file.name, folder=tmp_path), words)


def test_redis_away(tmp_path: Path) -> None:
    done = deploy_sd(str(DEMO), folder=tmp_path, REDIS_URL="redis://127.0.0.1:1/0")
    refused(done, "REDIS_URL")


def test_two_files_of_one_name(tmp_path: Path) -> None:
    for name in ("a_b.safetensors", "a-b.safetensors"):
        (tmp_path / name).write_bytes(DEMO.read_bytes())
    done = deploy_sd("a_b.safetensors", "a-b.safetensors", folder=tmp_path)
    refused(done, "a_b.safetensors and ")


def test_a_wrong_setting(tmp_path: Path) -> None:
    refused(deploy_sd("--list", folder=tmp_path, SD_HTTP_PORT="many"), "SD_HTTP_PORT")


def test_no_models_folder(tmp_path: Path) -> None:
    refused(deploy_sd("--all", folder=tmp_path), "there is no such folder")


def test_the_list_names_good_and_bad_files(tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    (models / "good_1.0.safetensors").write_bytes(DEMO.read_bytes())
    (models / "empty.safetensors").touch()
    done = deploy_sd("--list", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    header, empty, good = done.stdout.splitlines()
    assert header.split() == ["FILE", "FAMILY", "SIZE", "STATE", "SHA256", "ROUTE"]
    assert "refused" in empty
    assert good.split()[1:] == ["sd1", "10.3", "MB", "not", "deployed", "-", "/sd-good-1-0"]
