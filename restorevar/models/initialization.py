"""Initial weights for training from scratch."""

from __future__ import annotations

import math

from torch import nn

from restorevar.models.refiner import AttentionRefiner, ConvolutionRefiner, Refiner
from restorevar.models.tokenizer import Tokenizer
from restorevar.models.transformer import CrossAttention, ScaleTransformer

__all__ = ["initialize_refiner", "initialize_tokenizer", "initialize_transformer"]


def _truncated_normal(module: nn.Module, std: float) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Embedding):
            nn.init.trunc_normal_(layer.weight, std=std)
        if isinstance(layer, nn.Linear) and layer.bias is not None:
            nn.init.zeros_(layer.bias)


def initialize_tokenizer(tokenizer: Tokenizer) -> None:
    """Codebook uniform in [-1 / V, 1 / V]; convolutions keep torch's defaults, additive phi convolutions start at 0."""
    codebook = tokenizer.quantizer.codebook
    nn.init.uniform_(codebook.weight, -1.0 / codebook.num_embeddings, 1.0 / codebook.num_embeddings)
    if tokenizer.quantizer.phi_identity == 1.0:
        for parameter in tokenizer.quantizer.phi.parameters():
            nn.init.zeros_(parameter)


def initialize_transformer(transformer: ScaleTransformer) -> None:
    """Truncated normal of std sqrt(1 / (3 C)), small head, outputs divided by sqrt(2 d)."""
    std = math.sqrt(1 / (3 * transformer.config.width))
    _truncated_normal(transformer, std)
    nn.init.trunc_normal_(transformer.condition_level_embed, std=std)
    transformer.head.weight.data.mul_(0.02)
    shrink = math.sqrt(2 * transformer.config.depth)
    for block in transformer.block_sequence:
        block.attention.out.weight.data.div_(shrink)
        block.mlp.fc2.weight.data.div_(shrink)
    for layer in transformer.modules():
        if isinstance(layer, CrossAttention):
            nn.init.constant_(layer.gain, transformer.config.gain_init)
            nn.init.constant_(layer.scale.log_scale, math.log(4.0))
    nn.init.constant_(transformer.global_gain, transformer.config.gain_init)


def initialize_refiner(refiner: Refiner) -> None:
    """Position embeddings truncated normal of std 0.02; the convolutional refiner starts as the identity."""
    if isinstance(refiner, AttentionRefiner):
        nn.init.trunc_normal_(refiner.latent_position, std=0.02)
        nn.init.trunc_normal_(refiner.hidden_position, std=0.02)
    elif isinstance(refiner, ConvolutionRefiner):
        for parameter in refiner.conv_out.parameters():
            nn.init.zeros_(parameter)
