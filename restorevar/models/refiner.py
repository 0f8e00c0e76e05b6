"""Latent refiners: from the discrete latent of a roll-out to a continuous one.

Shapes: B batch, T tokens of all scales, C width of the transformer, Z latent channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from restorevar.models.config import RefinerConfig
from restorevar.models.layers import GlobalContext, GroupNorm
from restorevar.models.products import Linear, attention
from restorevar.models.quantizer import bicubic_resize
from restorevar.models.scales import ScaleSchedule

__all__ = ["AttentionRefiner", "ConvolutionRefiner", "Refiner", "build_refiner"]


def _heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


class RefinerSelfAttention(nn.Module):
    """Pre-norm self-attention, softmax(q k / sqrt(d))."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = Linear(width, 3 * width, bias=False)
        self.out = Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, n, width) -> (B, n, width)."""
        query, key, value = (_heads(part, self.heads) for part in self.qkv(self.norm(x)).chunk(3, dim=-1))
        return self.out(attention(query, key, value).transpose(1, 2).flatten(2))


class RefinerCrossAttention(nn.Module):
    """Pre-norm attention to the hidden tokens, which have a norm of their own in every layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_query = nn.LayerNorm(width)
        self.norm_hidden = nn.LayerNorm(width)
        self.query = Linear(width, width, bias=False)
        self.key_value = Linear(width, 2 * width, bias=False)
        self.out = Linear(width, width)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """(B, n, width) and (B, T, width) -> (B, n, width)."""
        query = _heads(self.query(self.norm_query(x)), self.heads)
        key, value = (_heads(part, self.heads) for part in self.key_value(self.norm_hidden(hidden)).chunk(2, dim=-1))
        return self.out(attention(query, key, value).transpose(1, 2).flatten(2))


class RefinerMlp(nn.Module):
    """Pre-norm MLP with exact GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = Linear(width, hidden)
        self.fc2 = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, n, width) -> (B, n, width)."""
        return self.fc2(self.fc1(self.norm(x), gelu="none"))


class RefinerLayer(nn.Module):
    """Self-attention, MLP, cross-attention, all residual."""

    def __init__(self, config: RefinerConfig) -> None:
        super().__init__()
        self.attention = RefinerSelfAttention(config.width, config.heads)
        self.mlp = RefinerMlp(config.width, config.mlp_width)
        self.cross = RefinerCrossAttention(config.width, config.heads)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """(B, n, width) and (B, T, width) -> (B, n, width)."""
        x = x + self.attention(x)
        x = x + self.mlp(x)
        return x + self.cross(x, hidden)


class Refiner(nn.Module):
    """What both refiners share."""

    def forward(self, latent: Tensor, hidden: Tensor, features: Tensor) -> Tensor:
        """Refines the discrete latent of a roll-out.

        Args:
            latent: (B, Z, s_K, s_K) running sum f_hat after the last scale.
            hidden: (B, T, C) the transformer's last block's outputs of all scales, from the roll-out.
            features: (B, Z, h, w) encoder features of the degraded photo.

        Returns:
            (B, Z, s_K, s_K) continuous latent.
        """
        raise NotImplementedError

    def set_scales(self, scales: ScaleSchedule) -> None:
        """Adapts everything that depends on the schedule to another one of as many scales."""
        raise NotImplementedError


class AttentionRefiner(Refiner):
    """Latent refinement transformer (LRT; arXiv 2505.18047, section 3.3).

    Args:
        config: Sizes.
        latent_channels: Channels Z.
        hidden_width: Width C of the transformer.
        scales: The schedule.
    """

    def __init__(self, config: RefinerConfig, latent_channels: int, hidden_width: int, scales: ScaleSchedule) -> None:
        super().__init__()
        self.scales = scales
        self.norm_latent = nn.LayerNorm(latent_channels)
        self.norm_hidden = nn.LayerNorm(hidden_width)
        self.project_latent = Linear(latent_channels, config.width, bias=False)
        self.project_hidden = Linear(hidden_width, config.width, bias=False)
        self.latent_position = nn.Parameter(torch.zeros(scales.lengths[-1], config.width))
        self.hidden_position = nn.Parameter(torch.zeros(scales.tokens, config.width))
        self.layers = nn.ModuleList(RefinerLayer(config) for _ in range(config.depth))
        self.norm_out = nn.LayerNorm(config.width)
        self.project_out = Linear(config.width, latent_channels, bias=False)

    def forward(self, latent: Tensor, hidden: Tensor, features: Tensor) -> Tensor:
        """See :meth:`Refiner.forward`."""
        tokens = latent.flatten(2).transpose(1, 2)
        dtype = self.project_latent.weight.dtype
        x = self.project_latent(self.norm_latent(tokens.to(dtype))) + self.latent_position
        memory = self.project_hidden(self.norm_hidden(hidden.to(dtype))) + self.hidden_position
        for layer in self.layers:
            x = layer(x, memory)
        refined = self.project_out(self.norm_out(x)) + tokens
        return refined.transpose(1, 2).unflatten(2, latent.shape[2:])

    def set_scales(self, scales: ScaleSchedule) -> None:
        """Resizes the position embeddings to another schedule by 2D interpolation per scale."""
        if scales == self.scales:
            return
        last = len(scales) - 1
        with torch.no_grad():
            latent = _resize_positions(self.latent_position, self.scales[last], scales[last])
            hidden = [
                _resize_positions(self.hidden_position[self.scales.span(scale)], self.scales[scale], scales[scale])
                for scale in range(len(scales))
            ]
        self.latent_position = nn.Parameter(latent)
        self.hidden_position = nn.Parameter(torch.cat(hidden))
        self.scales = scales


def _resize_positions(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    grid = table.T.unflatten(1, old)[None].float()
    return bicubic_resize(grid, new)[0].flatten(1).T.to(table.dtype).contiguous()


class ConvolutionResidual(nn.Module):
    """Group norm, SiLU, 3x3 convolution, twice, plus the input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        groups = max(width // 16, 1)
        self.norm1 = GroupNorm(groups, width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.norm2 = GroupNorm(groups, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, h, w) -> (B, width, h, w)."""
        return x + self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))


class ConvolutionRefiner(Refiner):
    """Residual network on the latent, the degraded features and the last scale's hidden tokens. For small models.

    Latent channels differ tenfold in size, so they are brought to one: inputs are divided by ``latent_deviation``, the
    correction is multiplied by it. Stage 3 measures it on its first batch.

    Args:
        config: Sizes.
        latent_channels: Channels Z.
        hidden_width: Width C of the transformer.
        scales: The schedule.
    """

    latent_deviation: Tensor
    """(Z,) standard deviations of the channels of clean latents."""

    def __init__(self, config: RefinerConfig, latent_channels: int, hidden_width: int, scales: ScaleSchedule) -> None:
        super().__init__()
        self.scales = scales
        self.norm_hidden = nn.LayerNorm(hidden_width)
        self.register_buffer("latent_deviation", torch.ones(latent_channels))
        self.conv_in = nn.Conv2d(2 * latent_channels + hidden_width, config.width, 3, padding=1)
        self.blocks = nn.Sequential(*(ConvolutionResidual(config.width) for _ in range(config.depth)))
        self.context = GlobalContext(config.width, config.context) if config.context else None
        self._context_place = min((config.depth + 1) // 2, config.depth - 1)
        self.conv_out = nn.Conv2d(config.width, latent_channels, 3, padding=1)

    def forward(self, latent: Tensor, hidden: Tensor, features: Tensor) -> Tensor:
        """See :meth:`Refiner.forward`."""
        dtype = self.conv_in.weight.dtype
        size = self.scales.finest
        deviation = self.latent_deviation[:, None, None]
        last = self.norm_hidden(hidden[:, self.scales.span(len(self.scales) - 1)].to(dtype))
        grid = last.transpose(1, 2).unflatten(2, size)
        scaled = [(maps / deviation).to(dtype) for maps in (latent, bicubic_resize(features, size))]
        x = torch.cat([*scaled, grid.to(dtype)], dim=1).contiguous(memory_format=torch.channels_last)
        x = self.conv_in(x)
        for place, block in enumerate(self.blocks):
            if self.context is not None and place == self._context_place:
                x = self.context(x)
            x = block(x)
        return latent + deviation * self.conv_out(x)

    def set_scales(self, scales: ScaleSchedule) -> None:
        """Nothing is tied to a size but the place of the last scale's tokens."""
        self.scales = scales


def build_refiner(config: RefinerConfig, latent_channels: int, hidden_width: int, scales: ScaleSchedule) -> Refiner:
    """The refiner that ``config.kind`` names."""
    kinds: dict[str, type[AttentionRefiner | ConvolutionRefiner]] = {
        "attention": AttentionRefiner,
        "convolution": ConvolutionRefiner,
    }
    return kinds[config.kind](config, latent_channels, hidden_width, scales)
