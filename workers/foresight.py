"""What a picture will look like, long before it is drawn: small, by a matrix, for next to nothing.

After each step the network's output tells the noise that is left; without it the latents are those
of the picture as foreseen now. Their channels are nearly linear in the colours of the pixels that
they stand for, so one small matrix shows them. The matrix is fitted to the checkpoint's own VAE: a
retrained VAE shows its own colours, and no family needs a table.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

LEAST_SIGNAL = 1e-3  # of pure noise nothing can be told, but it can be shown
SWATCHES = 4  # pictures that the matrix is fitted to
SWATCH = 16  # latent pixels a side: 4 x 16 x 16 samples for at most 17 x 3 numbers


def foresee(scheduler: Any, call: int, latents: Tensor, output: Tensor) -> Tensor:
    """The latents without their noise, [1, L, H/8, W/8].

    Args:
        scheduler: of the picture, before its step number `call`.
        call: of the network, from 0.
        latents: that the network was given, [1, L, H/8, W/8].
        output: of the network, with guidance, like the latents.
    """
    # Only flow matching schedulers have no choice, and so no such entry.
    prediction = scheduler.config.get("prediction_type", "flow_prediction")
    if prediction == "flow_prediction":  # in a straight line: x = (1 - sigma) x0 + sigma e
        return latents - float(scheduler.sigmas[call]) * output
    if float(scheduler.init_noise_sigma) == 1.0:  # variance preserving: x = a x0 + s e
        squared = float(scheduler.alphas_cumprod[int(scheduler.timesteps[call])])
        a, s = squared**0.5, (1 - squared) ** 0.5
        if prediction == "v_prediction":  # Salimans and Ho, arXiv 2202.00512
            return a * latents - s * output  # also where a = 0: pure noise, at zero terminal SNR
        return (latents - s * output) / max(a, LEAST_SIGNAL)
    # Variance exploding, as Karras et al. (arXiv 2206.00364) write it: x = x0 + sigma e.
    sigma = float(scheduler.sigmas[call])
    if prediction == "v_prediction":
        return latents / (sigma**2 + 1) - output * sigma / (sigma**2 + 1) ** 0.5
    return latents - sigma * output


def fit_palette(vae: Any, factor: int, device: torch.device) -> Tensor:
    """The matrix from latents to colours, [L + 1, 3] float32, on device; its last row is added.

    Args:
        vae: an AutoencoderKL.
        factor: pixels of a latent pixel's side.
        device: of the VAE.
    """
    generator = torch.Generator("cpu").manual_seed(0)  # the same matrix whenever it is fitted
    # Soft colours, coarse and fine, with a few hard edges: what pictures are made of.
    shape, side = (SWATCHES, 3), SWATCH * factor
    swatches = torch.zeros(*shape, side, side)
    for grid, weight in ((2, 1.0), (5, 0.8), (SWATCH, 0.4)):
        colours = torch.rand(*shape, grid, grid, generator=generator) * 2 - 1
        swatches += weight * functional.interpolate(colours, size=(side, side), mode="bilinear")
    half = side // 2
    swatches[:, :, :half, half:] = torch.rand(*shape, 1, 1, generator=generator) * 2 - 1
    given = swatches.clamp(-1, 1).to(device, vae.dtype)
    encoded = vae.encode(given).latent_dist.mode()
    drawn = functional.avg_pool2d(vae.decode(encoded, return_dict=False)[0].float(), factor)
    shift = vae.config.shift_factor or 0
    latents = (encoded.float() - shift) * vae.config.scaling_factor
    samples = _with_constant(latents).flatten(0, 2).cpu()
    colours = drawn.permute(0, 2, 3, 1).flatten(0, 2).cpu()
    return torch.linalg.lstsq(samples, colours).solution.to(device)


def paint(latents: Tensor, palette: Tensor, side: int) -> Tensor:
    """A small picture of latents [1, L, H/8, W/8]: [h, w, 3] uint8, no side longer than `side`."""
    shrink = -(-max(latents.shape[2:]) // side)
    if shrink > 1:
        latents = functional.avg_pool2d(latents.float(), shrink, ceil_mode=True)
    colours = _with_constant(latents.float())[0] @ palette
    return ((colours * 0.5 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)


def _with_constant(latents: Tensor) -> Tensor:
    """[B, L, h, w] -> [B, h, w, L + 1]."""
    rows = latents.permute(0, 2, 3, 1)
    return functional.pad(rows, (0, 1), value=1.0)
