"""What files of SD 3, SD 3.5 and Flux are, and what they lack."""

import logging
from pathlib import Path

import pytest

from api.schemas import GenerateRequest
from sdserve.checkpoints import ModelFile, inspect_checkpoint
from sdserve.errors import CheckpointError, InvalidParameterError
from sdserve.families import SCHEDULERS, Family, Kind, defaults_of
from sdserve.generation import ImageFormat
from tests.headers import Shapes, refusal, write_model

NETWORK = "model.diffusion_model."
BLOCK = f"{NETWORK}joint_blocks.0.x_block."
VAE: Shapes = {"first_stage_model.decoder.conv_in.weight": (512, 16, 3, 3)}
CLIP_L: Shapes = {
    "text_encoders.clip_l.transformer.text_model.final_layer_norm.bias": (768,),
}
CLIP_G: Shapes = {
    "text_encoders.clip_g.transformer.text_model.final_layer_norm.bias": (1280,),
}
CLIPS = CLIP_L | CLIP_G
T5: Shapes = {"text_encoders.t5xxl.transformer.shared.weight": (32128, 4096)}
FLUX: Shapes = {f"{NETWORK}double_blocks.0.img_attn.proj.weight": (3072, 3072)}


def mmdit(side: int = 192, *, norm: bool = False, dual: bool = False) -> Shapes:
    shapes: Shapes = {
        f"{NETWORK}pos_embed": (1, side * side, 1536),
        f"{BLOCK}attn.qkv.weight": (4608, 1536),
    }
    if norm:
        shapes[f"{BLOCK}attn.ln_q.weight"] = (64,)
    if dual:
        shapes[f"{BLOCK}attn2.qkv.weight"] = (4608, 1536)
    return shapes


SD3 = mmdit() | VAE | CLIPS
MEDIUM = mmdit(384, norm=True, dual=True) | VAE | CLIPS
LARGE = mmdit(norm=True) | VAE | CLIPS


@pytest.mark.parametrize(
    ("shapes", "sentence"),
    [
        (
            mmdit() | VAE,
            "it has no CLIP-L text encoder and no CLIP-G text encoder: use the '..._incl_clips' "
            "file of the same model, or lend it what is missing with 'text_encoder: "
            "FILE.safetensors' in a.yaml beside it.",
        ),
        (mmdit() | VAE | T5, "it has no CLIP-L text encoder and no CLIP-G text encoder: use"),
        (mmdit() | VAE | CLIP_L, "it has no CLIP-G text encoder: use the '..._incl_clips' file"),
        (mmdit() | VAE | CLIP_G, "it has no CLIP-L text encoder: use the '..._incl_clips' file"),
        (mmdit() | CLIPS, "it has no VAE: use the '..._incl_clips' file"),
        (
            mmdit(norm=True),
            "it has no VAE, no CLIP-L text encoder and no CLIP-G text encoder: use the "
            "'..._incl_clips' file of the same model, or lend it what is missing with 'vae: "
            "FILE.safetensors' and 'text_encoder: FILE.safetensors' in a.yaml beside it.",
        ),
        (
            {"joint_blocks.0.x_block.attn.qkv.weight": (8, 8)},
            "this is a bare transformer of SD 3, without text encoders and VAE: use the "
            "'..._incl_clips' file of the same model.",
        ),
        (
            MEDIUM | {f"{BLOCK}attn.qkv.scale_weight": ()},
            "its weights are float8 with scales beside them, which is not served: use the float16",
        ),
        (
            {"double_blocks.0.img_attn.weight": (8, 8)},
            "this is a Flux model, which is not served: the file lacks the CLIP text encoder, the "
            "T5-XXL text encoder and the VAE, and the tokenizer of T5-XXL is not shipped with "
            "sdserve: deploy an SD 1.x, SD 2.x, SDXL or SD 3 base checkpoint instead.",
        ),
        (FLUX | CLIP_L | T5, "the file lacks the VAE, and the tokenizer of T5-XXL is not shipped"),
        (FLUX | CLIP_L | VAE, "the file lacks the T5-XXL text encoder, and the tokenizer of"),
        (
            FLUX | CLIP_L | T5 | {"vae.decoder.conv_in.weight": (512, 16, 3, 3)},
            "this is a Flux model, which is not served: the tokenizer of T5-XXL is not shipped",
        ),
    ],
)
def test_a_refusal_names_what_the_file_lacks(tmp_path: Path, shapes: Shapes, sentence: str) -> None:
    assert sentence in refusal(write_model(tmp_path / "a.safetensors", shapes))


@pytest.mark.parametrize(
    ("name", "shapes", "kind", "steps", "guidance"),
    [
        ("sd3_medium_incl_clips", SD3, "sd3", 28, 7.0),
        ("sd3_medium_incl_clips_t5xxlfp16", SD3 | T5, "sd3", 28, 7.0),
        ("sd3.5_medium_incl_clips", MEDIUM, "sd35-medium", 40, 4.5),
        ("sd3.5_large", LARGE, "sd35-large", 28, 3.5),
        ("sd3.5_large_turbo", LARGE, "sd35-large-turbo", 4, 0.0),
        ("sd3.5_large_turbo_8steps", LARGE, "sd35-large-turbo", 8, 0.0),
    ],
)
def test_the_kind_comes_from_the_tensors_of_the_transformer(
    tmp_path: Path, name: str, shapes: Shapes, kind: str, steps: int, guidance: float
) -> None:
    path = write_model(tmp_path / f"{name}.safetensors", shapes)
    checkpoint, defaults = inspect_checkpoint(path)
    assert str(checkpoint.kind) == kind
    assert checkpoint.files == (ModelFile.at(path),)
    assert (defaults.width, defaults.height, defaults.size_multiple) == (1024, 1024, 16)
    assert (defaults.steps, defaults.guidance_scale) == (steps, guidance)
    assert defaults.schedulers == (defaults.scheduler,) == ("flow_euler",)


def test_turbo_can_also_be_told_by_metadata(tmp_path: Path) -> None:
    title = {"modelspec.title": "Stable Diffusion 3.5 Large Turbo"}
    path = write_model(tmp_path / "a.safetensors", LARGE, title)
    assert str(inspect_checkpoint(path)[0].kind) == "sd35-large-turbo"


@pytest.mark.parametrize(
    ("shapes", "sentence"),
    [(SD3, "there is no T5-XXL"), (SD3 | T5, "the T5-XXL in the file is left out")],
)
def test_it_is_said_that_t5_reads_no_prompt(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, shapes: Shapes, sentence: str
) -> None:
    with caplog.at_level(logging.WARNING):
        inspect_checkpoint(write_model(tmp_path / "t5xxl.safetensors", shapes))
    (record,) = caplog.records  # and nothing about an 'xl' in its name
    assert f"read by the two CLIP text encoders only, {sentence}." in record.getMessage()


@pytest.mark.parametrize(("resolution", "limit"), [("1024x1024", 2048), ("2048x2048", 3072)])
def test_no_picture_is_larger_than_the_positions_that_the_model_knows(
    tmp_path: Path, resolution: str, limit: int
) -> None:
    metadata = {"modelspec.resolution": resolution}
    path = write_model(tmp_path / "a.safetensors", SD3, metadata)
    assert inspect_checkpoint(path)[1].max_size == limit


def test_encoders_and_vae_can_be_lent_by_another_size(tmp_path: Path) -> None:
    """All SD 3 and 3.5 have the same ones, and of 3.5 large no file includes them."""
    path = write_model(tmp_path / "large.safetensors", mmdit(norm=True))
    lender = write_model(tmp_path / "sd3_medium_incl_clips.safetensors", SD3)
    path.with_suffix(".yaml").write_text(f"text_encoder: {lender.name}\nvae: {lender.name}\n")
    checkpoint, _ = inspect_checkpoint(path)
    assert checkpoint.text_encoder == checkpoint.vae == ModelFile.at(lender)
    assert str(checkpoint.kind) == "sd35-large"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("family: sdxl", "its sidecar says sdxl, its tensors say sd3: correct a.yaml."),
        ("prediction_type: epsilon", "sets 'prediction_type', which sd3 does not have: remove it"),
        ("scheduler: euler", "cannot be drawn with: name one of flow_euler."),
        ("width: 1032", "a size of 1032x1032, and this model draws multiples of 16 pixels"),
    ],
)
def test_a_sidecar_that_does_not_suit_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    path = write_model(tmp_path / "a.safetensors", SD3)
    path.with_suffix(".yaml").write_text(text)
    with pytest.raises(CheckpointError) as caught:
        inspect_checkpoint(path)
    assert sentence in caught.value.reason


def test_a_scheduler_of_another_process_is_refused_with_those_allowed(tmp_path: Path) -> None:
    path = write_model(tmp_path / "a.safetensors", SD3)
    _, defaults = inspect_checkpoint(path)
    for name in SCHEDULERS.keys() - {"flow_euler"}:
        request = GenerateRequest(prompt="a", scheduler=name)
        with pytest.raises(InvalidParameterError, match=r"not suit this model; .* flow_euler"):
            request.to_params(defaults, ImageFormat.PNG)
    allowed = GenerateRequest(prompt="a", scheduler="flow_euler")
    assert allowed.to_params(defaults, ImageFormat.PNG).scheduler == "flow_euler"


def test_a_step_cache_is_for_models_with_a_unet() -> None:
    request = GenerateRequest(prompt="a", step_cache=2)
    for family in Family:
        defaults = defaults_of(Kind(family=family))
        if not family.is_sd3:
            assert request.to_params(defaults, ImageFormat.PNG).step_cache == 2
            continue
        with pytest.raises(InvalidParameterError, match="needs a model with a UNet; leave it out"):
            request.to_params(defaults, ImageFormat.PNG)
        plain = GenerateRequest(prompt="a", step_cache=1)
        assert plain.to_params(defaults, ImageFormat.PNG).step_cache == 1


def test_no_other_model_is_drawn_with_the_scheduler_of_a_flow() -> None:
    for family in Family:
        allowed = defaults_of(Kind(family=family)).schedulers
        assert ("flow_euler" in allowed) is family.is_sd3
    request = GenerateRequest(prompt="a", scheduler="flow_euler")
    with pytest.raises(InvalidParameterError, match="'flow_euler' does not suit this model"):
        request.to_params(defaults_of(Kind(family=Family.SDXL)), ImageFormat.PNG)
