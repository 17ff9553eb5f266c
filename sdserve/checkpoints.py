"""A checkpoint on disk: what it is and what its requests default to. Reads headers; no torch."""

import logging
import math
import re
from dataclasses import dataclass, replace
from pathlib import Path

from sdserve.detection import detect
from sdserve.errors import CheckpointError, UnsupportedCheckpointError
from sdserve.families import (
    Distillation,
    Family,
    GenerationDefaults,
    Kind,
    defaults_of,
)
from sdserve.layout import (
    POSITIONS,
    TEXT_ENCODERS,
    Shapes,
    missing_text_encoders,
    vae_prefix,
)
from sdserve.other_files import USE_INCLUDING_CLIPS, USE_WHOLE, in_words
from sdserve.safetensors_header import SafetensorsHeader, read_header
from sdserve.sidecar import Sidecar, read_sidecar

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """One file. Equal values mean the same, unchanged file."""

    path: Path  # absolute; a link keeps its own name, its target may be a hash
    size: int  # bytes
    mtime_ns: int

    @classmethod
    def at(cls, path: Path) -> "ModelFile":
        """The file as it is now.

        Raises:
            OSError: it cannot be looked at.
        """
        stat = path.stat()
        return cls(path=path, size=stat.st_size, mtime_ns=stat.st_mtime_ns)

    def __str__(self) -> str:
        """Names this content of the file: it changes when the file does."""
        return f"{self.path}:{self.size}:{self.mtime_ns}"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A model that can be served: its file, what it is, and files that lend it missing parts."""

    file: ModelFile
    kind: Kind
    vae: ModelFile | None = None  # instead of the file's own
    text_encoder: ModelFile | None = None  # a checkpoint of the same family

    @property
    def path(self) -> Path:
        return self.file.path

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def files(self) -> tuple[ModelFile, ...]:
        """All that is read when it loads."""
        return tuple(file for file in (self.file, self.vae, self.text_encoder) if file)


def inspect_checkpoint(path: Path) -> tuple[Checkpoint, GenerationDefaults]:
    """What the file is and what its requests default to.

    Raises:
        CheckpointNotFoundError: no file at this path.
        InvalidCheckpointError: not a complete, well-formed .safetensors file.
        UnsupportedCheckpointError: a well-formed file of a kind that is not served.
        CheckpointError: a file, or its sidecar, that cannot be read.
    """
    path = path.parent.resolve() / path.name
    header, sidecar = read_header(path), read_sidecar(path)
    kind = detect(path, header, sidecar)
    _refuse_incomplete(path, kind.family, header.shapes, sidecar)
    checkpoint = Checkpoint(
        file=ModelFile.at(path),
        kind=kind,
        vae=_vae(path, sidecar),
        text_encoder=_text_encoder(path, kind.family, sidecar),
    )
    return checkpoint, _defaults(path, kind, header, sidecar)


def list_checkpoints(folder: Path) -> list[Path]:
    """The .safetensors files directly inside a folder, sorted by name.

    Raises:
        CheckpointError: no such folder, or one that cannot be read.
    """
    try:
        entries = sorted(folder.iterdir())
    except FileNotFoundError:
        raise CheckpointError(
            folder, "there is no such folder: create it and put .safetensors files in it."
        ) from None
    except NotADirectoryError:
        raise CheckpointError(folder, "this is a file: name the folder it lies in.") from None
    except PermissionError:
        raise CheckpointError(
            folder, f"this process may not list it: allow it, e.g. chmod a+rx '{folder}'."
        ) from None
    return [path for path in entries if path.suffix == ".safetensors" and not path.is_dir()]


def _refuse_incomplete(path: Path, family: Family, shapes: Shapes, sidecar: Sidecar) -> None:
    """Name every part that neither the file nor its sidecar brings."""
    parts: list[str] = []
    keys: list[str] = []
    if not sidecar.vae and vae_prefix(shapes) is None:
        parts.append("no VAE")
        keys.append("'vae: FILE.safetensors'")
    missing = [] if sidecar.text_encoder else missing_text_encoders(family, shapes)
    if missing:
        parts += [f"no {TEXT_ENCODERS[family][prefix]}" for prefix in missing]
        keys.append("'text_encoder: FILE.safetensors'")
    if parts:
        raise UnsupportedCheckpointError(
            path,
            f"it has {in_words(parts)}: {USE_INCLUDING_CLIPS if family.is_sd3 else USE_WHOLE}, or "
            f"lend it what is missing with {in_words(keys)} in {path.stem}.yaml beside it.",
        )


def _vae(path: Path, sidecar: Sidecar) -> ModelFile | None:
    if sidecar.vae is None:
        return None
    lender = path.parent / sidecar.vae
    if vae_prefix(read_header(lender).shapes) is None:
        raise UnsupportedCheckpointError(
            path,
            f"its sidecar takes the VAE from {lender.name}, which has none in the original layout: "
            "name another file.",
        )
    return ModelFile.at(lender)


def _text_encoder(path: Path, family: Family, sidecar: Sidecar) -> ModelFile | None:
    if sidecar.text_encoder is None:
        return None
    lender = path.parent / sidecar.text_encoder
    if missing_text_encoders(family, read_header(lender).shapes):
        raise UnsupportedCheckpointError(
            path,
            f"its sidecar takes the text encoder from {lender.name}, which is no whole {family} "
            "checkpoint: name another file.",
        )
    return ModelFile.at(lender)


def _defaults(
    path: Path, kind: Kind, header: SafetensorsHeader, sidecar: Sidecar
) -> GenerationDefaults:
    """The kind's defaults, bent by metadata of the file, then by its sidecar."""
    defaults, metadata = defaults_of(kind), header.metadata
    if kind.distillation and (said := re.search(r"(\d)[-_ ]?steps?\b", path.stem.lower())):
        defaults = replace(defaults, steps=max(1, int(said[1])))
    defaults = _native_size(path, kind, defaults, metadata)
    defaults = _our_metadata(path, defaults, metadata)
    if sidecar.width or sidecar.height:
        width = sidecar.width or sidecar.height or 0
        defaults = defaults.with_native_size(width, sidecar.height or width)
    _refuse_impossible(path, defaults, sidecar)
    if positions := header.shapes.get(POSITIONS):  # SD 3 knows no patches beyond these
        limit = math.isqrt(math.prod(positions[:-1])) * defaults.size_multiple
        defaults = replace(defaults, max_size=min(defaults.max_size, limit))
    return replace(
        defaults,
        steps=sidecar.steps or defaults.steps,
        guidance_scale=(
            defaults.guidance_scale if sidecar.guidance_scale is None else sidecar.guidance_scale
        ),
        scheduler=sidecar.scheduler or defaults.scheduler,
    )


def _refuse_impossible(path: Path, defaults: GenerationDefaults, sidecar: Sidecar) -> None:
    if sidecar.scheduler not in (None, *defaults.schedulers):
        raise UnsupportedCheckpointError(
            path,
            f"its sidecar sets 'scheduler: {sidecar.scheduler}', which this model cannot be drawn "
            f"with: name one of {', '.join(defaults.schedulers)}.",
        )
    if defaults.width % defaults.size_multiple or defaults.height % defaults.size_multiple:
        raise UnsupportedCheckpointError(
            path,
            f"its sidecar sets a size of {defaults.width}x{defaults.height}, and this model draws "
            f"multiples of {defaults.size_multiple} pixels: correct {path.stem}.yaml.",
        )


def _native_size(
    path: Path, kind: Kind, defaults: GenerationDefaults, metadata: dict[str, str]
) -> GenerationDefaults:
    if declared := metadata.get("modelspec.resolution"):
        size = re.fullmatch(r"(\d{2,4})x(\d{2,4})", declared)
        sides = (int(size[1]), int(size[2])) if size else (0, 0)
        if min(sides) >= 64 and not any(side % defaults.size_multiple for side in sides):
            return defaults.with_native_size(*sides)
        logger.warning(
            "%s: modelspec.resolution '%s' ignored, it is no size such as 1024x1024.",
            path,
            declared,
        )
    elif kind == Kind(family=Family.SDXL, distillation=Distillation.TURBO) and re.match(
        r"sd_?xl_?turbo", path.stem.lower()
    ):
        # Only Stability's own SDXL Turbo is a 512 px model; what others call turbo is 1024.
        return defaults.with_native_size(512, 512)
    return defaults


def _our_metadata(
    path: Path, defaults: GenerationDefaults, metadata: dict[str, str]
) -> GenerationDefaults:
    try:
        if steps := metadata.get("sdserve.steps"):
            defaults = replace(defaults, steps=int(steps))
        if guidance := metadata.get("sdserve.guidance_scale"):
            defaults = replace(defaults, guidance_scale=float(guidance))
    except ValueError:
        raise UnsupportedCheckpointError(
            path, "its metadata key 'sdserve.steps' or 'sdserve.guidance_scale' is not a number."
        ) from None
    if scheduler := metadata.get("sdserve.scheduler"):
        if scheduler not in defaults.schedulers:
            raise UnsupportedCheckpointError(
                path,
                f"its metadata key 'sdserve.scheduler' is '{scheduler}', none of "
                f"{', '.join(defaults.schedulers)}.",
            )
        defaults = replace(defaults, scheduler=scheduler)
    return defaults
