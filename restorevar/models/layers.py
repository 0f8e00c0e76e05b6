"""Building blocks of the convolutional tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from restorevar.models.products import attention, by_onednn, linear
from restorevar.models.winograd import saves_time, winograd_convolution

__all__ = [
    "AttentionBlock",
    "Convolution",
    "Downsample",
    "GlobalContext",
    "GroupNorm",
    "GroupNormSiLU",
    "PointwiseConvolution",
    "ResidualBlock",
    "Upsample",
]

# values handled at a time by the channels-last norm: what the last-level cache holds several times over
CACHE_BLOCK = 1 << 20


def _channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def _composable(x: Tensor, weight: Tensor) -> bool:
    """Whether a convolution of x may be put together from oneDNN's own operations."""
    return by_onednn(x) and _channels_last(x) and weight.dtype == x.dtype


def _rows(x: Tensor) -> list[Tensor]:
    """Samples of a channels-last tensor as (H W, C) views."""
    return [sample.permute(1, 2, 0).view(-1, x.shape[1]) for sample in x]


def _blocks(rows: Tensor) -> Iterator[slice]:
    step = max(CACHE_BLOCK // rows.shape[1], 1)
    return (slice(start, start + step) for start in range(0, len(rows), step))


def _channel_moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Means and variances (C,) of the columns of (n, C), float64.

    The squares are of differences from a rough mean, summed block by block in cascades and then in float64 (1e-8 off).
    """
    shift = rows[:: max(len(rows) // 256, 1)].float().mean(0)
    moments = torch.zeros(2, len(shift), dtype=torch.float64)
    difference = torch.empty(min(len(rows), max(CACHE_BLOCK // len(shift), 1)), len(shift))
    for block in _blocks(rows):
        part = rows[block]
        part = torch.sub(part, shift, out=difference[: len(part)])
        moments[0] += part.sum(0)
        moments[1] += part.mul_(part).sum(0)
    first, second = moments / len(rows)
    return shift + first, second - first.square()


def _rough_channel_moments(sample: Tensor) -> tuple[Tensor, Tensor]:
    """Means and variances (C,) of a bfloat16 (C, H, W): one float32 sum, 1e-4 off, is enough for three digits."""
    ones = torch.ones(len(sample))
    mean, variance = torch.batch_norm_update_stats(sample[None], torch.zeros_like(ones), ones, 1.0)
    return mean.double(), variance.double()


def group_statistics(x: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """Means and inverse standard deviations of the groups of a channels-last tensor.

    PyTorch's own CPU kernel for this layout squares before it subtracts, in one long float32 sum: 1e-5 off at 512 px.

    Args:
        x: (B, C, H, W), channels-last.
        groups: Number of groups.
        eps: Added to the variance.

    Returns:
        (B, groups) float32 each.
    """
    if x.dtype == torch.bfloat16:
        pairs = [_rough_channel_moments(sample) for sample in x]
    else:
        pairs = [_channel_moments(rows) for rows in _rows(x)]
    mean, variance = (torch.stack(parts).unflatten(1, (groups, -1)) for parts in zip(*pairs, strict=True))
    center = mean.mean(2, keepdim=True)
    variance = (variance + (mean - center).square()).mean(2)
    return center[:, :, 0].float(), (variance + eps).rsqrt().float()


def _scale_and_shift(mean: Tensor, deviation: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The norm as y = scale x + shift, (B, C) float32 each, from its (B, groups) statistics."""
    size = len(weight) // mean.shape[1]
    scale = deviation.repeat_interleave(size, 1) * weight.float()
    return scale, bias.float() - mean.repeat_interleave(size, 1) * scale


def _apply_norm(x: Tensor, scale: Tensor, shift: Tensor, silu: bool, out: Tensor) -> Tensor:
    """Writes scale x + shift, with SiLU where asked for, block by block, so that memory is read and written once."""
    for rows, results, factor, offset in zip(_rows(x), _rows(out), scale, shift, strict=True):
        single = out.dtype == torch.float32
        memory = None if single else torch.empty(max(CACHE_BLOCK // rows.shape[1], 1), rows.shape[1])
        for block in _blocks(rows):
            source, result = rows[block], results[block]
            work = result if memory is None else memory[: len(source)]
            torch.addcmul(offset, source, factor, out=work)
            if silu:
                F.silu(work, inplace=True)
            if work is not result:
                result.copy_(work)
    return out


class _ChannelsLastNorm(torch.autograd.Function):
    """Group norm and SiLU of a channels-last tensor on the CPU. Keeps its input only: the backward pass starts anew."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool) -> Tensor:
        mean, deviation = group_statistics(x, groups, eps)
        ctx.save_for_backward(x, weight, bias, mean, deviation)
        ctx.groups, ctx.silu = groups, silu
        return _apply_norm(x, *_scale_and_shift(mean, deviation, weight, bias), silu, torch.empty_like(x))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, deviation = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        if ctx.silu:
            scale, shift = _scale_and_shift(mean, deviation, weight, bias)
            normalised = _apply_norm(x, scale, shift, False, torch.empty_like(x))
            gradient = torch.ops.aten.silu_backward(gradient, normalised)
        batch, channels, height, width = x.shape
        sizes = (batch, channels, height * width, ctx.groups)
        return (
            *torch.ops.aten.native_group_norm_backward(
                gradient, x, mean, deviation, weight, *sizes, ctx.needs_input_grad[:3]
            ),
            None,
            None,
            None,
        )


class GroupNorm(nn.GroupNorm):
    """Group norm, accurate in every memory layout.

    Args:
        groups: Number of groups.
        channels: Number of channels.
        eps: Added to the variance.
    """

    silu = False

    def __init__(self, groups: int, channels: int, eps: float = 1e-5) -> None:
        super().__init__(groups, channels, eps=eps)

    def forward(self, x: Tensor, overwrite: bool = False) -> Tensor:
        """Normalises.

        Args:
            x: (B, C, H, W).
            overwrite: The caller has no further use for ``x``: its memory may take the result.

        Returns:
            (B, C, H, W).
        """
        overwrite = overwrite and not torch.is_grad_enabled()
        by_hand = x.device.type == "cpu" and not torch.compiler.is_compiling() and _channels_last(x)
        if not by_hand:
            normalised = super().forward(x)
            return F.silu(normalised, inplace=not torch.is_grad_enabled()) if self.silu else normalised
        if overwrite:
            scale, shift = _scale_and_shift(*group_statistics(x, self.num_groups, self.eps), self.weight, self.bias)
            return _apply_norm(x, scale, shift, self.silu, x)
        return _ChannelsLastNorm.apply(x, self.weight, self.bias, self.num_groups, self.eps, self.silu)


class GroupNormSiLU(GroupNorm):
    """Group norm (eps 1e-6) followed by SiLU.

    Args:
        groups: Number of groups.
        channels: Number of channels.
    """

    silu = True

    def __init__(self, groups: int, channels: int) -> None:
        super().__init__(groups, channels, eps=1e-6)


class Convolution(nn.Conv2d):
    """3x3 convolution with padding 1. In inference on CPUs, large ones take half the multiply-adds (Winograd).

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, H, W)."""
        if not (_composable(x, self.weight) and saves_time(x, self.weight)):
            return super().forward(x)
        return winograd_convolution(x, self.weight, self.bias)


class PointwiseConvolution(nn.Conv2d):
    """1x1 convolution. In channels-last memory it is a matrix product, which oneDNN does twice as fast in float32.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, H, W)."""
        if not _composable(x, self.weight):
            return super().forward(x)
        return linear(x.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


class ResidualBlock(nn.Module):
    """Norm, SiLU, 3x3 convolution, twice, plus the input (through a 1x1 convolution where channels differ)."""

    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = GroupNormSiLU(groups, in_channels)
        self.conv1 = Convolution(in_channels, out_channels)
        self.norm2 = GroupNormSiLU(groups, out_channels)
        self.conv2 = Convolution(out_channels, out_channels)
        self.shortcut = (
            PointwiseConvolution(in_channels, out_channels) if in_channels != out_channels else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, H, W)."""
        h = self.conv2(self.norm2(self.conv1(self.norm1(x)), overwrite=True))
        # large fresh tensors are dear on CPUs (page faults): without gradients the sum goes where h is
        return h + self.shortcut(x) if torch.is_grad_enabled() else h.add_(self.shortcut(x))


class GlobalContext(nn.Module):
    """What no window of a convolution sees: the means and deviations of all channels scale and shift each of them.

    How bright a dark photo was, and how thick the haze is, shows in the whole photo at once. The last layer starts at
    0, so that an untrained one changes nothing (squeeze and excitation, arXiv 1709.01507, with a shift).

    Args:
        channels: Number of channels C.
        hidden: Hidden channels of the MLP from statistics to scales and shifts.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(2 * channels, hidden)
        self.fc2 = nn.Linear(hidden, 2 * channels)
        nn.init.zeros_(self.fc2.weight)
        nn.init.zeros_(self.fc2.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        mean = x.float().mean((2, 3))
        deviation = (x.float() - mean[:, :, None, None]).square().mean((2, 3)).add(1e-4).sqrt()
        statistics = torch.cat([mean, deviation], dim=1).to(self.fc1.weight.dtype)
        scale, shift = self.fc2(F.silu(self.fc1(statistics)))[:, :, None, None].to(x.dtype).chunk(2, dim=1)
        return x + x * scale + shift


class AttentionBlock(nn.Module):
    """Single-head self-attention over positions, residual."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = GroupNorm(groups, channels, eps=1e-6)
        self.qkv = PointwiseConvolution(channels, 3 * channels)
        self.out = PointwiseConvolution(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        height, width = x.shape[2:]
        # (B, 1 head, positions, channels); free of copies in channels-last memory
        query, key, value = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).unsqueeze(1).chunk(3, dim=-1)
        attended = attention(query, key, value)
        return x + self.out(attended.squeeze(1).transpose(1, 2).unflatten(2, (height, width)))


class Downsample(nn.Module):
    """Halves the sides: zero padding right and bottom, then a 3x3 convolution of stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H / 2, W / 2)."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


# row i: which taps of a 3-tap kernel add up to tap i of the 4-tap kernel that works on the map before it is doubled
_DOUBLING = ((0, 0, 1), (0, 1, 1), (1, 1, 0), (1, 0, 0))


def doubling_kernel(weight: Tensor) -> Tensor:
    """Kernel of the transposed convolution that equals a nearest-neighbour doubling and a 3x3 convolution.

    Of the nine places under a 3x3 kernel only four differ on a doubled map, so that taps can be added beforehand:
    out[2i] = w_0 x[i-1] + (w_1 + w_2) x[i] and out[2i+1] = (w_0 + w_1) x[i] + w_2 x[i+1], in both directions.

    Args:
        weight: (C_out, C_in, 3, 3).

    Returns:
        (C_in, C_out, 4, 4), channels-last, for stride 2 and padding 1.
    """
    taps = torch.tensor(_DOUBLING, dtype=weight.dtype, device=weight.device)
    rows = weight.permute(2, 3, 1, 0).reshape(9, -1)  # (9, C_in C_out)
    folded = (torch.kron(taps, taps) @ rows).unflatten(1, (weight.shape[1], weight.shape[0]))
    return folded.permute(1, 2, 0).unflatten(2, (4, 4)).contiguous(memory_format=torch.channels_last)


class Upsample(nn.Module):
    """Doubles the sides: nearest neighbour, then a 3x3 convolution.

    In inference on CPUs both are one transposed convolution: 4 instead of 9 multiply-adds, and no doubled input.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, 2 H, 2 W)."""
        if _composable(x, self.conv.weight):
            return F.conv_transpose2d(x, doubling_kernel(self.conv.weight), self.conv.bias, stride=2, padding=1)
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))
