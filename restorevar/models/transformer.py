"""Scale-wise transformer: predicts token maps from coarse to fine while attending to the degraded photo's latent.

Shapes: B batch, T tokens of all scales, n tokens of the scales at hand, C width, D head width, Z latent channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from restorevar.models.cache import KeyValueCache
from restorevar.models.config import TransformerConfig
from restorevar.models.products import Linear, attention, linear
from restorevar.models.quantizer import area_resize, bicubic_resize
from restorevar.models.rotary import apply_rotary, rotary_table
from restorevar.models.scales import ScaleSchedule

__all__ = ["Condition", "RollOutState", "ScaleTransformer"]

LOGIT_ROWS = 256  # tokens of each photo whose logits exist at a time


@dataclass
class Condition:
    """The degraded photo as the transformer sees it.

    Attributes:
        start: (B, C) global vector, added to the start token.
        tokens: (B, s_K^2, C) what cross-attention attends to.
        local: (B, Z, s_K, s_K) projected latent, for the local condition.
    """

    start: Tensor
    tokens: Tensor
    local: Tensor


@dataclass
class RollOutState:
    """What one roll-out carries from scale to scale.

    Attributes:
        condition: The degraded photo.
        cross: Cross-attention keys and values of each block, computed once for all scales.
        cache: Self-attention keys and values so far.
    """

    condition: Condition
    cross: list[tuple[Tensor, Tensor]]
    cache: KeyValueCache


class DropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): drops a residual branch for whole samples, training only.

    Args:
        rate: Probability of dropping.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """(B, n, C) -> (B, n, C)."""
        if not self.training or self.rate == 0.0:
            return x
        kept = torch.empty(len(x), 1, 1, device=x.device, dtype=x.dtype).bernoulli_(1 - self.rate)
        return x * (kept / (1 - self.rate))


class AttentionScale(nn.Module):
    """L2 normalisation of queries and keys per head, a learned query scale, and rotary embedding; in float32.

    Args:
        heads: Attention heads.
    """

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.full((heads, 1, 1), math.log(4.0)))

    def query(self, query: Tensor, table: Tensor) -> Tensor:
        """(B, heads, n, D) with the rotary table of its places -> the same, ready for the product."""
        scale = self.log_scale.float().clamp(max=math.log(100.0)).exp()
        return apply_rotary(F.normalize(query.float(), dim=-1) * scale, table).to(query.dtype)

    def key(self, key: Tensor, table: Tensor) -> Tensor:
        """(B, heads, n, D) with the rotary table of its places -> the same, ready for the product."""
        return apply_rotary(F.normalize(key.float(), dim=-1), table).to(key.dtype)


class SelfAttention(nn.Module):
    """Self-attention within and to coarser scales.

    Args:
        width: Channels C.
        heads: Attention heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(width, 3 * width, bias=False)
        self.query_bias = nn.Parameter(torch.zeros(width))
        self.value_bias = nn.Parameter(torch.zeros(width))
        self.scale = AttentionScale(heads)
        self.out = Linear(width, width)

    def project(self, x: Tensor, table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (B, heads, n, D) of normalised inputs (B, n, C)."""
        bias = torch.cat([self.query_bias, torch.zeros_like(self.query_bias), self.value_bias])
        qkv = linear(x, self.qkv.weight, bias)
        query, key, value = qkv.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.scale.query(query, table), self.scale.key(key, table), value

    def merge(self, attended: Tensor) -> Tensor:
        """Heads (B, heads, n, D) -> outputs (B, n, C)."""
        return self.out(attended.transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """Attention to the degraded photo's latent, scaled by a learned gain.

    Args:
        width: Channels C.
        heads: Attention heads.
        gain_init: Start of the gain.
    """

    def __init__(self, width: int, heads: int, gain_init: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm_query = nn.LayerNorm(width, eps=1e-5)
        self.norm_condition = nn.LayerNorm(width, eps=1e-5)
        self.query = Linear(width, width, bias=False)
        self.key_value = Linear(width, 2 * width, bias=False)
        self.scale = AttentionScale(heads)
        self.out = Linear(width, width)
        self.gain = nn.Parameter(torch.tensor(float(gain_init)))

    def project_condition(self, tokens: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, heads, s_K^2, D) of condition tokens (B, s_K^2, C)."""
        key_value = self.key_value(self.norm_condition(tokens))
        key, value = key_value.unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.scale.key(key, table), value

    def forward(self, x: Tensor, table: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(B, n, C) -> (B, n, C)."""
        query = self.query(self.norm_query(x)).unflatten(2, (self.heads, -1)).transpose(1, 2)
        query = self.scale.query(query, table)
        attended = attention(query, key, value, scale=1.0)
        return self.out(attended.transpose(1, 2).flatten(2)) * self.gain


class Mlp(nn.Module):
    """Two linear layers with tanh-form GELU between.

    Args:
        width: Channels C.
        hidden: Hidden channels.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(width, hidden)
        self.fc2 = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, n, C) -> (B, n, C)."""
        return self.fc2(self.fc1(x, gelu="tanh"))


class Block(nn.Module):
    """Self-attention, MLP, cross-attention, each residual with its own drop path.

    Args:
        config: Sizes.
        drop_path: Stochastic-depth rate of this block.
    """

    def __init__(self, config: TransformerConfig, drop_path: float) -> None:
        super().__init__()
        self.width = config.width
        self.attention = SelfAttention(config.width, config.heads)
        self.mlp = Mlp(config.width, round(config.width * config.mlp_ratio))
        self.cross = CrossAttention(config.width, config.heads, config.gain_init)
        self.drop_path = DropPath(drop_path)

    def _norm(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (self.width,), eps=1e-6)

    def forward(
        self, x: Tensor, table: Tensor, condition_table: Tensor, condition: Tensor, scales: ScaleSchedule
    ) -> Tensor:
        """All scales at once, each token seeing its own scale and the coarser ones (B, T, C) -> (B, T, C)."""
        query, key, value = self.attention.project(self._norm(x), table)
        # one call a scale on a prefix of the keys: the scale-causal mask without a mask, and half of the products
        attended = [
            attention(query[:, :, span], key[:, :, : span.stop], value[:, :, : span.stop], scale=1.0)
            for span in map(scales.span, range(len(scales)))
        ]
        x = x + self.drop_path(self.attention.merge(torch.cat(attended, dim=2)))
        x = x + self.drop_path(self.mlp(self._norm(x)))
        return x + self.drop_path(self.cross(x, table, *self.cross.project_condition(condition, condition_table)))

    def step(self, x: Tensor, table: Tensor, index: int, state: RollOutState) -> Tensor:
        """One scale (B, n, C) -> (B, n, C), with the cache of the coarser ones."""
        query, key, value = self.attention.project(self._norm(x), table)
        keys, values = state.cache.extend(index, key, value)
        x = x + self.attention.merge(attention(query, keys, values, scale=1.0))
        x = x + self.mlp(self._norm(x))
        return x + self.cross(x, table, *state.cross[index])


class ScaleTransformer(nn.Module):
    """The autoregressive part of RestoreVAR (arXiv 2505.18047, section 3).

    Args:
        config: Sizes.
        latent_channels: Channels Z of the tokenizer's latent.
        vocabulary_size: Entries V of its codebook.
        scales: The schedule.
    """

    rotary: Tensor

    def __init__(
        self, config: TransformerConfig, latent_channels: int, vocabulary_size: int, scales: ScaleSchedule
    ) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.word_embed = Linear(latent_channels, width)
        self.class_embed = nn.Embedding(config.class_count, width)
        self.level_embed = nn.Embedding(len(scales), width)
        self.condition_project = Linear(latent_channels, latent_channels)
        self.condition_embed = Linear(latent_channels, width)
        self.condition_level_embed = nn.Parameter(torch.zeros(width))
        self.global_embed = Linear(latent_channels, width)
        self.global_gain = nn.Parameter(torch.tensor(float(config.gain_init)))
        self.local_embed = Linear(latent_channels, width) if config.local_condition else None
        last = max(config.depth - 1, 1)
        self.blocks = nn.ModuleList(
            Block(config, config.drop_path_rate * index / last) for index in range(config.depth)
        )
        self.head = Linear(width, vocabulary_size)
        self.gradient_checkpointing = False
        self.set_scales(scales)

    def set_scales(self, scales: ScaleSchedule) -> None:
        """Rebuilds the rotary tables for another schedule of as many scales.

        Args:
            scales: The schedule.

        Raises:
            ValueError: If the number of scales differs from the number of level embeddings.
        """
        if len(scales) != self.level_embed.num_embeddings:
            raise ValueError(f"{len(scales)} scales given, but the model has {self.level_embed.num_embeddings} levels")
        self.scales = scales
        head_width = self.config.width // self.config.heads
        table = rotary_table(scales.positions, head_width, self.config.rotary_base)
        device = self.head.weight.device
        self.register_buffer("rotary", table.to(device), persistent=False)

    @property
    def block_sequence(self) -> Sequence[Block]:
        """``blocks``, with their type: a module list only knows that it holds modules."""
        return cast("Sequence[Block]", self.blocks)

    def _table(self, span: slice) -> Tensor:
        return self.rotary[:, span]

    @property
    def _finest_table(self) -> Tensor:
        return self._table(self.scales.span(len(self.scales) - 1))

    def condition(self, features: Tensor) -> Condition:
        """Condition of the degraded photo's encoder features (B, Z, h, w), resized to the finest scale if needed."""
        features = bicubic_resize(features, self.scales.finest)
        dtype = self.condition_project.weight.dtype
        projected = self.condition_project(features.flatten(2).transpose(1, 2).to(dtype))
        start = self.global_gain * self.global_embed(projected.mean(dim=1))
        tokens = self.condition_embed(projected) + self.condition_level_embed
        return Condition(start, tokens, projected.transpose(1, 2).unflatten(2, self.scales.finest))

    def _inputs(self, running: Tensor | None, scale: int, condition: Condition) -> Tensor:
        """Block inputs (B, s_k^2, C) of one scale; the running sum is None at the first."""
        if running is None:
            start = self.class_embed.weight[-1] + condition.start
            x = start[:, None].expand(-1, self.scales.lengths[0], -1)
        else:
            x = self.word_embed(running.to(self.word_embed.weight.dtype))
        x = x + self.level_embed.weight[scale]
        if self.local_embed is not None:
            local = area_resize(condition.local, self.scales[scale]).flatten(2).transpose(1, 2)
            x = x + self.local_embed(local)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """Head in float32: last block's outputs (B, n, C) -> (B, n, V)."""
        with torch.autocast(hidden.device.type, enabled=False):
            normalized = F.layer_norm(hidden.float(), (self.config.width,), eps=1e-6)
            return linear(normalized, self.head.weight.float(), self.head.bias.float())

    def predict(self, hidden: Tensor) -> Tensor:
        """Most likely tokens (B, n) int64 of the last block's outputs (B, n, C), without ever keeping all logits."""
        return torch.cat([self.logits(part).argmax(-1) for part in hidden.split(LOGIT_ROWS, dim=1)], dim=1)

    def forward(self, teacher_input: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Teacher-forced pass over all scales.

        Args:
            teacher_input: (B, T - s_1^2, Z) from :meth:`MultiScaleQuantizer.teacher_input`.
            features: (B, Z, h, w) encoder features of the degraded photo.

        Returns:
            Logits (B, T, V) float32 and the last block's outputs (B, T, C).
        """
        condition = self.condition(features)
        parts, first = [self._inputs(None, 0, condition)], self.scales.lengths[0]
        for scale in range(1, len(self.scales)):
            span = self.scales.span(scale)
            parts.append(self._inputs(teacher_input[:, span.start - first : span.stop - first], scale, condition))
        x = torch.cat(parts, dim=1)
        arguments = (self.rotary, self._finest_table, condition.tokens, self.scales)
        for block in self.block_sequence:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = torch.utils.checkpoint.checkpoint(block, x, *arguments, use_reentrant=False)
            else:
                x = block(x, *arguments)
        return self.logits(x), x

    def start(self, features: Tensor) -> RollOutState:
        """Begins a roll-out: the condition's keys and values for all blocks and an empty cache.

        Args:
            features: (B, Z, h, w) encoder features of the degraded photo.
        """
        condition = self.condition(features)
        table = self._finest_table
        cross = [block.cross.project_condition(condition.tokens, table) for block in self.block_sequence]
        value = cross[0][1]
        cache = KeyValueCache(
            depth=len(self.blocks),
            batch=len(features),
            heads=self.config.heads,
            tokens=self.scales.tokens,
            head_width=self.config.width // self.config.heads,
            device=value.device,
            dtype=value.dtype,
        )
        return RollOutState(condition, cross, cache)

    def step(self, state: RollOutState, running: Tensor | None, scale: int) -> Tensor:
        """Runs one scale of a roll-out.

        Args:
            state: From :meth:`start`; its cache grows by this scale.
            running: (B, s_k^2, Z) from :meth:`MultiScaleQuantizer.next_input`, None at the first scale.
            scale: Index k of the scale, from 0.

        Returns:
            The last block's outputs (B, s_k^2, C).
        """
        x = self._inputs(running, scale, state.condition)
        table = self._table(self.scales.span(scale))
        for index, block in enumerate(self.block_sequence):
            x = block.step(x, table, index, state)
        state.cache.advance(x.shape[1])
        return x
