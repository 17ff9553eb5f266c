"""The diffusion loop over a pipeline's parts: begin, step, decode. Knows no job, queue or clock."""

import inspect
import logging
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import diffusers
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdserve.errors import OutOfMemoryError
from sdserve.families import SCHEDULERS, Kind, defaults_of
from sdserve.generation import GenerationParams, ImageFormat
from workers.compiling import CompiledNetwork
from workers.denoising import Denoiser, Denoising, Pipeline
from workers.foresight import SWATCH, fit_palette, foresee, paint
from workers.memory import memory_guard
from workers.transformer import TransformerDenoiser
from workers.unet import UNetDenoiser

PREVIEW_SIDE = 128  # pixels

log = logging.getLogger(__name__)


class DiffusionEngine:
    """A loaded pipeline that denoises one or several pictures, step by step.

    Alone in its batch a picture is bit-exact with the plain diffusers pipeline at the same
    parameters, if the engine `is_exact`; batched, or laid out for speed, it agrees within float
    tolerance. Not thread-safe: one thread calls it.
    """

    def __init__(
        self, pipeline: Pipeline, *, kind: Kind, device: str, is_exact: bool = True
    ) -> None:
        """Take over a loaded pipeline.

        Args:
            pipeline: of the kind.
            kind: decides how it is steered.
            device: where it is, or where each of its parts goes in its turn.
            is_exact: whether it is laid out and computes as diffusers has it.
        """
        self.is_exact = is_exact
        self._pipeline = pipeline
        self._kind = kind
        self._device = torch.device(device)
        self._palette: Tensor | None = None  # [L + 1, 3], once a picture was watched
        self._denoiser: Denoiser = (
            TransformerDenoiser(pipeline, device=self._device)
            if kind.family.is_sd3
            else UNetDenoiser(pipeline, kind=kind, device=self._device)
        )

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def precision(self) -> str:
        """What the network computes with, e.g. "float32"."""
        return str(self._denoiser.dtype).removeprefix("torch.")

    def compile(self, *, backend: str = "inductor") -> None:
        """Have the network compiled while it serves: faster, and no longer bit-exact."""
        self._denoiser.network = CompiledNetwork(self._denoiser.network, backend=backend)

    @property
    def compiled(self) -> int:
        """For how many shapes the network is compiled so far."""
        network = self._denoiser.network
        return network.ready if isinstance(network, CompiledNetwork) else 0

    def begin(self, params: GenerationParams, image_index: int) -> Denoising:
        """Encode the prompts and draw the initial noise of image `image_index` of a request.

        Raises:
            OutOfMemoryError: the text encoders or the latents do not fit.
        """
        pipeline = self._pipeline
        with torch.inference_mode(), memory_guard(params.width, params.height):
            conditioning = self._denoiser.condition(params)
            scheduler = self._scheduler(params.scheduler)
            scheduler.set_timesteps(params.num_inference_steps, device=self._device)
            if hasattr(scheduler, "set_begin_index"):
                scheduler.set_begin_index(0)  # else the first step searches, and waits for the GPU
            seed = (params.seed + image_index) % 2**32
            generator = torch.Generator("cpu").manual_seed(seed)  # same noise on every device
            factor, channels = pipeline.vae_scale_factor, pipeline.vae.config.latent_channels
            noise = torch.randn(
                (1, channels, params.height // factor, params.width // factor),
                generator=generator,
                dtype=conditioning.embeddings.dtype,
            ).to(self._device)
            accepted = inspect.signature(scheduler.step).parameters
            options = {"generator": generator, "eta": 0.0}
            return Denoising(
                params=params,
                seed=seed,
                conditioning=conditioning,
                scheduler=scheduler,
                step_options={name: options[name] for name in options if name in accepted},
                timesteps=scheduler.timesteps,
                latents=self._denoiser.start(noise, scheduler),
                canvas=self._denoiser.canvas(params, generator),
            )

    def step(self, batch: Sequence[Denoising]) -> bool:
        """Move every picture one call of the network on, all in one forward; none may be done.

        The pictures must agree in size; all else may differ. False: together they did not fit into
        memory, so they went one by one.

        Raises:
            OutOfMemoryError: even one picture alone does not fit.
        """
        params = batch[0].params
        try:
            with torch.inference_mode(), memory_guard(params.width, params.height):
                predictions: Sequence[Tensor] | None = self._denoiser.predict(batch)
        except OutOfMemoryError:
            if len(batch) == 1:
                raise
            predictions = None
        if predictions is None:  # outside the handler, whose traceback holds the failed tensors
            for denoising in batch:
                self.step([denoising])
            return False
        with torch.inference_mode():
            for denoising, prediction in zip(batch, predictions, strict=True):
                output = _guide(prediction, denoising.params.guidance_scale)
                if denoising.is_watched:
                    denoising.foreseen = _foreseen(denoising, output)
                denoising.latents = denoising.scheduler.step(
                    output,
                    denoising.timesteps[denoising.calls_done],
                    denoising.latents,
                    **denoising.step_options,
                    return_dict=False,
                )[0]
                denoising.calls_done += 1
        return True

    def decode(self, denoising: Denoising) -> NDArray[np.uint8]:
        """The picture of the latents as they stand, [H, W, 3].

        Raises:
            OutOfMemoryError: the VAE does not fit, not even tile by tile.
        """
        params = denoising.params
        vae = self._pipeline.vae
        with torch.inference_mode(), memory_guard(params.width, params.height):
            latents = denoising.latents.to(vae.dtype) / vae.config.scaling_factor
            latents = latents + (vae.config.shift_factor or 0)
            try:
                with memory_guard(params.width, params.height):
                    image = vae.decode(latents, return_dict=False)[0]
            except OutOfMemoryError:
                image = None
            if image is None:
                with _tiles(vae, max(latents.shape[-2:]) // 2):
                    image = vae.decode(latents, return_dict=False)[0]
            image = (image * 0.5 + 0.5).clamp(0, 1)[0].permute(1, 2, 0).float()
            return (image * 255).round().to(torch.uint8).cpu().numpy()

    def paint(self, foreseen: Tensor) -> NDArray[np.uint8]:
        """What a step foresaw, [h, w, 3], no side longer than PREVIEW_SIDE.

        Raises:
            OutOfMemoryError: the first call runs the VAE, on a small picture.
        """
        with torch.inference_mode():
            if self._palette is None:
                pipeline = self._pipeline
                factor = pipeline.vae_scale_factor
                with memory_guard(SWATCH * factor, SWATCH * factor):
                    self._palette = fit_palette(pipeline.vae, factor, self._device)
            return paint(foreseen, self._palette, PREVIEW_SIDE).cpu().numpy()

    def warm(self) -> None:
        """One small picture in one step: the first call of each part pays for its set-up."""
        params = GenerationParams(
            prompt="warm",
            negative_prompt="",
            num_inference_steps=1,
            guidance_scale=2.0,
            width=8 * self._pipeline.vae_scale_factor,
            height=8 * self._pipeline.vae_scale_factor,
            seed=0,
            scheduler=defaults_of(self._kind).scheduler,
            num_images=1,
            format=ImageFormat.PNG,
        )
        denoising = self.begin(params, 0)
        while not denoising.is_done:
            self.step([denoising])
        self.decode(denoising)
        self._denoiser.forget()

    def _scheduler(self, name: str) -> Any:
        class_name, options = SCHEDULERS[name]
        return getattr(diffusers, class_name).from_config(
            self._pipeline.scheduler.config, **options
        )


@contextmanager
def _tiles(vae: Any, side: int) -> Generator[None]:
    """Have it decode tile by tile, of at most `side` latents.

    Its own tiles are as large as the native picture, which it would not cut.
    """
    latents, pixels = vae.tile_latent_min_size, vae.tile_sample_min_size
    side = max(4, min(side, latents) // 4 * 4)  # they overlap by a quarter, of whole latents
    vae.tile_latent_min_size, vae.tile_sample_min_size = side, side * pixels // latents
    vae.enable_tiling()
    try:
        yield
    finally:
        vae.disable_tiling()
        vae.tile_latent_min_size, vae.tile_sample_min_size = latents, pixels


def _foreseen(denoising: Denoising, output: Tensor) -> Tensor | None:
    """The picture to come, for a preview; None if it cannot be told. It never fails the job."""
    try:
        return foresee(denoising.scheduler, denoising.calls_done, denoising.latents, output)
    except Exception:
        log.exception("no preview with %s", type(denoising.scheduler).__name__)
        return None


def _guide(prediction: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance of one picture: [R, ...] -> [1, ...]."""
    if len(prediction) == 1:
        return prediction
    negative, positive = prediction.chunk(2)
    return negative + scale * (positive - negative)
