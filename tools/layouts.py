"""The tensor names and shapes of the original single-file layouts, from a model's dimensions.

Written from the layouts' own code, not from diffusers' converter, which it thereby checks:
CompVis/latent-diffusion `openaimodel.py` and `model.py`, Stability-AI/generative-models,
Stability-AI/sd3.5 `mmditx.py`, openai/CLIP as transformers names it, mlfoundations/open_clip.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Shapes = dict[str, tuple[int, ...]]

_VOCABULARY, _POSITIONS = 49408, 77


@dataclass(frozen=True)
class _Prefix:
    """Collects the tensors below a name."""

    name: str
    shapes: Shapes

    def __truediv__(self, part: str | int) -> "_Prefix":
        return _Prefix(f"{self.name}.{part}" if self.name else str(part), self.shapes)

    def tensor(self, part: str, *shape: int) -> None:
        self.shapes[(self / part).name] = shape

    def linear(self, part: str | int, inputs: int, outputs: int, *, bias: bool = True) -> None:
        (self / part).tensor("weight", outputs, inputs)
        if bias:
            (self / part).tensor("bias", outputs)

    def norm(self, part: str | int, width: int) -> None:
        (self / part).tensor("weight", width)
        (self / part).tensor("bias", width)

    def conv(self, part: str | int, inputs: int, outputs: int, size: int = 3) -> None:
        (self / part).tensor("weight", outputs, inputs, size, size)
        (self / part).tensor("bias", outputs)


def unet(config: Mapping[str, Any]) -> Shapes:
    """`model.diffusion_model.` of a UNet2DConditionModel configuration."""
    root = _Prefix("model.diffusion_model", {})
    widths: list[int] = config["block_out_channels"]
    _embeddings(root, config, widths[0])
    kept = _input_blocks(root, config)
    _resnet(root / "middle_block.0", widths[-1], widths[-1], 4 * widths[0])
    _transformer(root / "middle_block.1", len(widths) - 1, config)
    _resnet(root / "middle_block.2", widths[-1], widths[-1], 4 * widths[0])
    _output_blocks(root, config, kept)
    root.norm("out.0", widths[0])
    root.conv("out.2", widths[0], config["out_channels"])
    return root.shapes


def _embeddings(root: _Prefix, config: Mapping[str, Any], width: int) -> None:
    time = 4 * width
    root.linear("time_embed.0", width, time)
    root.linear("time_embed.2", time, time)
    if config.get("time_cond_proj_dim"):
        root.linear("time_embed.cond_proj", config["time_cond_proj_dim"], width, bias=False)
    if config.get("addition_embed_type"):
        root.linear("label_emb.0.0", config["projection_class_embeddings_input_dim"], time)
        root.linear("label_emb.0.2", time, time)


def _input_blocks(root: _Prefix, config: Mapping[str, Any]) -> list[int]:
    """Returns the widths of what the output blocks get over the skip connections."""
    widths: list[int] = config["block_out_channels"]
    width = widths[0]
    root.conv("input_blocks.0.0", config["in_channels"], width)
    kept = [width]
    for level, out in enumerate(widths):
        for _ in range(config["layers_per_block"]):
            block = root / "input_blocks" / len(kept)
            _resnet(block / 0, width, out, 4 * widths[0])
            if "CrossAttn" in config["down_block_types"][level]:
                _transformer(block / 1, level, config)
            width = out
            kept.append(width)
        if level < len(widths) - 1:
            (root / "input_blocks" / len(kept) / 0).conv("op", width, width)
            kept.append(width)
    return kept


def _output_blocks(root: _Prefix, config: Mapping[str, Any], kept: list[int]) -> None:
    widths: list[int] = config["block_out_channels"]
    layers = config["layers_per_block"] + 1
    width, count = widths[-1], len(kept)
    while kept:
        block = count - len(kept)
        level = len(widths) - 1 - block // layers
        at = root / "output_blocks" / block
        attends = "CrossAttn" in config["down_block_types"][level]
        _resnet(at / 0, width + kept.pop(), widths[level], 4 * widths[0])
        width = widths[level]
        if attends:
            _transformer(at / 1, level, config)
        if level and block % layers == layers - 1:
            (at / (2 if attends else 1)).conv("conv", width, width)


def _resnet(at: _Prefix, inputs: int, outputs: int, time: int) -> None:
    at.norm("in_layers.0", inputs)
    at.conv("in_layers.2", inputs, outputs)
    at.linear("emb_layers.1", time, outputs)
    at.norm("out_layers.0", outputs)
    at.conv("out_layers.3", outputs, outputs)
    if inputs != outputs:
        at.conv("skip_connection", inputs, outputs, size=1)


def _transformer(at: _Prefix, level: int, config: Mapping[str, Any]) -> None:
    width: int = config["block_out_channels"][level]
    depths = config.get("transformer_layers_per_block", 1)
    depth: int = depths if isinstance(depths, int) else depths[level]
    is_linear = config.get("use_linear_projection", False)
    at.norm("norm", width)
    for projection in ("proj_in", "proj_out"):
        if is_linear:
            at.linear(projection, width, width)
        else:
            at.conv(projection, width, width, size=1)
    for block in (at / "transformer_blocks" / k for k in range(depth)):
        for name, context in (("attn1", width), ("attn2", config["cross_attention_dim"])):
            block.linear(f"{name}.to_q", width, width, bias=False)
            block.linear(f"{name}.to_k", context, width, bias=False)
            block.linear(f"{name}.to_v", context, width, bias=False)
            block.linear(f"{name}.to_out.0", width, width)
        block.linear("ff.net.0.proj", width, 8 * width)
        block.linear("ff.net.2", 4 * width, width)
        for norm in ("norm1", "norm2", "norm3"):
            block.norm(norm, width)


def mmdit(config: Mapping[str, Any]) -> Shapes:
    """`model.diffusion_model.` of an SD3Transformer2DModel configuration."""
    root = _Prefix("model.diffusion_model", {})
    width: int = config["num_attention_heads"] * config["attention_head_dim"]
    patch: int = config["patch_size"]
    layers: int = config["num_layers"]
    root.tensor("pos_embed", 1, config["pos_embed_max_size"] ** 2, width)
    root.conv("x_embedder.proj", config["in_channels"], width, size=patch)
    root.linear("context_embedder", config["joint_attention_dim"], width)
    for embedder, inputs in (("t_embedder", 256), ("y_embedder", config["pooled_projection_dim"])):
        root.linear(f"{embedder}.mlp.0", inputs, width)
        root.linear(f"{embedder}.mlp.2", width, width)
    for layer in range(layers):
        block = root / "joint_blocks" / layer
        has_dual = layer in config["dual_attention_layers"]
        _mmdit_block(block / "x_block", width, config, modulations=9 if has_dual else 6)
        if has_dual:
            _mmdit_attention(block / "x_block.attn2", width, config)
        # What the last layer makes of the prompt goes nowhere: its attention only reads it.
        is_last = layer == layers - 1
        _mmdit_block(block / "context_block", width, config, modulations=2 if is_last else 6)
    root.linear("final_layer.adaLN_modulation.1", width, 2 * width)
    root.linear("final_layer.linear", width, patch * patch * config["out_channels"])
    return root.shapes


def _mmdit_block(at: _Prefix, width: int, config: Mapping[str, Any], *, modulations: int) -> None:
    is_whole = modulations > 2
    at.linear("adaLN_modulation.1", width, modulations * width)
    _mmdit_attention(at / "attn", width, config, projects=is_whole)
    if is_whole:
        at.linear("mlp.fc1", width, 4 * width)
        at.linear("mlp.fc2", 4 * width, width)


def _mmdit_attention(
    at: _Prefix, width: int, config: Mapping[str, Any], *, projects: bool = True
) -> None:
    at.linear("qkv", width, 3 * width)
    if config["qk_norm"]:
        for norm in ("ln_q", "ln_k"):
            at.tensor(f"{norm}.weight", config["attention_head_dim"])
    if projects:
        at.linear("proj", width, width)


def vae(config: Mapping[str, Any], prefix: str = "first_stage_model") -> Shapes:
    """An AutoencoderKL configuration."""
    root = _Prefix(prefix, {})
    widths: list[int] = config["block_out_channels"]
    latent, last = config["latent_channels"], widths[-1]
    encoder, decoder = root / "encoder", root / "decoder"
    encoder.conv("conv_in", config["in_channels"], widths[0])
    _vae_encoder(encoder, widths, config["layers_per_block"])
    decoder.conv("conv_in", latent, last)
    _vae_decoder(decoder, widths, config["layers_per_block"] + 1)
    for half in (encoder, decoder):
        for block in ("block_1", "block_2"):
            _vae_resnet(half / "mid" / block, last, last)
        (half / "mid.attn_1").norm("norm", last)
        for part in ("q", "k", "v", "proj_out"):
            (half / "mid.attn_1").conv(part, last, last, size=1)
    encoder.norm("norm_out", last)
    encoder.conv("conv_out", last, 2 * latent)
    decoder.norm("norm_out", widths[0])
    decoder.conv("conv_out", widths[0], config["out_channels"])
    if config.get("use_quant_conv", True):
        root.conv("quant_conv", 2 * latent, 2 * latent, size=1)
    if config.get("use_post_quant_conv", True):
        root.conv("post_quant_conv", latent, latent, size=1)
    return root.shapes


def _vae_encoder(encoder: _Prefix, widths: list[int], layers: int) -> None:
    width = widths[0]
    for level, out in enumerate(widths):
        for layer in range(layers):
            _vae_resnet(encoder / "down" / level / "block" / layer, width, out)
            width = out
        if level < len(widths) - 1:
            encoder.conv(f"down.{level}.downsample.conv", width, width)


def _vae_decoder(decoder: _Prefix, widths: list[int], layers: int) -> None:
    width = widths[-1]
    for level, out in reversed(list(enumerate(widths))):
        for layer in range(layers):
            _vae_resnet(decoder / "up" / level / "block" / layer, width, out)
            width = out
        if level:
            decoder.conv(f"up.{level}.upsample.conv", width, width)


def _vae_resnet(at: _Prefix, inputs: int, outputs: int) -> None:
    at.norm("norm1", inputs)
    at.conv("conv1", inputs, outputs)
    at.norm("norm2", outputs)
    at.conv("conv2", outputs, outputs)
    if inputs != outputs:
        at.conv("nin_shortcut", inputs, outputs, size=1)


def clip(config: Mapping[str, Any], prefix: str) -> Shapes:
    """A CLIP text encoder in the layout of transformers."""
    root = _Prefix(f"{prefix}.text_model", {})
    width, inner = config["hidden_size"], config["intermediate_size"]
    root.tensor("embeddings.token_embedding.weight", _VOCABULARY, width)
    root.tensor("embeddings.position_embedding.weight", _POSITIONS, width)
    for layer in (root / "encoder.layers" / k for k in range(config["num_hidden_layers"])):
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            layer.linear(f"self_attn.{part}", width, width)
        layer.norm("layer_norm1", width)
        layer.norm("layer_norm2", width)
        layer.linear("mlp.fc1", width, inner)
        layer.linear("mlp.fc2", inner, width)
    root.norm("final_layer_norm", width)
    return root.shapes


def projected_clip(config: Mapping[str, Any], prefix: str) -> Shapes:
    """A CLIP text encoder with its projection in the layout of transformers, as in SD 3."""
    root = _Prefix(prefix, clip(config, f"{prefix}.transformer"))
    root.linear(
        "transformer.text_projection", config["hidden_size"], config["projection_dim"], bias=False
    )
    root.tensor("logit_scale")
    return root.shapes


def open_clip(config: Mapping[str, Any], prefix: str, *, unused_layers: int) -> Shapes:
    """A CLIP text encoder in the layout of open_clip; SD 2 files carry one layer that is unused."""
    root = _Prefix(prefix, {})
    width, inner = config["hidden_size"], config["intermediate_size"]
    root.tensor("positional_embedding", _POSITIONS, width)
    root.tensor("text_projection", width, config["projection_dim"])
    root.tensor("logit_scale")
    root.tensor("token_embedding.weight", _VOCABULARY, width)
    blocks = range(config["num_hidden_layers"] + unused_layers)
    for block in (root / "transformer.resblocks" / k for k in blocks):
        block.tensor("attn.in_proj_weight", 3 * width, width)
        block.tensor("attn.in_proj_bias", 3 * width)
        block.linear("attn.out_proj", width, width)
        block.norm("ln_1", width)
        block.norm("ln_2", width)
        block.linear("mlp.c_fc", width, inner)
        block.linear("mlp.c_proj", inner, width)
    root.norm("ln_final", width)
    return root.shapes


def ema(shapes: Shapes) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The averaged copy of a UNet that files from training carry; its names have no dots."""
    for name, shape in shapes.items():
        yield "model_ema." + name.removeprefix("model.").replace(".", ""), shape
