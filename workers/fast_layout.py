"""The same network laid out for a GPU: other strides, joined matrices, rounded in another order.

Convolutions of half precision run on tensor cores in channels-last order, and one wide projection
keeps a GPU busier than three narrow ones. What is computed stays the same but for rounding.
"""

from typing import Any, cast

import torch
from diffusers.models.attention_processor import Attention, FusedAttnProcessor2_0
from torch import nn

from workers.denoising import Pipeline

# What a fused projection takes the place of, by its name.
_JOINED = {"to_qkv": ("to_q", "to_k", "to_v"), "to_kv": ("to_k", "to_v")}


def lay_out(pipeline: Pipeline) -> None:
    """Rearrange the UNet and the VAE of a pipeline, in place.

    A transformer (SD 3) stays as it is: it has no convolutions, and diffusers' joined projections
    know neither its normalised queries nor its second attention.
    """
    parts: Any = pipeline
    for part in (getattr(parts, "unet", None), parts.vae):
        if part is not None:
            _join_projections(part)
            part.to(memory_format=torch.channels_last)


def _join_projections(part: nn.Module) -> None:
    """Query, key and value in one product; each attention's own matrices go at once."""
    for module in part.modules():
        if isinstance(module, Attention):
            attention = cast(Any, module)
            attention.fuse_projections()
            for joined, names in _JOINED.items():
                if hasattr(attention, joined):
                    for name in names:
                        setattr(attention, name, None)
            attention.set_processor(FusedAttnProcessor2_0())
    part.requires_grad_(requires_grad=False)
