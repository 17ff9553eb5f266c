"""From a checkpoint file to an engine, telling what it does meanwhile.

Imports no torch at the top: reading the file must start before the seconds that importing takes.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from sdserve.checkpoints import Checkpoint, inspect_checkpoint
from sdserve.errors import CheckpointError, OutOfMemoryError, UnsupportedCheckpointError
from sdserve.safetensors_header import read_header
from workers.pipeline_config import config_folder
from workers.prefetch import Prefetch

if TYPE_CHECKING:
    import torch

    from workers.engine import DiffusionEngine, Pipeline


def load_engine(
    checkpoint: Checkpoint, *, device: str, threads: int, on_phase: Callable[[str], None]
) -> "DiffusionEngine":
    """Load a checkpoint onto a device. `on_phase` is called in this thread.

    Args:
        checkpoint: what to load.
        device: "cpu", "cuda" or "cuda:N".
        threads: of torch on the CPU; more than the replica's cores makes it several times slower.
        on_phase: told in words what happens now.

    Raises:
        CheckpointError: the file cannot be read, changed its kind, or does not fit its family.
        OutOfMemoryError: host or device have too little memory for the model.
    """
    # Before the libraries are imported, which read them once.
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")  # its warnings quote users' prompts
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ["OMP_NUM_THREADS"] = str(threads)
    current, _ = inspect_checkpoint(checkpoint.path)
    if current.family is not checkpoint.family:
        raise CheckpointError(
            checkpoint.path,
            f"the file was replaced by a {current.family.value} model after it was deployed as "
            f"{checkpoint.family.value}: deploy it again.",
        )
    engine_type = _read_and_import(checkpoint.path, on_phase)

    import torch

    torch.set_num_threads(threads)
    on_phase("building the pipeline")
    pipeline = _build(current, dtype=torch.float32 if device == "cpu" else torch.float16)
    if device == "cpu":
        # Not warmed: for SD 1.5 it costs 2.1 s and makes the first step 0.9 s faster, and a replica
        # that starts from zero starts because a request already waits.
        return engine_type(pipeline, device=device)
    on_phase("moving to GPU")
    _move(pipeline, device, checkpoint.path)
    engine = engine_type(pipeline, device=device)
    on_phase("warming")
    engine.warm()
    return engine


def _read_and_import(path: Path, on_phase: Callable[[str], None]) -> "type[DiffusionEngine]":
    """Pull the file into the page cache and import the libraries, both at the same time."""
    prefetch = Prefetch(path)
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="imports") as importer:
        imported = importer.submit(_import_engine)
        try:
            for percent in prefetch.progress():
                on_phase(f"reading file {percent}%")
        except OSError as error:
            raise CheckpointError(
                path, f"reading fails ({error.strerror}): check the disk or the mount."
            ) from error
        if not imported.done():
            on_phase("importing libraries")
        return imported.result()


def _import_engine() -> "type[DiffusionEngine]":
    from workers.engine import DiffusionEngine

    return DiffusionEngine


def _build(checkpoint: Checkpoint, *, dtype: "torch.dtype") -> "Pipeline":
    """The pipeline on the host, its weights mapped from the file where the type allows.

    Raises:
        OutOfMemoryError: the host has too little memory.
        UnsupportedCheckpointError: the tensors are not those of the family.
    """
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import (
        StableDiffusionPipeline,
    )
    from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import (
        StableDiffusionXLPipeline,
    )
    from diffusers.utils import logging as diffusers_logging

    from workers.memory import is_out_of_memory

    path, family = checkpoint.path, checkpoint.family
    diffusers_logging.disable_progress_bar()
    pipeline_type = StableDiffusionXLPipeline if family.is_xl else StableDiffusionPipeline
    try:
        with config_folder(path, family, read_header(path).metadata) as config:
            # Without `config` diffusers asks the hub, even with local_files_only.
            pipeline = pipeline_type.from_single_file(
                str(path), config=str(config), torch_dtype=dtype, local_files_only=True
            )
    except (KeyError, RuntimeError, ValueError) as error:
        if is_out_of_memory(error):
            raise OutOfMemoryError(_too_large(path, "The host has")) from error
        reason = str(error).strip().split("\n", 1)[0]
        raise UnsupportedCheckpointError(
            path,
            f"its tensors do not fit a {family.value} model ({reason}): "
            "use the full, unpruned checkpoint.",
        ) from error
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        module = getattr(pipeline, part, None)
        if module is None:
            continue
        # A tensor that the file lacks stays on the meta device, and forward returns garbage.
        missing = [name for name, tensor in module.named_parameters() if tensor.is_meta]
        if missing:
            raise UnsupportedCheckpointError(
                path,
                f"{len(missing)} tensors of its {part} are missing (first '{missing[0]}'): "
                "use the full, unpruned checkpoint.",
            )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _move(pipeline: "Pipeline", device: str, path: Path) -> None:
    import torch

    from workers.memory import is_out_of_memory

    try:
        pipeline.to(device)
        if pipeline.vae.config.force_upcast:  # SDXL's VAE overflows in half precision
            pipeline.vae.to(torch.float32)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(_too_large(path, "The GPU has")) from error


def _too_large(path: Path, where: str) -> str:
    return (
        f"{where} too little free memory to load {path}: "
        "free memory, or give the app a device of its own."
    )
