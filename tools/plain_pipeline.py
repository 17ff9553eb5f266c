"""What a user of plain diffusers loads: `from_single_file`. The baseline of tests and bench."""

import json
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from importlib.resources import as_file, files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import diffusers
import torch

from sdserve.checkpoints import inspect_checkpoint
from sdserve.families import Family, Kind
from sdserve.safetensors_header import read_header
from workers.pipeline_config import part_configs

_CONFIG_FILES = {"scheduler": "scheduler_config.json"}


def load_plainly(path: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The pipeline that diffusers has for this kind of checkpoint, on the CPU."""
    kind = inspect_checkpoint(path)[0].kind
    pipeline_type: Any = getattr(diffusers, _class_name(kind))
    with _config_folder(path, kind) as folder:
        # Without `config` diffusers asks the hub, even with local_files_only.
        pipeline = pipeline_type.from_single_file(
            str(path),
            config=str(folder),
            torch_dtype=dtype,
            local_files_only=True,
            **_without(kind),
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _without(kind: Kind) -> dict[str, None]:
    """The parts that this kind is served without."""
    return {"text_encoder_3": None, "tokenizer_3": None} if kind.family.is_sd3 else {}


def _class_name(kind: Kind) -> str:
    if kind.family.is_sd3:
        return "StableDiffusion3Pipeline"
    if kind.is_inpainting:
        return (
            "StableDiffusionXLInpaintPipeline"
            if kind.family.is_xl
            else "StableDiffusionInpaintPipeline"
        )
    if kind.family is Family.SDXL_REFINER:
        return "StableDiffusionXLImg2ImgPipeline"
    return "StableDiffusionXLPipeline" if kind.family.is_xl else "StableDiffusionPipeline"


@contextmanager
def _config_folder(path: Path, kind: Kind) -> Generator[Path]:
    configs = part_configs(path, kind, read_header(path))
    with (
        TemporaryDirectory() as name,
        as_file(files("workers") / "configs" / "clip_tokenizer") as tokenizer,
    ):
        folder = Path(name)
        _write(folder / "model_index.json", _model_index(kind, configs))
        for part, config in configs.items():
            (folder / part).mkdir()
            if part.startswith("tokenizer"):
                _write(folder / part / "tokenizer_config.json", config)
                for file in ("vocab.json", "merges.txt"):
                    (folder / part / file).symlink_to((tokenizer / file).resolve())
            else:
                _write(folder / part / _CONFIG_FILES.get(part, "config.json"), config)
        yield folder


def _model_index(kind: Kind, configs: Mapping[str, Any]) -> dict[str, Any]:
    encoder, projecting = (
        ["transformers", name] for name in ("CLIPTextModel", "CLIPTextModelWithProjection")
    )
    tokenizer = ["transformers", "CLIPTokenizer"]
    index: dict[str, Any] = {
        "_class_name": _class_name(kind),
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", configs["scheduler"]["_class_name"]],
        "text_encoder": encoder,
        "tokenizer": tokenizer,
    }
    second = {"text_encoder_2": projecting, "tokenizer_2": tokenizer}
    if kind.family.is_sd3:
        return (
            index
            | second
            | {
                "transformer": ["diffusers", "SD3Transformer2DModel"],
                "text_encoder": projecting,
                "text_encoder_3": ["transformers", "T5EncoderModel"],
                "tokenizer_3": ["transformers", "T5TokenizerFast"],
            }
        )
    index["unet"] = ["diffusers", "UNet2DConditionModel"]
    if not kind.family.is_xl:
        nothing = {"safety_checker": [None, None], "feature_extractor": [None, None]}
        return index | nothing | {"requires_safety_checker": False}
    if kind.family is Family.SDXL_REFINER:
        index |= {"text_encoder": [None, None], "tokenizer": [None, None]}
    return (
        index
        | second
        | {
            "force_zeros_for_empty_prompt": kind.family is Family.SDXL,
            "requires_aesthetics_score": kind.family is Family.SDXL_REFINER,
            "add_watermarker": False,
        }
    )


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content), "utf-8")
