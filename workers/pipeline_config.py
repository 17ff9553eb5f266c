"""The diffusers configuration of a checkpoint as a folder on disk, so that loading needs no hub.

The configuration comes from the file's own metadata when it brings one (`diffusers_config`, as the
demo models do), else from the family's JSON in `workers/configs/`.
"""

import json
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from importlib.resources import as_file, files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sdserve.errors import InvalidCheckpointError
from sdserve.families import SCHEDULERS, Family

_TOKENIZER_FILES = ("vocab.json", "merges.txt")
_SCHEDULER_CLASSES = {class_name for class_name, _ in SCHEDULERS.values()}


@contextmanager
def config_folder(path: Path, family: Family, metadata: Mapping[str, str]) -> Generator[Path]:
    """A folder for `from_single_file(config=...)`, gone when the block ends.

    Raises:
        InvalidCheckpointError: the file's own configuration is unusable.
    """
    components = _components(path, family, metadata)
    with (
        TemporaryDirectory(prefix="sdserve-config-") as name,
        as_file(files("workers") / "configs" / "clip_tokenizer") as tokenizer,
    ):
        folder = Path(name)
        _write(folder / "model_index.json", _model_index(family, components))
        for component, config in components.items():
            place = folder / component
            place.mkdir()
            if component.startswith("tokenizer"):
                _write(place / "tokenizer_config.json", config)
                for file in _TOKENIZER_FILES:
                    (place / file).symlink_to((tokenizer / file).resolve())
            elif component == "scheduler":
                _write(place / "scheduler_config.json", config)
            else:
                _write(place / "config.json", config)
        yield folder


def _components(path: Path, family: Family, metadata: Mapping[str, str]) -> dict[str, Any]:
    names = ["unet", "vae", "scheduler", "text_encoder", "tokenizer"]
    if family.is_xl:
        names += ["text_encoder_2", "tokenizer_2"]
    own = metadata.get("diffusers_config")
    text = own or (files("workers") / "configs" / f"{family.value}.json").read_text("utf-8")
    try:
        configs = json.loads(text)
        components = {name: dict(configs[name]) for name in names}
        is_known = components["scheduler"]["_class_name"] in _SCHEDULER_CLASSES
    except (KeyError, TypeError, ValueError):
        is_known, components = False, {}
    if not is_known:
        raise InvalidCheckpointError(
            path,
            "the 'diffusers_config' in its metadata is not a complete configuration of a "
            f"{family.value} model: export the file again.",
        )
    return components


def _model_index(family: Family, components: Mapping[str, Any]) -> dict[str, Any]:
    """The pipeline's table of classes. Ours alone: a file must not name a class to import."""
    index: dict[str, Any] = {
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", components["scheduler"]["_class_name"]],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
    }
    if family.is_xl:
        return index | {
            "_class_name": "StableDiffusionXLPipeline",
            "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
            "tokenizer_2": ["transformers", "CLIPTokenizer"],
            "force_zeros_for_empty_prompt": True,
            "add_watermarker": False,
        }
    return index | {
        "_class_name": "StableDiffusionPipeline",
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
    }


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content), "utf-8")
