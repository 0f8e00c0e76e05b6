"""Weights under their published names (VAR's tokenizer and transformer, RestoreVAR's checkpoints), both ways."""

from __future__ import annotations

import math
import os
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from restorevar.errors import UserError
from restorevar.models.config import RefinerConfig, RestoreVARConfig, TokenizerConfig, TransformerConfig
from restorevar.models.restorevar import RestoreVAR
from restorevar.models.rotary import rotary_table
from restorevar.models.scales import ScaleSchedule

__all__ = ["initialize_from_var", "load_published", "published_names", "read_weights", "to_published"]

Source = str | os.PathLike[str] | Mapping[str, Tensor]

# Tables that follow from the sizes: ignored whether present or absent
TABLES = re.compile(r"(^|\.)(attn_bias_for_masking|freqs_cis\w*|lvl_1L|lvl_1L_cond|zero_k_bias|ema_vocab_hit_SV)$")
# What VAR has and RestoreVAR drops, and what VAR lacks
VAR_DROPPED = re.compile(r"^(pos_start|pos_1LC|head_nm\..*|blocks\.\d+\.ada_lin\..*|shared_ada_lin\..*)$")
VAR_LACKING = re.compile(r"(^|\.)(cross|condition_\w+|global_\w+)(\.|$)")


def read_weights(source: Source, what: str = "weights") -> dict[str, Tensor]:
    """State dict of a file, or the mapping itself; nested training checkpoints are unwrapped.

    Args:
        source: A ``.safetensors`` file, a torch checkpoint (read with ``weights_only``), or a state dict.
        what: Name of the thing in error messages.

    Raises:
        UserError: If the file does not exist, cannot be read safely, or holds no tensors.
    """
    if isinstance(source, Mapping):
        return _unwrap(dict(source), what, "the given state dict")
    path = Path(source)
    if not path.is_file():
        beside = sorted(p.name for p in path.parent.glob("*") if p.suffix in (".pth", ".pt", ".ckpt", ".safetensors"))
        raise UserError(f"no {what} file at {path}; weights files in that folder: {', '.join(beside[:8]) or 'none'}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        values = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        if named is None:
            raise UserError(f"{path} cannot be read as {what}; is it a weights file, and complete?") from error
        raise UserError(
            f"{path} holds more than tensors ('{named[1]}') and was not loaded, since it could run code; "
            "ask for a safetensors file or a plain state dict"
        ) from error
    except Exception as error:
        raise UserError(f"{path} cannot be read as {what} ({type(error).__name__}); is the file complete?") from error
    return _unwrap(values, what, str(path))


def _unwrap(values: object, what: str, where: str) -> dict[str, Tensor]:
    for key in ("trainer", "var_wo_ddp", "state_dict"):
        if isinstance(values, dict) and isinstance(values.get(key), dict):
            values = values[key]
    if not isinstance(values, dict) or not values or not all(isinstance(value, Tensor) for value in values.values()):
        raise UserError(f"{where} is not a state dict of {what}; expected names with tensors")
    return values


PUBLISHED_SETTINGS = {
    "tokenizer": ("stem_patch", "norm_groups", "phi_identity", "phi_convolution", "linear_path"),
    "transformer": ("rotary_base", "local_condition", "mean_scales"),
    "refiner": ("kind",),
}
"""Settings of each part that the published model fixes, at our defaults."""


def unpublished_settings(config: RestoreVARConfig) -> list[str]:
    """What a model has that the published one has not: settings as ``part.name``, ``detail``, ``gate``."""
    found = [part for part in ("detail", "gate") if getattr(config, part) is not None]
    for part, names in PUBLISHED_SETTINGS.items():
        chosen = getattr(config, part)
        for name in names if chosen is not None else ():
            if getattr(chosen, name) != getattr(type(chosen)(), name):
                found.append(f"{part}.{name}")
    return found


def published_names(config: RestoreVARConfig) -> dict[str, str]:
    """Table of names: ours -> published, for every weight of a model of these sizes.

    Raises:
        UserError: If the model has parts or settings that the published one has not.
    """
    if found := unpublished_settings(config):
        raise UserError(
            f"found a model with {', '.join(found)}, which has no published form; only the paper's converts"
        )
    names = _tokenizer_names(config.tokenizer)
    if config.transformer is not None:
        names |= _transformer_names(config.transformer)
    if config.refiner is not None:
        names |= _refiner_names(config.refiner)
    return names


def _pairs(ours: str, published: str, leaves: Sequence[str] = ("weight", "bias")) -> dict[str, str]:
    return {f"{ours}.{leaf}": f"{published}.{leaf}" for leaf in leaves}


def _residual_names(ours: str, published: str, shortcut: bool) -> dict[str, str]:
    names: dict[str, str] = {}
    for layer in ("norm1", "conv1", "norm2", "conv2"):
        names |= _pairs(f"{ours}.{layer}", f"{published}.{layer}")
    return names | (_pairs(f"{ours}.shortcut", f"{published}.nin_shortcut") if shortcut else {})


def _attention_names(ours: str, published: str) -> dict[str, str]:
    return (
        _pairs(f"{ours}.norm", f"{published}.norm")
        | _pairs(f"{ours}.qkv", f"{published}.qkv")
        | _pairs(f"{ours}.out", f"{published}.proj_out")
    )


def _tokenizer_names(config: TokenizerConfig) -> dict[str, str]:
    names: dict[str, str] = {}
    widths = config.level_channels
    last = len(widths) - 1
    for half, blocks, levels in (
        ("encoder", config.encoder_blocks, range(len(widths))),
        ("decoder", config.decoder_blocks, reversed(range(len(widths)))),
    ):
        theirs = {"encoder": "down", "decoder": "up"}[half]
        before = widths[0] if half == "encoder" else widths[-1]
        for outer in ("conv_in", "norm_out", "conv_out"):
            names |= _pairs(f"tokenizer.{half}.{outer}", f"{half}.{outer}")
        middle = (("block_1", False), ("attn_1", True), ("block_2", False))
        parts = [part for part in middle if config.attention or not part[1]]
        for index, (part, is_attention) in enumerate(parts):
            ours, published = f"tokenizer.{half}.middle.{index}", f"{half}.mid.{part}"
            names |= _attention_names(ours, published) if is_attention else _residual_names(ours, published, False)
        for level in levels:
            attention = config.attention and level == last
            for block in range(blocks):
                place = f"tokenizer.{half}.levels.{level}"
                index = 2 * block if attention else block
                names |= _residual_names(
                    f"{place}.{index}", f"{half}.{theirs}.{level}.block.{block}", before != widths[level]
                )
                if attention:
                    names |= _attention_names(f"{place}.{index + 1}", f"{half}.{theirs}.{level}.attn.{block}")
                before = widths[level]
            if half == "encoder" and level < last:
                names |= _pairs(f"tokenizer.encoder.downsamples.{level}.conv", f"encoder.down.{level}.downsample.conv")
            if half == "decoder" and level > 0:
                names |= _pairs(f"tokenizer.decoder.upsamples.{level - 1}.conv", f"decoder.up.{level}.upsample.conv")
    for index in range(config.phi_count):
        names |= _pairs(f"tokenizer.quantizer.phi.{index}", f"quantize.quant_resi.qresi_ls.{index}")
    names["tokenizer.quantizer.codebook.weight"] = "quantize.embedding.weight"
    names |= _pairs("tokenizer.quant_conv", "quant_conv")
    return names | _pairs("tokenizer.post_quant_conv", "post_quant_conv")


def _transformer_names(config: TransformerConfig) -> dict[str, str]:
    names = _pairs("transformer.word_embed", "word_embed") | _pairs("transformer.head", "head")
    names |= _pairs("transformer.condition_project", "cond_proj4")
    names |= _pairs("transformer.condition_embed", "word_embed_cond")
    names |= _pairs("transformer.global_embed", "global_embed")
    names |= {
        "transformer.class_embed.weight": "class_emb.weight",
        "transformer.level_embed.weight": "lvl_embed.weight",
        "transformer.condition_level_embed": "lvl_embed_cond.weight",
        "transformer.global_gain": "global_embed_gain",
    }
    for block in range(config.depth):
        ours, published = f"transformer.blocks.{block}", f"blocks.{block}"
        names |= {
            f"{ours}.attention.qkv.weight": f"{published}.attn.mat_qkv.weight",
            f"{ours}.attention.query_bias": f"{published}.attn.q_bias",
            f"{ours}.attention.value_bias": f"{published}.attn.v_bias",
            f"{ours}.attention.scale.log_scale": f"{published}.attn.scale_mul_1H11",
            f"{ours}.cross.query.weight": f"{published}.cross_attn.q_proj.weight",
            f"{ours}.cross.key_value.weight": f"{published}.cross_attn.kv_proj.weight",
            f"{ours}.cross.scale.log_scale": f"{published}.cross_attn.scale_mul_1H11",
            f"{ours}.cross.gain": f"{published}.cross_attn.gain",
        }
        names |= _pairs(f"{ours}.attention.out", f"{published}.attn.proj")
        names |= _pairs(f"{ours}.mlp.fc1", f"{published}.ffn.fc1") | _pairs(f"{ours}.mlp.fc2", f"{published}.ffn.fc2")
        names |= _pairs(f"{ours}.cross.out", f"{published}.cross_attn.out_proj")
        names |= _pairs(f"{ours}.cross.norm_query", f"{published}.cross_attn.norm_q")
        names |= _pairs(f"{ours}.cross.norm_condition", f"{published}.cross_attn.norm_kv")
    return names


def _refiner_names(config: RefinerConfig) -> dict[str, str]:
    names = {
        "refiner.latent_position": "vae_refiner.pos_embedding",
        "refiner.hidden_position": "vae_refiner.pos_embedding_cond",
        "refiner.project_latent.weight": "vae_refiner.proj_in.weight",
        "refiner.project_hidden.weight": "vae_refiner.proj_in_cond.weight",
        "refiner.project_out.weight": "vae_refiner.proj_out.weight",
    }
    names |= _pairs("refiner.norm_latent", "vae_refiner.norm_in")
    names |= _pairs("refiner.norm_hidden", "vae_refiner.norm_in_cond")
    names |= _pairs("refiner.norm_out", "vae_refiner.transformer.norm")
    for layer in range(config.depth):
        ours, published = f"refiner.layers.{layer}", f"vae_refiner.transformer.layers.{layer}"
        names |= _pairs(f"{ours}.attention.norm", f"{published}.0.norm")
        names |= _pairs(f"{ours}.attention.qkv", f"{published}.0.to_qkv", ["weight"])
        names |= _pairs(f"{ours}.attention.out", f"{published}.0.to_out.0")
        names |= _pairs(f"{ours}.mlp.norm", f"{published}.1.net.0")
        names |= _pairs(f"{ours}.mlp.fc1", f"{published}.1.net.1") | _pairs(f"{ours}.mlp.fc2", f"{published}.1.net.4")
        names |= _pairs(f"{ours}.cross.norm_query", f"{published}.2.norm_q")
        names |= _pairs(f"{ours}.cross.norm_hidden", f"{published}.2.norm_kv")
        names |= _pairs(f"{ours}.cross.query", f"{published}.2.to_q", ["weight"])
        names |= _pairs(f"{ours}.cross.key_value", f"{published}.2.to_kv", ["weight"])
        names |= _pairs(f"{ours}.cross.out", f"{published}.2.to_out")
    return names


def _count(weights: Mapping[str, Tensor], pattern: str) -> int:
    found = [int(match.group(1)) for name in weights if (match := re.match(pattern, name))]
    return max(found) + 1 if found else 0


def _need(weights: Mapping[str, Tensor], name: str, what: str) -> Tensor:
    if name not in weights:
        some = ", ".join(list(weights)[:3])
        raise UserError(f"the {what} weights lack '{name}', which their sizes are read from (found: {some} ...)")
    return weights[name]


def _infer_tokenizer(weights: Mapping[str, Tensor]) -> TokenizerConfig:
    what = "tokenizer"
    base = _need(weights, "encoder.conv_in.weight", what).shape[0]
    levels = _count(weights, r"encoder\.down\.(\d+)\.")
    channels = [_need(weights, f"encoder.down.{level}.block.0.conv1.weight", what).shape[0] for level in range(levels)]
    codebook = _need(weights, "quantize.embedding.weight", what)
    return TokenizerConfig(
        base_channels=base,
        channel_multipliers=tuple(width // base for width in channels),
        encoder_blocks=_count(weights, r"encoder\.down\.0\.block\.(\d+)\."),
        decoder_blocks=_count(weights, r"decoder\.up\.0\.block\.(\d+)\."),
        latent_channels=codebook.shape[1],
        vocabulary_size=codebook.shape[0],
        attention=any(name.startswith("encoder.mid.attn_1.") for name in weights),
        phi_count=_count(weights, r"quantize\.quant_resi\.qresi_ls\.(\d+)\."),
    )


def _infer_transformer(weights: Mapping[str, Tensor]) -> TransformerConfig:
    what = "transformer"
    class_count, width = _need(weights, "class_emb.weight", what).shape
    return TransformerConfig(
        depth=_count(weights, r"blocks\.(\d+)\."),
        width=width,
        heads=_need(weights, "blocks.0.attn.scale_mul_1H11", what).numel(),
        mlp_ratio=_need(weights, "blocks.0.ffn.fc1.weight", what).shape[0] / width,
        class_count=class_count,
    )


def _infer_refiner(weights: Mapping[str, Tensor], heads: int | None) -> RefinerConfig | None:
    if not any(name.startswith("vae_refiner.") for name in weights):
        return None
    width = _need(weights, "vae_refiner.pos_embedding", "refiner").shape[-1]
    if heads is None and width % 64:
        raise UserError(
            f"the refiner's width {width} does not tell its heads (64 a head as published); give refiner_heads"
        )
    return RefinerConfig(
        width=width,
        heads=width // 64 if heads is None else heads,
        mlp_width=_need(weights, "vae_refiner.transformer.layers.0.1.net.1.weight", "refiner").shape[0],
        depth=_count(weights, r"vae_refiner\.transformer\.layers\.(\d+)\."),
    )


def _infer_scales(weights: Mapping[str, Tensor]) -> tuple[int, ...]:
    if "lvl_1L" not in weights:
        raise UserError(
            "the weights hold no table 'lvl_1L' to read the scales from; give scales, e.g. 1,2,3,4,6,9,13,18,24,32"
        )
    counts = [int(count) for count in torch.bincount(weights["lvl_1L"].flatten().long())]
    sides = tuple(math.isqrt(count) for count in counts)
    if any(side * side != count for side, count in zip(sides, counts, strict=True)):
        raise UserError(
            f"the scales of these weights are not square ({counts} tokens); give scales as height and width"
        )
    return sides


def load_published(
    tokenizer: Source,
    transformer: Source | None = None,
    refiner_heads: int | None = None,
    scales: Sequence[int | Sequence[int]] | None = None,
) -> RestoreVAR:
    """Builds a model from files or state dicts under the published names; sizes are read from the shapes.

    Args:
        tokenizer: ``vae_ch160v4096z32.pth``, ``vae_restorevar.ckpt`` or alike.
        transformer: ``restorevar.pth`` or alike, with or without the refiner; None builds a tokenizer only.
        refiner_heads: Attention heads of the refiner; None is 64 channels a head.
        scales: The schedule; None reads it from the transformer's ``lvl_1L``.

    Returns:
        The model in float32 on the CPU, in evaluation mode.

    Raises:
        UserError: If a file cannot be read safely, a name is missing or left over, or a shape is wrong.
    """
    weights = read_weights(tokenizer, "tokenizer")
    tokenizer_config = _infer_tokenizer(weights)
    transformer_config = refiner_config = None
    if transformer is not None:
        transformer_weights = read_weights(transformer, "transformer")
        if any(VAR_DROPPED.match(name) for name in transformer_weights):
            raise UserError(
                "these are weights of VAR, not of RestoreVAR (they carry adaptive norms and position embeddings); "
                "use them as `initial_weights` of stage 2"
            )
        transformer_config = _infer_transformer(transformer_weights)
        refiner_config = _infer_refiner(transformer_weights, refiner_heads)
        scales = scales or _infer_scales(transformer_weights)
        weights = weights | transformer_weights
    if scales is None:
        raise UserError("a tokenizer file alone does not tell its scales; give scales, e.g. 1,2,3,4,6,9,13,18,24,32")
    config = RestoreVARConfig(
        scales=tuple(size if isinstance(size, int) else (size[0], size[1]) for size in scales),
        tokenizer=tokenizer_config,
        transformer=transformer_config,
        refiner=refiner_config,
    )
    names = published_names(config)
    model = RestoreVAR(config, initialize=False)
    files = {"tokenizer": _label(tokenizer), "": _label(transformer or tokenizer)}
    advice = "fetch the file again, or give the one that belongs here; correct the scales if you gave them"
    _load_strictly(model.state_dict(), weights, names, files, advice)
    model.rebuild_tables()
    return model.eval()


def _label(source: Source) -> str:
    return "the given state dict" if isinstance(source, Mapping) else os.fspath(source)


def _load_strictly(
    ours: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    names: Mapping[str, str],
    files: Mapping[str, str],
    advice: str,
) -> None:
    """Copies published weights into our tensors, all of them or none.

    Args:
        ours: Our tensors by our names.
        weights: Weights by published names; tables are passed over.
        names: Our names to published ones.
        files: Where the weights of the tokenizer are from and, under "", all others.
        advice: What to do where they do not fit.

    Raises:
        UserError: If a name is missing or left over, or a shape is another one but for axes of size 1.
    """
    published = set(names.values())
    missing = sorted(published - set(weights))
    left_over = sorted(name for name in weights if name not in published and not TABLES.search(name))
    if missing or left_over:
        parts = [
            f"{len(some)} {label}: {', '.join(some[:3])}{' ...' if len(some) > 3 else ''}"
            for label, some in (("missing", missing), ("left over", left_over))
            if some
        ]
        where = " and ".join(dict.fromkeys(files.values()))
        raise UserError(
            f"{where}: weights do not fit the model; {'; '.join(parts)}. Expected the published names exactly: {advice}"
        )
    for name, tensor in ours.items():
        given = weights[names[name]]
        if _without_ones(given) != _without_ones(tensor):
            file = files.get(name.partition(".")[0], files[""])
            raise UserError(
                f"{file}: weight '{names[name]}' has shape {tuple(given.shape)}; "
                f"expected {_published_shape(names[name], tensor)}: {advice}"
            )
    for name, tensor in ours.items():
        tensor.copy_(weights[names[name]].reshape(tensor.shape))


def _without_ones(tensor: Tensor) -> list[int]:
    return [size for size in tensor.shape if size != 1]


def _published_shape(name: str, tensor: Tensor) -> tuple[int, ...]:
    shape = tuple(tensor.shape)
    # published per-head scales, condition level and refiner positions have a leading axis of 1
    extra = name.endswith(("scale_mul_1H11", "lvl_embed_cond.weight", "pos_embedding", "pos_embedding_cond"))
    return (1, *shape) if extra else shape


def to_published(model: RestoreVAR, tables: bool = True) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """State dicts under the published names.

    Args:
        model: The model.
        tables: Also write the tables that follow from the sizes, which the published code saves with its weights.

    Returns:
        Tokenizer and transformer (with refiner); the second is empty for a model without a transformer.

    Raises:
        UserError: If the model has parts that the published one has not.
    """
    config = model.config
    tokenizer: dict[str, Tensor] = {}
    transformer: dict[str, Tensor] = {}
    names = published_names(config)
    for name, tensor in model.state_dict().items():
        published = names[name]
        part = tokenizer if name.startswith("tokenizer.") else transformer
        part[published] = tensor.detach().float().reshape(_published_shape(published, tensor)).clone().contiguous()
    if tables:
        tokenizer["quantize.ema_vocab_hit_SV"] = torch.zeros(len(model.scales), config.tokenizer.vocabulary_size)
        if config.transformer is not None:
            transformer |= _tables(config.transformer, model.scales)
    return tokenizer, transformer


def _tables(config: TransformerConfig, scales: ScaleSchedule) -> dict[str, Tensor]:
    level = torch.from_numpy(scales.scale_of_token)[None]
    mask = torch.where(level[0, :, None] >= level[0, None, :], 0.0, -torch.inf)[None, None]
    cosine, sine = rotary_table(scales.positions, config.width // config.heads, config.rotary_base)
    turns = torch.complex(cosine[:, ::2], sine[:, 1::2])
    finest = scales.span(len(scales) - 1)
    tables = {
        "lvl_1L": level,
        "attn_bias_for_masking": mask,
        "lvl_1L_cond": torch.zeros(1, scales.lengths[-1], dtype=torch.int64),
        "freqs_cis": turns,
        "freqs_cis_cross": turns[finest].clone(),
    }
    return tables | {f"blocks.{block}.attn.zero_k_bias": torch.zeros(config.width) for block in range(config.depth)}


def initialize_from_var(model: RestoreVAR, source: Source) -> list[str]:
    """Starts a transformer from VAR's weights (``var_d16.pth``): stage 2 of the paper.

    VAR's adaptive norms and position embeddings are dropped; what RestoreVAR adds keeps its initialisation.

    Args:
        model: Model with a transformer of VAR's sizes.
        source: File or state dict.

    Returns:
        Our names of the weights that VAR does not have.

    Raises:
        UserError: If a name is missing or left over, or a shape is wrong.
    """
    if model.config.transformer is None:
        raise UserError("the model has no transformer to initialise; give transformer sizes")
    weights = {name: value for name, value in read_weights(source, "VAR").items() if not VAR_DROPPED.match(name)}
    names = _transformer_names(model.config.transformer)
    shared = {name: published for name, published in names.items() if not VAR_LACKING.search(name)}
    ours = {name: value for name, value in model.state_dict().items() if name.startswith("transformer.")}
    transformer = {name: value for name, value in ours.items() if name in shared}
    advice = "give weights of VAR, or change depth, width, heads or the number of scales"
    _load_strictly(transformer, weights, shared, {"": _label(source)}, advice)
    return sorted(set(ours) - set(shared))
