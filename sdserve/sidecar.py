"""The sidecar of a checkpoint: `NAME.yaml` beside `NAME.safetensors`, written by whoever runs it.

It says what the tensors cannot tell, sets defaults, and names files for parts that are missing.
"""

from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from sdserve.errors import CheckpointError
from sdserve.families import SCHEDULERS, Distillation, Family, Prediction


class Sidecar(BaseModel):
    """Every key is optional; a key that is no key of these is an error, not a silent nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: Family | None = None
    prediction_type: Literal[Prediction.EPSILON, Prediction.V] | None = None
    distillation: Distillation | None = None
    width: int | None = Field(default=None, ge=64, le=4096, multiple_of=8)  # native, pixels
    height: int | None = Field(default=None, ge=64, le=4096, multiple_of=8)  # native, pixels
    steps: int | None = Field(default=None, ge=1, le=150)
    guidance_scale: float | None = Field(default=None, ge=0, le=30)
    scheduler: str | None = None
    vae: Path | None = None  # a VAE, or a checkpoint to take it from; relative to the folder
    text_encoder: Path | None = None  # a checkpoint to take the text encoders from

    @field_validator("scheduler")
    @classmethod
    def _is_known(cls, value: str | None) -> str | None:
        if value is not None and value not in SCHEDULERS:
            raise ValueError(f"no such scheduler, known are: {', '.join(SCHEDULERS)}")
        return value


def read_sidecar(checkpoint: Path) -> Sidecar:
    """The sidecar of a checkpoint; an empty one when there is no such file.

    Raises:
        CheckpointError: the file is there and cannot be understood.
    """
    path = checkpoint.with_suffix(".yaml")
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
        return Sidecar.model_validate({} if content is None else content)
    except FileNotFoundError:
        return Sidecar()
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "it"
        problem = f"'{key}' in its sidecar {path.name} is wrong ({first['msg']}): correct it."
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        problem = f"its sidecar {path.name} is no YAML ({reason}): correct it."
    except OSError as error:
        problem = f"its sidecar {path.name} cannot be read ({error.strerror}): allow it."
    raise CheckpointError(checkpoint, problem)
