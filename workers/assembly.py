"""A pipeline out of a checkpoint's tensors: empty modules that get them assigned, without a copy.

Equal bit for bit to diffusers' `from_single_file` with the same configuration (a test compares).
"""

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import diffusers
import torch
from accelerate import init_empty_weights
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from sdserve.checkpoints import Checkpoint
from sdserve.errors import UnsupportedCheckpointError
from sdserve.families import Family
from sdserve.layout import CLIP_L, NETWORK, TEXT_ENCODERS, vae_prefix
from sdserve.safetensors_header import SafetensorsHeader, read_header
from workers.conversion import (
    State,
    text_state,
    transformer_state,
    unet_state,
    vae_state,
)
from workers.denoising import Pipeline
from workers.pipeline_config import part_configs
from workers.prefetch import Prefetch
from workers.weights import DTYPES, copy_tensors, map_tensors

log = logging.getLogger(__name__)

_DIFFUSERS: Any = diffusers  # its names are lazy, type checkers see none of them


@dataclass(frozen=True, kw_only=True)
class _Source:
    """A file and the tensors that are wanted of it."""

    path: Path
    header: SafetensorsHeader
    prefixes: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        return [name for name in self.header.spans if name.startswith(self.prefixes)]

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """Where they are in the file."""
        spans = [self.header.spans[name] for name in self.names]
        return [(span.begin, span.end) for span in spans]

    @property
    def size(self) -> int:
        """Bytes to read."""
        return sum(end - begin for begin, end in self.ranges)

    @property
    def dtypes(self) -> set[torch.dtype]:
        """The types of its floating-point tensors."""
        found = {DTYPES[self.header.spans[name].dtype] for name in self.names}
        return {dtype for dtype in found if dtype.is_floating_point}


class Assembly:
    """What a checkpoint is made of, known from the headers of its files."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        header = read_header(checkpoint.path)
        self._configs = part_configs(checkpoint.path, checkpoint.kind, header)
        self._network = _Source(path=checkpoint.path, header=header, prefixes=(NETWORK,))
        self._vae = _source(checkpoint, header, checkpoint.vae and checkpoint.vae.path, "vae")
        lender = checkpoint.text_encoder and checkpoint.text_encoder.path
        self._text = _source(checkpoint, header, lender, "text")

    @property
    def parameters(self) -> int:
        """How many numbers the model has."""
        return sum(
            _count(source.header.shapes[name])
            for source in (self._network, self._vae, self._text)
            for name in source.names
        )

    @property
    def dtype(self) -> torch.dtype:
        """The type of the network in the file."""
        return DTYPES[self._network.header.spans[self._network.names[0]].dtype]

    def build(
        self,
        device: torch.device,
        dtype: torch.dtype,
        on_percent: Callable[[int], None] = lambda _: None,
        *,
        upcast: torch.dtype = torch.float32,
    ) -> Pipeline:
        """The pipeline on a device, its weights in `dtype`.

        On the CPU a weight that already has this type stays a view of the file.

        Args:
            device: where the weights go.
            dtype: of the weights.
            on_percent: told how much has been read, also by other threads.
            upcast: of a VAE that overflows in float16, where that is `dtype`; diffusers takes
                float32.

        Raises:
            UnsupportedCheckpointError: the tensors are not those of the family.
            OSError: a file cannot be read.
            RuntimeError, MemoryError: an allocator failed.
        """
        read = _Reader(device, [self._network, self._vae, self._text], on_percent)
        configs = self._configs
        is_upcast = dtype is torch.float16 and configs["vae"].get("force_upcast")
        vae_dtype = upcast if is_upcast else dtype
        network = self._network_of(read(self._network, dtype), dtype)
        with init_empty_weights(include_buffers=False):
            vae = _DIFFUSERS.AutoencoderKL.from_config(configs["vae"])
        parts: dict[str, Any] = {
            **network,
            "vae": self._fill(
                "vae", vae, vae_state(read(self._vae, vae_dtype), vae.config), vae_dtype
            ),
            "text_encoder": None,
            "tokenizer": None,
        }
        text = read(self._text, dtype)
        names = [name for name in ("text_encoder", "text_encoder_2") if name in configs]
        for name, prefix in zip(names, TEXT_ENCODERS[self.checkpoint.kind.family], strict=True):
            with init_empty_weights(include_buffers=False):
                config = CLIPTextConfig.from_dict(configs[name])
                encoder = self._encoder_type(name)(config)
            state = text_state(text, prefix)
            if prefix == CLIP_L:  # SD 3 takes its pooled output as it is, unprojected
                identity = torch.eye(config.hidden_size, dtype=dtype, device=device)
                state["text_projection.weight"] = identity
            parts[name] = self._fill(name, encoder, state, dtype)
            tokenizer = name.replace("text_encoder", "tokenizer")
            parts[tokenizer] = _tokenizer(configs[tokenizer])
        scheduler = configs["scheduler"]
        parts["scheduler"] = getattr(_DIFFUSERS, scheduler["_class_name"]).from_config(scheduler)
        pipeline = self._pipeline(parts)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline.to(device)  # what is left: buffers that no file holds

    def _network_of(self, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Any]:
        """What denoises, by its name in the pipeline."""
        if self.checkpoint.kind.family.is_sd3:
            # Its table of positions too is in the file; up to 900 MB that need not be computed.
            with torch.device("meta"):
                network = _DIFFUSERS.SD3Transformer2DModel.from_config(self._configs["transformer"])
            name, state = "transformer", transformer_state(tensors, network.config)
        else:
            with init_empty_weights(include_buffers=False):
                network = _DIFFUSERS.UNet2DConditionModel.from_config(self._configs["unet"])
            name, state = "unet", unet_state(tensors, network.config)
        return {name: self._fill(name, network, state, dtype)}

    def _encoder_type(self, name: str) -> Any:
        if name == "text_encoder" and not self.checkpoint.kind.family.is_sd3:
            return CLIPTextModel
        return CLIPTextModelWithProjection

    def _pipeline(self, parts: dict[str, Any]) -> Any:
        if self.checkpoint.kind.family.is_sd3:
            # Without T5 it puts zeros where the embeddings of T5 would be.
            return _DIFFUSERS.StableDiffusion3Pipeline(
                **parts, text_encoder_3=None, tokenizer_3=None
            )
        if self.checkpoint.kind.family.is_xl:
            return _DIFFUSERS.StableDiffusionXLPipeline(
                **parts,
                force_zeros_for_empty_prompt=self.checkpoint.kind.family is Family.SDXL,
                add_watermarker=False,
            )
        return _DIFFUSERS.StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )

    def _fill(self, name: str, module: Any, state: State, dtype: torch.dtype) -> Any:
        """Assign the weights. A tensor that the file lacks would stay empty and draw garbage."""
        path = self.checkpoint.path
        if not hasattr(module, "text_model"):  # transformers 5 flattened CLIPTextModel
            state = {key.removeprefix("text_model."): tensor for key, tensor in state.items()}
        try:
            typed = {key: tensor.to(dtype) for key, tensor in state.items()}
            missing, unexpected = module.load_state_dict(typed, strict=False, assign=True)
        except RuntimeError as error:
            if "size mismatch" not in str(error):
                raise
            first = str(error).split("\n")[1].strip()
            raise UnsupportedCheckpointError(path, self._misfit(name, first)) from error
        if missing or (unexpected and name in ("unet", "transformer")):
            names, how = (missing, "missing") if missing else (unexpected, "too many")
            what = f"{len(names)} tensors are {how}, first '{names[0]}'"
            raise UnsupportedCheckpointError(path, self._misfit(name, what))
        if unexpected:  # SD 2 files carry a text layer that the model was trained without
            log.info("%s: %d tensors of its %s unused", path, len(unexpected), name)
        return module.eval().requires_grad_(requires_grad=False)

    def _misfit(self, part: str, what: str) -> str:
        kind = self.checkpoint.kind
        return (
            f"its {part} does not fit a {kind} model ({what}): use the full, unpruned checkpoint."
        )


def _source(
    checkpoint: Checkpoint, header: SafetensorsHeader, lender: Path | None, part: str
) -> _Source:
    path = lender or checkpoint.path
    found = read_header(lender) if lender else header
    if part == "text":
        return _Source(
            path=path, header=found, prefixes=tuple(TEXT_ENCODERS[checkpoint.kind.family])
        )
    return _Source(path=path, header=found, prefixes=(vae_prefix(found.shapes) or "",))


class _Reader:
    """Reads sources in the way that suits their types, and tells how far it is."""

    def __init__(
        self, device: torch.device, sources: list[_Source], on_percent: Callable[[int], None]
    ) -> None:
        self._device = device
        self._on_percent = on_percent
        self._total = sum(source.size for source in sources)
        self._done = 0
        self._lock = threading.Lock()

    def __call__(self, source: _Source, dtype: torch.dtype) -> Mapping[str, Tensor]:
        if self._device.type == "cpu" and source.dtypes == {dtype}:
            for size in Prefetch(source.path, source.ranges).read():
                self._count(size)
            return map_tensors(source.path, source.names)
        header, names = source.header, source.names
        return copy_tensors(source.path, header, names, self._device, dtype, self._count)

    def _count(self, size: int) -> None:
        with self._lock:
            self._done += size
            self._on_percent(100 * self._done // self._total)


def _tokenizer(config: dict[str, Any]) -> CLIPTokenizer:
    with as_file(files("workers") / "configs" / "clip_tokenizer") as folder:
        return CLIPTokenizer.from_pretrained(str(folder), local_files_only=True, **config)


def _count(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()
