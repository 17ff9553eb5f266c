"""From the tensor names of the original layouts to those of diffusers' and transformers' modules.

UNet and VAE are renamed by diffusers; the text encoders here, where diffusers copies.
"""

from collections.abc import Mapping
from typing import Any

from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
)
from torch import Tensor

from sdserve.layout import GUIDANCE_EMBEDDING

State = dict[str, Tensor]

# open_clip's name of each part of a layer, and transformers'.
_LAYER_NAMES = (
    (".ln_1.", ".layer_norm1."),
    (".ln_2.", ".layer_norm2."),
    (".mlp.c_fc.", ".mlp.fc1."),
    (".mlp.c_proj.", ".mlp.fc2."),
    (".attn.", ".self_attn."),
)
_TOP_NAMES = {
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
}


def unet_state(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> State:
    """The state of a UNet2DConditionModel, from `model.diffusion_model.` tensors."""
    state = convert_ldm_unet_checkpoint(dict(tensors), dict(config))
    if GUIDANCE_EMBEDDING in tensors:  # diffusers 0.42 forgets it
        state["time_embedding.cond_proj.weight"] = tensors[GUIDANCE_EMBEDDING]
    return state


def vae_state(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> State:
    """The state of an AutoencoderKL, from `first_stage_model.` tensors or those of a bare VAE."""
    return convert_ldm_vae_checkpoint(dict(tensors), dict(config))


def text_state(tensors: Mapping[str, Tensor], prefix: str) -> State:
    """The state of a CLIP text encoder, from the tensors below a prefix.

    Its names begin with `text_model.`, as those of CLIPTextModelWithProjection do.
    """
    below = {name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)}
    if "positional_embedding" in below:
        return _open_clip_state(below)
    state = {name: t for name, t in below.items() if not name.endswith("position_ids")}
    return {
        name if name.startswith(("text_model.", "text_projection.")) else f"text_model.{name}": t
        for name, t in state.items()
    }


def _open_clip_state(tensors: Mapping[str, Tensor]) -> State:
    state: State = {}
    width = tensors["positional_embedding"].shape[-1]
    for name, tensor in tensors.items():
        if name in _TOP_NAMES:
            state[_TOP_NAMES[name]] = tensor
        elif name == "text_projection":
            state["text_projection.weight"] = tensor.T.contiguous()
        elif name.startswith("transformer.resblocks."):
            renamed = name.replace("transformer.resblocks.", "text_model.encoder.layers.")
            for old, new in _LAYER_NAMES:
                renamed = renamed.replace(old, new)
            layer, fused, leaf = renamed.partition("in_proj_")
            if fused:  # three matrices in one tensor; views of it, no copy
                for k, part in enumerate(("q_proj", "k_proj", "v_proj")):
                    state[f"{layer}{part}.{leaf}"] = tensor[k * width : (k + 1) * width]
            else:
                state[renamed] = tensor
    return state
