"""Step caching: a UNet whose inner part is computed only every few steps.

DeepCache (X. Ma, G. Fang, X. Wang, CVPR 2024, arXiv 2312.00858): from step to step the features
deep in a UNet change little. A full step keeps what enters the last stage of its last up block; the
steps after it compute only what lies around that: the first convolution, this stage, the output.
"""

from typing import Any

import torch
from torch import Tensor


def run_and_keep(unet: Any, *arguments: Any, **options: Any) -> tuple[Tensor, Tensor]:
    """The UNet's output [B, L, H/8, W/8], and the deep features that it came from.

    Args:
        unet: a UNet2DConditionModel.
        arguments: of its call.
        options: of its call.

    Returns:
        output, and features [B, C, H/8, W/8].
    """
    seen = list[Tensor]()

    def keep(_stage: object, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0])

    handle = unet.up_blocks[-1].resnets[-1].register_forward_pre_hook(keep)
    try:
        output: Tensor = unet(*arguments, **options, return_dict=False)[0]
    finally:
        handle.remove()
    (joined,) = seen  # the deep features, and the first convolution's beside them
    return output, joined[:, : -unet.conv_in.out_channels]


def run_shallow(
    unet: Any,
    deep: Tensor,
    sample: Tensor,
    timestep: Tensor,
    *,
    encoder_hidden_states: Tensor,
    timestep_cond: Tensor | None,
    added_cond_kwargs: dict[str, Tensor] | None,
) -> Tensor:
    """The UNet's output [B, L, H/8, W/8] with deep features [B, C, H/8, W/8] of an earlier step.

    With those of the same step it is the output of the whole UNet, bit for bit. The arguments are
    those of UNet2DConditionModel; so are the names and the order of what is done.
    """
    if hook := getattr(unet, "_hf_hook", None):  # offloaded: its own call would bring it here
        hook.pre_forward(unet)
    embedding = unet.time_embedding(
        unet.get_time_embed(sample=sample, timestep=timestep), timestep_cond
    )
    added = unet.get_aug_embed(
        emb=embedding,
        encoder_hidden_states=encoder_hidden_states,
        added_cond_kwargs=added_cond_kwargs,
    )
    if added is not None:
        embedding = embedding + added
    block = unet.up_blocks[-1]
    hidden = torch.cat([deep, unet.conv_in(sample)], dim=1)
    hidden = block.resnets[-1](hidden, embedding)
    if getattr(block, "has_cross_attention", False):
        hidden = block.attentions[-1](
            hidden, encoder_hidden_states=encoder_hidden_states, return_dict=False
        )[0]
    return unet.conv_out(unet.conv_act(unet.conv_norm_out(hidden)))
