"""Building blocks of the convolutional tokenizer."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["AttentionBlock", "Downsample", "GroupNormSiLU", "ResidualBlock", "Upsample"]


class GroupNormSiLU(nn.GroupNorm):
    """Group norm (eps 1e-6) followed by SiLU."""

    def __init__(self, groups: int, channels: int) -> None:
        super().__init__(groups, channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        # the norm's output is a fresh tensor that SiLU may overwrite, unless autograd needs it
        return F.silu(super().forward(x), inplace=not x.requires_grad and not self.weight.requires_grad)


class ResidualBlock(nn.Module):
    """Norm, SiLU, 3x3 convolution, twice, plus the input (through a 1x1 convolution where channels differ)."""

    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = GroupNormSiLU(groups, in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = GroupNormSiLU(groups, out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, H, W)."""
        return self.shortcut(x) + self.conv2(self.norm2(self.conv1(self.norm1(x))))


class AttentionBlock(nn.Module):
    """Single-head self-attention over positions, residual."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        height, width = x.shape[2:]
        # (B, 1 head, positions, channels); free of copies in channels-last memory
        query, key, value = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).unsqueeze(1).chunk(3, dim=-1)
        attended = F.scaled_dot_product_attention(query, key, value)
        return x + self.out(attended.squeeze(1).transpose(1, 2).unflatten(2, (height, width)))


class Downsample(nn.Module):
    """Halves the sides: zero padding right and bottom, then a 3x3 convolution of stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H / 2, W / 2)."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Doubles the sides: nearest neighbour, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, 2 H, 2 W)."""
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))
