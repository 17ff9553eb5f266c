"""What a file is: every refusal with its sentence, every family from its tensors."""

import logging
import os
import struct
from pathlib import Path

import pytest

from sdserve.checkpoints import ModelFile, inspect_checkpoint, list_checkpoints
from sdserve.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    UnsupportedCheckpointError,
)
from sdserve.families import GenerationDefaults
from tests.headers import Shapes, header_of, refusal, write, write_model

UNET = "model.diffusion_model."
VAE: Shapes = {"first_stage_model.decoder.conv_in.weight": (512, 4, 3, 3)}
CLIP_L: Shapes = {
    "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": (49408, 768)
}
OPEN_CLIP_H: Shapes = {"cond_stage_model.model.token_embedding.weight": (49408, 1024)}
OPEN_CLIP_G: Shapes = {
    "conditioner.embedders.0.transformer.text_model.final_layer_norm.bias": (768,),
    "conditioner.embedders.1.model.token_embedding.weight": (49408, 1280),
}
REFINER_CLIP: Shapes = {"conditioner.embedders.0.model.token_embedding.weight": (49408, 1280)}


def unet(context: int, *, channels: int = 320, inputs: int = 4) -> Shapes:
    return {
        f"{UNET}input_blocks.0.0.weight": (channels, inputs, 3, 3),
        f"{UNET}input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": (640, context),
    }


SD1 = unet(768) | CLIP_L | VAE
SD2 = unet(1024) | OPEN_CLIP_H | VAE
REFINER = unet(1280, channels=384) | REFINER_CLIP | VAE
SDXL = unet(2048) | {f"{UNET}label_emb.0.0.weight": (1280, 2816)} | OPEN_CLIP_G | VAE


# What a file is not


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match="there is no file here: check the path"):
        inspect_checkpoint(tmp_path / "gone.safetensors")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    assert "this is a folder: name one .safetensors file" in refusal(tmp_path)


def test_an_unreadable_file_names_the_permission(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = write_model(tmp_path / "a.safetensors", SD1)
    monkeypatch.setattr(Path, "open", refuse)  # chmod does not stop root
    assert "this process may not read it: allow it, e.g. chmod" in refusal(path)


def test_a_failing_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    path = write_model(tmp_path / "a.safetensors", SD1)
    monkeypatch.setattr(Path, "open", fail)
    assert "reading fails (Input/output error)" in refusal(path)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "the file is empty (0 bytes): download it again."),
        (b"\x10\x00\x00", "the download was cut off after 3 bytes: download it again."),
        (struct.pack("<Q", 1000) + b"{" * 100, "at least 900 bytes are missing: download"),
        (struct.pack("<Q", 2**40) + b"{}" * 50, "declares a header of 1,099,511,627,776 bytes"),
        (struct.pack("<Q", 8) + b"{notjson", "its header is not valid JSON"),
        (struct.pack("<Q", 4) + b"\xff\xfe{}", "its header is not valid JSON"),
        (struct.pack("<Q", 2) + b"[]", "its header is not valid JSON"),
        (struct.pack("<Q", 2) + b"{}", "it holds no tensors: download it again."),
        (b"PK\x03\x04" + b"\0" * 100, "this is a PyTorch pickle (.ckpt) renamed"),
        (b"\x80\x02}q\x00" + b"\0" * 100, "this is a PyTorch pickle (.ckpt) renamed"),
        (b"GGUF\x03\0\0\0" + b"\0" * 100, "this is a GGUF file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "run 'git lfs pull'"),
        (b"\n<!DOCTYPE html><html><body>Log in</body></html>", "this is a web page"),
        (b"Invalid username or password.", "a text file ('Invalid username or password.')"),
    ],
)
def test_what_is_no_safetensors_file_is_named(
    tmp_path: Path, content: bytes, sentence: str
) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    assert sentence in refusal(path)


def test_a_truncated_download_tells_how_much_is_missing(tmp_path: Path) -> None:
    path = write_model(tmp_path / "a.safetensors", SD1)
    os.truncate(path, path.stat().st_size - 12345)
    assert refusal(path) == (
        "the download was cut off, 12,345 bytes are missing: download it again."
    )


def test_trailing_bytes_are_refused(tmp_path: Path) -> None:
    path = write_model(tmp_path / "a.safetensors", SD1)
    os.truncate(path, path.stat().st_size + 7)
    assert "7 bytes follow the last tensor" in refusal(path)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F16", "shape": [4, 4], "data_offsets": [0, 31]},
        {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 32]},
        {"dtype": "F16", "shape": [-4, -4], "data_offsets": [0, 32]},
        {"dtype": "F16", "shape": [4, 4], "data_offsets": [32, 0]},
        {"dtype": "Q7", "shape": [4, 4], "data_offsets": [0, 32]},
        {"dtype": "F16", "shape": "44", "data_offsets": [0, 32]},
        {"dtype": "F16", "data_offsets": [0, 32]},
        {"dtype": ["F16"], "shape": [16], "data_offsets": [0, 32]},
        [],
        None,
    ],
)
def test_a_lying_entry_is_named(tmp_path: Path, entry: object) -> None:
    path = write(tmp_path / "a.safetensors", {"weight": entry}, 32)
    assert "entry of tensor 'weight' contradicts itself" in refusal(path)


@pytest.mark.parametrize("begin", [8, 24])
def test_overlaps_and_gaps_are_refused(tmp_path: Path, begin: int) -> None:
    table = {
        "a": {"dtype": "F16", "shape": [8], "data_offsets": [0, 16]},
        "b": {"dtype": "F16", "shape": [8], "data_offsets": [begin, begin + 16]},
    }
    path = write(tmp_path / "a.safetensors", table, begin + 16)
    assert "tensor 'b' overlaps another or leaves a gap" in refusal(path)


def test_a_metadata_that_is_no_table_is_refused(tmp_path: Path) -> None:
    table = header_of(SD1) | {"__metadata__": "text"}
    assert "its metadata is not a table" in refusal(write(tmp_path / "a.safetensors", table, 0))


# Well-formed files that are not served


@pytest.mark.parametrize(
    ("shapes", "kind"),
    [
        ({"lora_unet_down_blocks_0.lora_down.weight": (4, 320)}, "this is a LoRA"),
        ({"transformer.blocks.0.attn.to_q.lora_A.weight": (4, 320)}, "this is a LoRA"),
        ({"control_model.input_blocks.0.0.weight": (320, 4, 3, 3)}, "this is a ControlNet"),
        ({"controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3)}, "this is a ControlNet"),
        ({"image_proj.proj.weight": (768, 1024)}, "this is an IP-Adapter"),
        ({"emb_params": (8, 768)}, "this is a textual-inversion embedding"),
        ({"clip_g": (8, 1280), "clip_l": (8, 768)}, "this is a textual-inversion embedding"),
        ({"<my-cat>": (768,)}, "this is a textual-inversion embedding"),
        ({"decoder.conv_in.weight": (512, 4, 3, 3)}, "this is a bare VAE"),
        (VAE, "this is a bare VAE"),
        ({"down_blocks.0.resnets.0.conv1.weight": (320, 320, 3, 3)}, "this is a bare UNet"),
        ({"text_model.final_layer_norm.weight": (768,)}, "this is a bare text encoder"),
        (unet(768), "it has no VAE and no text encoder: use the full"),
        (unet(768) | VAE, "it has no text encoder: use the full"),
        (
            unet(2048) | VAE,
            "it has no CLIP-L text encoder and no CLIP-G text encoder: use the full single-file "
            "checkpoint of the same model, or lend it what is missing with 'text_encoder: "
            "FILE.safetensors' in a.yaml beside it.",
        ),
        (unet(640) | VAE, "nothing tells which family it is"),
        (unet(768) | CLIP_L, "lend it what is missing with 'vae: FILE.safetensors' in a.yaml"),
        (unet(768, inputs=8) | CLIP_L | VAE, "this is an instruct-pix2pix model"),
        (unet(768, inputs=7) | CLIP_L | VAE, "its UNet takes 7 input channels"),
        (SDXL | {f"{UNET}scaled_fp8": (2,)}, "its weights are float8 with scales beside them"),
        (SDXL | {f"{UNET}out.2.scale_weight": (1,)}, "use the float16 or bfloat16 file"),
        (SDXL | {"edm_mean": (4,)}, "this is a model with an EDM noise schedule"),
        (unet(768, channels=64) | CLIP_L | VAE, "its UNet is 64 channels wide"),
        (unet(768) | OPEN_CLIP_H | VAE, "a text width of 768 (expected 320 and 1024)"),
        ({f"layer.{i}.weight": (8, 8, 3, 3) for i in range(9)}, "not a Stable Diffusion"),
    ],
)
def test_what_is_no_servable_checkpoint_is_named(tmp_path: Path, shapes: Shapes, kind: str) -> None:
    path = write_model(tmp_path / "a.safetensors", shapes)
    assert kind in refusal(path)
    with pytest.raises(UnsupportedCheckpointError):
        inspect_checkpoint(path)


# Kinds


@pytest.mark.parametrize(
    ("name", "shapes", "metadata", "kind", "native"),
    [
        ("v1-5-pruned-emaonly", SD1, {}, "sd1", 512),
        ("v1-5-pruned", SD1 | {"model_ema.diffusion_modelout0bias": (320,)}, {}, "sd1", 512),
        ("dreamshaper_8", SD1, {"modelspec.resolution": "768x768"}, "sd1", 768),
        ("some_vpred", SD1, {}, "sd1-v", 512),
        ("marked", SD1 | {"v_pred": (0,)}, {}, "sd1-v", 512),
        ("dreamshaper_8LCM", SD1, {}, "sd1-lcm", 512),
        ("dreamshaper_8_lcm", SD1, {}, "sd1-lcm", 512),
        ("distilled", SD1 | {f"{UNET}time_embed.cond_proj.weight": (320, 256)}, {}, "sd1-lcm", 512),
        ("sd-v1-5-inpainting", unet(768, inputs=9) | CLIP_L | VAE, {}, "sd1-inpainting", 512),
        ("v2-1_512-ema-pruned", SD2, {}, "sd2", 512),
        ("v2-1_768-ema-pruned", SD2, {}, "sd2-v", 768),
        ("v2-1_768", SD2, {"modelspec.prediction_type": "epsilon"}, "sd2", 512),
        ("some_base", SD2, {"modelspec.prediction_type": "v"}, "sd2-v", 768),
        ("sd_turbo", SD2, {}, "sd2-turbo", 512),
        ("512-inpainting-ema", unet(1024, inputs=9) | OPEN_CLIP_H | VAE, {}, "sd2-inpainting", 512),
        ("sd_xl_base_1.0", SDXL, {}, "sdxl", 1024),
        ("animagine", SDXL, {}, "sdxl", 1024),
        ("noobai-xl", SDXL | {"v_pred": (0,), "ztsnr": (0,)}, {}, "sdxl-v", 1024),
        ("noobai-xl-vpred", SDXL, {}, "sdxl-v", 1024),
        ("sd_xl_turbo_1.0_fp16", SDXL, {}, "sdxl-turbo", 512),
        ("dreamshaperXL_turbo", SDXL, {}, "sdxl-turbo", 1024),
        ("juggernautXL_lightning", SDXL, {}, "sdxl-lightning", 1024),
        ("xl", SDXL, {"modelspec.title": "Dream XL Turbo"}, "sdxl-turbo", 1024),
        ("xl-Hyper-SD", SDXL, {}, "sdxl-hyper", 1024),
        ("xl-inpaint", unet(2048, inputs=9) | OPEN_CLIP_G | VAE, {}, "sdxl-inpainting", 1024),
        ("sd_xl_refiner_1.0", REFINER, {}, "sdxl-refiner", 1024),
    ],
)
def test_the_kind_comes_from_tensors_then_metadata_then_name(
    tmp_path: Path,
    name: str,
    shapes: Shapes,
    metadata: dict[str, str],
    kind: str,
    native: int,
) -> None:
    path = write_model(tmp_path / f"{name}.safetensors", shapes, metadata)
    checkpoint, defaults = inspect_checkpoint(path)
    assert str(checkpoint.kind) == kind
    assert checkpoint.files == (ModelFile.at(path),)
    assert checkpoint.name == name
    assert (defaults.width, defaults.height) == (native, native)
    assert (defaults.min_size, defaults.max_size) == (256, 2 * native)


@pytest.mark.parametrize(
    ("name", "shapes", "steps", "guidance", "scheduler"),
    [
        ("a", SD1, 30, 7.5, "pndm"),
        ("a-lcm", SD1, 4, 1.0, "lcm"),
        ("a", SD1 | {f"{UNET}time_embed.cond_proj.weight": (320, 256)}, 4, 8.0, "lcm"),
        ("a-v-pred", SD2, 30, 7.5, "ddim"),
        ("xl", SDXL, 30, 5.0, "euler"),
        ("xl-turbo", SDXL, 4, 0.0, "euler"),
        ("sdxl_lightning_8step", SDXL, 8, 0.0, "euler"),
        ("xl-hyper-sd-1-step", SDXL, 1, 0.0, "ddim"),
        ("xl-8step", SDXL, 30, 5.0, "euler"),
    ],
)
def test_a_kind_brings_its_steps_guidance_and_scheduler(
    tmp_path: Path, name: str, shapes: Shapes, steps: int, guidance: float, scheduler: str
) -> None:
    defaults = inspect_checkpoint(write_model(tmp_path / f"{name}.safetensors", shapes))[1]
    assert (defaults.steps, defaults.guidance_scale, defaults.scheduler) == (
        steps,
        guidance,
        scheduler,
    )


@pytest.mark.parametrize(("name", "shapes"), [("sdxl-style", SD1), ("pony", SDXL)])
def test_a_name_that_disagrees_with_the_tensors_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, shapes: Shapes
) -> None:
    with caplog.at_level(logging.WARNING):
        inspect_checkpoint(write_model(tmp_path / f"{name}.safetensors", shapes))
    assert "the tensors decide" in caplog.text


def test_an_undecidable_sd2_says_how_to_decide(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        inspect_checkpoint(write_model(tmp_path / "my_sd2.safetensors", SD2))
    assert "say 'prediction_type: epsilon' in my_sd2.yaml" in caplog.text


def test_our_metadata_sets_the_defaults(tmp_path: Path) -> None:
    metadata = {
        "diffusers_config": "{}",
        "modelspec.resolution": "128x128",
        "sdserve.steps": "12",
        "sdserve.guidance_scale": "5",
        "sdserve.scheduler": "dpmpp_2m",
    }
    shapes = unet(48, channels=48) | CLIP_L | VAE
    path = write_model(tmp_path / "tiny.safetensors", shapes, metadata)
    assert inspect_checkpoint(path)[1] == GenerationDefaults(
        width=128,
        height=128,
        steps=12,
        guidance_scale=5.0,
        scheduler="dpmpp_2m",
        size_multiple=8,
        min_size=64,
        max_size=256,
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [("steps", "many"), ("guidance_scale", "high"), ("scheduler", "no_such")],
)
def test_unusable_metadata_of_ours_is_refused(tmp_path: Path, key: str, value: str) -> None:
    path = write_model(tmp_path / "a.safetensors", SD1, {f"sdserve.{key}": value})
    assert f"sdserve.{key}" in refusal(path)


@pytest.mark.parametrize("resolution", ["1024", "0x0", "513x512", "huge", "16x16"])
def test_a_senseless_resolution_is_ignored(tmp_path: Path, resolution: str) -> None:
    path = write_model(tmp_path / "a.safetensors", SD1, {"modelspec.resolution": resolution})
    assert inspect_checkpoint(path)[1].width == 512


def test_a_link_keeps_its_own_name(tmp_path: Path) -> None:
    blob = write_model(tmp_path / "0a1b2c", SD1)
    link = tmp_path / "model.safetensors"
    link.symlink_to(blob)
    assert inspect_checkpoint(link)[0].path == link


# Sidecars


def test_a_sidecar_tells_what_the_tensors_cannot(tmp_path: Path) -> None:
    path = write_model(tmp_path / "v2-1_768.safetensors", SD2)
    path.with_suffix(".yaml").write_text(
        "family: sd2\nprediction_type: epsilon\nwidth: 640\nheight: 512\nsteps: 7\n"
        "guidance_scale: 0\nscheduler: euler_a\n"
    )
    checkpoint, defaults = inspect_checkpoint(path)
    assert str(checkpoint.kind) == "sd2"
    assert (defaults.width, defaults.height, defaults.max_size) == (640, 512, 1280)
    assert (defaults.steps, defaults.guidance_scale, defaults.scheduler) == (7, 0.0, "euler_a")


def test_a_sidecar_is_believed_before_metadata_and_name(tmp_path: Path) -> None:
    metadata = {"modelspec.prediction_type": "v"}
    path = write_model(tmp_path / "xl_turbo.safetensors", SDXL, metadata)
    path.with_suffix(".yaml").write_text(
        "prediction_type: epsilon\ndistillation: lightning\nheight: 768"
    )
    checkpoint, defaults = inspect_checkpoint(path)
    assert str(checkpoint.kind) == "sdxl-lightning"
    assert (defaults.width, defaults.height) == (768, 768)


def test_an_empty_sidecar_says_nothing(tmp_path: Path) -> None:
    path = write_model(tmp_path / "a.safetensors", SD1)
    without = inspect_checkpoint(path)
    path.with_suffix(".yaml").write_text("# to do\n")
    assert inspect_checkpoint(path) == without


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("prediction: v", "'prediction' in its sidecar a.yaml is wrong (Extra inputs"),
        ("steps: many", "'steps' in its sidecar a.yaml is wrong"),
        ("width: 513", "'width' in its sidecar a.yaml is wrong"),
        ("scheduler: magic", "no such scheduler, known are: ddim,"),
        ("family: sd9", "'family' in its sidecar a.yaml is wrong"),
        ("- a list", "'it' in its sidecar a.yaml is wrong"),
        ("a: [", "its sidecar a.yaml is no YAML"),
        ("a: !!python/object/apply:os.system [touch /tmp/x]", "its sidecar a.yaml is no YAML"),
        ("family: sdxl", "its sidecar says sdxl, its tensors say sd1: correct a.yaml."),
        ("family: sd3", "its sidecar says sd3, its tensors say sd1: correct a.yaml."),
        ("prediction_type: flow_prediction", "'prediction_type' in its sidecar a.yaml is wrong"),
        ("scheduler: flow_euler", "sets 'scheduler: flow_euler', which this model cannot be"),
        ("vae: gone.safetensors", "there is no file here"),
        ("vae: lora.safetensors", "takes the VAE from lora.safetensors, which has none"),
        ("text_encoder: lora.safetensors", "lora.safetensors, which is no whole sd1 checkpoint"),
    ],
)
def test_a_sidecar_that_cannot_be_followed_is_refused(
    tmp_path: Path, text: str, sentence: str
) -> None:
    path = write_model(tmp_path / "a.safetensors", SD1)
    write_model(tmp_path / "lora.safetensors", {"x.lora_down.weight": (4, 4)})
    path.with_suffix(".yaml").write_text(text)
    with pytest.raises(CheckpointError) as caught:
        inspect_checkpoint(path)
    assert sentence in caught.value.reason


def test_missing_parts_are_taken_from_the_files_that_the_sidecar_names(tmp_path: Path) -> None:
    path = write_model(tmp_path / "bare.safetensors", unet(768))
    whole = write_model(tmp_path / "whole.safetensors", SD1)
    vae = write_model(tmp_path / "vae.safetensors", {"decoder.conv_in.weight": (512, 4, 3, 3)})
    path.with_suffix(".yaml").write_text("vae: vae.safetensors\ntext_encoder: whole.safetensors")
    checkpoint, _ = inspect_checkpoint(path)
    assert (checkpoint.vae, checkpoint.text_encoder) == (ModelFile.at(vae), ModelFile.at(whole))
    assert str(checkpoint.kind) == "sd1"  # by the width of its UNet


# Folders


def test_a_folder_is_listed_sorted(tmp_path: Path) -> None:
    for name in ("b.safetensors", "a.safetensors", "c.ckpt", "README.md"):
        (tmp_path / name).touch()
    (tmp_path / "folder.safetensors").mkdir()
    names = [path.name for path in list_checkpoints(tmp_path)]
    assert names == ["a.safetensors", "b.safetensors"]


def test_a_missing_folder_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no such folder: create it"):
        list_checkpoints(tmp_path / "models")


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(CheckpointError, match="this is a file: name the folder"):
        list_checkpoints(path)
