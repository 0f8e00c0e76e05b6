"""The published algorithm read plainly: the yardstick for the fast path, in numbers and in time.

The same weights, run the obvious way and in the way the published implementation is known to work: channels-first
memory, dense attention in float32, rotary embedding by complex numbers, caches that grow by concatenation, and keys and
values of the condition projected again at every scale. No line of this is tuned, and none is needlessly slow.

Run as a script, it checks that it costs what the published implementation does (2.6 to 3.0 float32 tokenizers):
    python benchmarks/plain.py
"""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from restorevar.models import Generation, RefinerConfig, RestoreVAR, RestoreVARConfig, TransformerConfig
from restorevar.models.layers import AttentionBlock, Downsample, ResidualBlock
from restorevar.models.refiner import AttentionRefiner, RefinerLayer
from restorevar.models.transformer import Block, CrossAttention, SelfAttention


class Plain:
    """Plain inference with the weights of a model of the published kind (attention refiner, no detail path).

    Args:
        model: The model, float32; it is copied.
    """

    def __init__(self, model: RestoreVAR) -> None:
        self.model = copy.deepcopy(model).float().to(memory_format=torch.contiguous_format)
        self.rotary = torch.view_as_complex(
            torch.stack([self.model.transformer.rotary[0, :, ::2], self.model.transformer.rotary[1, :, 1::2]], dim=-1)
        )

    @torch.no_grad()
    def tokenizer(self, degraded: Tensor) -> Tensor:
        """Encoder and decoder alone: (B, 3, H, W) to the same."""
        return self.decode(self.encode(degraded.contiguous()))

    @torch.no_grad()
    def generate(self, degraded: Tensor) -> Generation:
        """What :meth:`restorevar.models.RestoreVAR.generate` does."""
        features = self.encode(degraded.contiguous())
        tokens, hidden, latent = self.roll_out(features)
        refined = latent if self.model.refiner is None else self.refine(self.model.refiner, latent, hidden)
        return Generation((self.decode(refined).clamp(-1, 1) + 1) / 2, tokens, hidden, latent, refined)

    # tokenizer

    def encode(self, image: Tensor) -> Tensor:
        """Encoder features (B, Z, h, w) of a photo in [-1, 1]."""
        encoder = self.model.tokenizer.encoder
        x = encoder.conv_in(F.pixel_unshuffle(image, encoder.stem_patch) if encoder.stem_patch > 1 else image)
        for level, blocks in enumerate(encoder.levels):
            x = run(blocks, x)
            if level < len(encoder.downsamples):
                x = run([encoder.downsamples[level]], x)
        return encoder.conv_out(norm_silu(encoder.norm_out, run(encoder.middle, x)))

    def decode(self, latent: Tensor) -> Tensor:
        """Photo (B, 3, H, W), not clamped, of a latent."""
        decoder = self.model.tokenizer.decoder
        x = run(decoder.middle, decoder.conv_in(self.model.tokenizer.post_quant_conv(latent)))
        for level in reversed(range(len(decoder.levels))):
            x = run(decoder.levels[level], x)
            if level > 0:
                x = decoder.upsamples[level - 1].conv(F.interpolate(x, scale_factor=2, mode="nearest"))
        x = decoder.conv_out(norm_silu(decoder.norm_out, x))
        return F.pixel_shuffle(x, decoder.stem_patch) if decoder.stem_patch > 1 else x

    # transformer

    def roll_out(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (B, T), hidden (B, T, C) and running sum of all scales."""
        transformer, quantizer, scales = self.model.transformer, self.model.tokenizer.quantizer, self.model.scales
        condition = transformer.condition_project(features.flatten(2).transpose(1, 2))
        start = transformer.global_gain * transformer.global_embed(condition.mean(1))
        condition = transformer.condition_embed(condition) + transformer.condition_level_embed
        caches: list[tuple[Tensor, Tensor] | None] = [None] * len(transformer.blocks)
        phi_index = scales.phi_index(len(quantizer.phi))
        running = features.new_zeros(len(features), features.shape[1], *scales.finest)
        all_tokens, all_hidden = [], []
        finest = self.rotary[scales.span(len(scales) - 1)]
        for scale, size in enumerate(scales):
            if scale == 0:
                x = (transformer.class_embed.weight[-1] + start)[:, None].expand(-1, size[0] * size[1], -1)
            else:
                x = transformer.word_embed(F.interpolate(running, size=size, mode="area").flatten(2).transpose(1, 2))
            x = x + transformer.level_embed.weight[scale]
            table = self.rotary[scales.span(scale)]
            for index, block in enumerate(transformer.blocks):
                x, caches[index] = block_step(block, x, table, finest, condition, caches[index])
            logits = F.linear(F.layer_norm(x, x.shape[-1:], eps=1e-6), transformer.head.weight, transformer.head.bias)
            tokens = logits.argmax(-1)
            h = quantizer.codebook(tokens).transpose(1, 2).unflatten(2, size)
            h = F.interpolate(h, size=scales.finest, mode="bicubic") if size != scales.finest else h
            running = (
                running + quantizer.phi_identity * h + quantizer.phi_convolution * quantizer.phi[phi_index[scale]](h)
            )
            all_tokens.append(tokens)
            all_hidden.append(x)
        return torch.cat(all_tokens, 1), torch.cat(all_hidden, 1), running

    # refiner

    def refine(self, refiner: AttentionRefiner, latent: Tensor, hidden: Tensor) -> Tensor:
        """Continuous latent of a roll-out."""
        tokens = latent.flatten(2).transpose(1, 2)
        x = plain_linear(refiner.project_latent, refiner.norm_latent(tokens)) + refiner.latent_position
        memory = plain_linear(refiner.project_hidden, refiner.norm_hidden(hidden)) + refiner.hidden_position
        for layer in refiner.layers:
            x = refiner_layer(layer, x, memory)
        return (plain_linear(refiner.project_out, refiner.norm_out(x)) + tokens).transpose(1, 2).view_as(latent)


def plain_linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """A linear layer through PyTorch's standard function."""
    return F.linear(x, layer.weight, layer.bias)


def norm_silu(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """Group norm, then SiLU, each with a result of its own."""
    return F.silu(F.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps))


def run(blocks: nn.Sequential | list[nn.Module], x: Tensor) -> Tensor:
    """Tokenizer layers one after the other."""
    for block in blocks:
        if isinstance(block, ResidualBlock):
            x = block.shortcut(x) + block.conv2(norm_silu(block.norm2, block.conv1(norm_silu(block.norm1, x))))
        elif isinstance(block, Downsample):
            x = block.conv(F.pad(x, (0, 1, 0, 1)))
        elif isinstance(block, AttentionBlock):
            norm = block.norm
            y = F.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)
            query, key, value = block.qkv(y).flatten(2).chunk(3, dim=1)
            weights = torch.softmax(query.transpose(1, 2) @ key * query.shape[1] ** -0.5, dim=-1)
            x = x + block.out((value @ weights.transpose(1, 2)).view_as(x))
    return x


def heads_of(x: Tensor, heads: int) -> Tensor:
    """(B, n, C) to (B, heads, n, D)."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotary embedding by complex numbers."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * table).flatten(-2)


def dense_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Attention with all scores in float32, merged heads (B, n, C)."""
    weights = torch.softmax(query.float() @ key.float().transpose(-1, -2) * scale, dim=-1)
    return (weights @ value.float()).transpose(1, 2).flatten(2)


def block_step(
    block: Block, x: Tensor, table: Tensor, finest: Tensor, condition: Tensor, cache: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """One block at one scale, with its cache grown by concatenation."""
    attention: SelfAttention = block.attention
    bias = torch.cat([attention.query_bias, torch.zeros_like(attention.query_bias), attention.value_bias])
    qkv = F.linear(F.layer_norm(x, x.shape[-1:], eps=1e-6), attention.qkv.weight, bias)
    query, key, value = (heads_of(part, attention.heads) for part in qkv.chunk(3, dim=-1))
    scale = attention.scale.log_scale.clamp(max=math.log(100.0)).exp()
    query = rotate(F.normalize(query, dim=-1) * scale, table)
    key = rotate(F.normalize(key, dim=-1), table)
    if cache is not None:
        key, value = torch.cat([cache[0], key], dim=2), torch.cat([cache[1], value], dim=2)
    x = x + plain_linear(attention.out, dense_attention(query, key, value, 1.0))
    hidden = F.gelu(plain_linear(block.mlp.fc1, F.layer_norm(x, x.shape[-1:], eps=1e-6)), approximate="tanh")
    x = x + plain_linear(block.mlp.fc2, hidden)
    return x + cross_attention(block.cross, x, table, finest, condition), (key, value)


def cross_attention(cross: CrossAttention, x: Tensor, table: Tensor, finest: Tensor, condition: Tensor) -> Tensor:
    """Cross-attention that projects the condition anew."""
    query = heads_of(plain_linear(cross.query, cross.norm_query(x)), cross.heads)
    key_value = plain_linear(cross.key_value, cross.norm_condition(condition))
    key, value = (heads_of(part, cross.heads) for part in key_value.chunk(2, dim=-1))
    scale = cross.scale.log_scale.clamp(max=math.log(100.0)).exp()
    query = rotate(F.normalize(query, dim=-1) * scale, table)
    key = rotate(F.normalize(key, dim=-1), finest)
    return plain_linear(cross.out, dense_attention(query, key, value, 1.0)) * cross.gain


def refiner_layer(layer: RefinerLayer, x: Tensor, memory: Tensor) -> Tensor:
    """One layer of the latent refinement transformer."""
    attention, mlp, cross = layer.attention, layer.mlp, layer.cross
    qkv = plain_linear(attention.qkv, attention.norm(x))
    query, key, value = (heads_of(part, attention.heads) for part in qkv.chunk(3, dim=-1))
    scale = query.shape[-1] ** -0.5
    x = x + plain_linear(attention.out, dense_attention(query, key, value, scale))
    x = x + plain_linear(mlp.fc2, F.gelu(plain_linear(mlp.fc1, mlp.norm(x))))
    query = heads_of(plain_linear(cross.query, cross.norm_query(x)), cross.heads)
    key_value = plain_linear(cross.key_value, cross.norm_hidden(memory))
    key, value = (heads_of(part, cross.heads) for part in key_value.chunk(2, dim=-1))
    return x + plain_linear(cross.out, dense_attention(query, key, value, scale))


def main() -> None:
    """Checks the cost of this stand-in at paper size, and that it computes what the model does."""
    torch.manual_seed(0)
    model = RestoreVAR(RestoreVARConfig(transformer=TransformerConfig(gain_init=1.0), refiner=RefinerConfig())).eval()
    plain, photo = Plain(model), torch.rand(1, 3, 512, 512) * 2 - 1
    calls: dict[str, Callable[[Tensor], Any]] = {
        "tokenizer": plain.tokenizer,
        "whole": plain.generate,
        "ours": model.generate,
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    results: dict[str, Any] = {}
    for _ in range(3):
        for name, call in calls.items():
            began = time.perf_counter()
            results[name] = call(photo)
            times[name].append(time.perf_counter() - began)
    tokenizer, whole, ours = (statistics.median(times[name]) for name in calls)
    print(f"tokenizer {tokenizer:.2f} s, whole {whole:.2f} s, ratio {whole / tokenizer:.2f} (expected 2.6 to 3.0)")
    expected, found = results["whole"], results["ours"]
    error = ((found.image - expected.image).norm() / expected.image.norm()).item()
    same = (found.tokens == expected.tokens).float().mean().item()
    print(f"ours {ours:.2f} s: {whole / ours:.2f} times as fast; {same:.2%} of tokens equal, photo {error:.1e} off")


if __name__ == "__main__":
    main()
