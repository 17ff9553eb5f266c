"""From the tensor names of the original layouts to those of diffusers' and transformers' modules.

UNet and VAE are renamed by diffusers; text encoders and transformers here, where diffusers copies.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
)
from torch import Tensor

from sdserve.layout import GUIDANCE_EMBEDDING, NETWORK

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
# SD 3's name of each module of its transformer, and diffusers'; `qkv` below are three in one.
_TRANSFORMER_NAMES = {
    "x_embedder.proj": "pos_embed.proj",
    "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
    "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
    "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
    "context_embedder": "context_embedder",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
}
_JOINT_BLOCK_NAMES = {
    "x_block.adaLN_modulation.1": "norm1.linear",
    "x_block.attn.ln_q": "attn.norm_q",
    "x_block.attn.ln_k": "attn.norm_k",
    "x_block.attn.proj": "attn.to_out.0",
    "x_block.attn2.ln_q": "attn2.norm_q",
    "x_block.attn2.ln_k": "attn2.norm_k",
    "x_block.attn2.proj": "attn2.to_out.0",
    "x_block.mlp.fc1": "ff.net.0.proj",
    "x_block.mlp.fc2": "ff.net.2",
    "context_block.adaLN_modulation.1": "norm1_context.linear",
    "context_block.attn.ln_q": "attn.norm_added_q",
    "context_block.attn.ln_k": "attn.norm_added_k",
    "context_block.attn.proj": "attn.to_add_out",
    "context_block.mlp.fc1": "ff_context.net.0.proj",
    "context_block.mlp.fc2": "ff_context.net.2",
}
_QKV_NAMES = {
    "x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
    "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
}


def unet_state(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> State:
    """The state of a UNet2DConditionModel, from `model.diffusion_model.` tensors."""
    state = convert_ldm_unet_checkpoint(dict(tensors), dict(config))
    if GUIDANCE_EMBEDDING in tensors:  # diffusers 0.42 forgets it
        state["time_embedding.cond_proj.weight"] = tensors[GUIDANCE_EMBEDDING]
    return state


def transformer_state(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> State:
    """The state of an SD3Transformer2DModel, from `model.diffusion_model.` tensors.

    A name that SD 3 does not have stays as it is.
    """
    last = f"transformer_blocks.{config['num_layers'] - 1}.norm1_context.linear."
    return {
        # These two give shift and scale in the original, scale and shift in diffusers.
        new: tensor.roll(len(tensor) // 2, 0) if new.startswith((last, "norm_out.")) else tensor
        for name, whole in tensors.items()
        for new, tensor in _transformer_tensors(name.removeprefix(NETWORK), whole)
    }


def _transformer_tensors(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The new name; several of them with views where the original fuses tensors."""
    module, _, leaf = name.rpartition(".")
    layer = re.fullmatch(r"joint_blocks\.(\d+)\.(.+)", module)
    if name == "pos_embed":
        yield "pos_embed.pos_embed", tensor
    elif layer is None:
        yield f"{_TRANSFORMER_NAMES.get(module, module)}.{leaf}", tensor
    else:
        block, part = f"transformer_blocks.{layer[1]}", layer[2]
        if part in _QKV_NAMES:
            for new, third in zip(_QKV_NAMES[part], tensor.chunk(3), strict=False):
                yield f"{block}.{new}.{leaf}", third
        else:
            yield f"{block}.{_JOINT_BLOCK_NAMES.get(part, part)}.{leaf}", tensor


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
