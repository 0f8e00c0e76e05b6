"""Guided filter (He, Sun and Tang, "Guided Image Filtering", TPAMI 2013) with a colour guide."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["guided_filter"]


def guided_filter(guide: Tensor, image: Tensor, radius: int, epsilon: float) -> Tensor:
    """The image as a locally affine function of the guide's colours.

    In each square window the image is fitted by least squares as A guide + b, and each pixel takes the mean of A and b
    over the windows that hold it. Where the guide is smooth so is the result, and the guide's edges are kept. A pixel
    depends on what is at most twice the radius away; beyond its border the image repeats its last pixels.

    Args:
        guide: (B, 3, H, W).
        image: (B, C, H, W).
        radius: Windows have 2 radius + 1 pixels a side.
        epsilon: Variance of the guide, in the square of its units, below which a window is smoothed.

    Returns:
        (B, C, H, W).
    """
    guide, image = (F.pad(photo, (2 * radius,) * 4, mode="replicate") for photo in (guide, image))
    inside = guide[..., 2 * radius : -2 * radius, 2 * radius : -2 * radius]
    colours, means = guide.unbind(1), _box(guide, radius).unbind(1)
    pairs = [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)]
    moments = _box(torch.stack([colours[i] * colours[j] for i, j in pairs], 1), radius).unbind(1)
    rr, rg, rb, gg, gb, bb = (moment - means[i] * means[j] for (i, j), moment in zip(pairs, moments, strict=True))
    # the covariance as L D L^T: of a grey photo it is nearly singular, and cofactors would lose all digits
    d0 = rr + epsilon
    l10, l20 = rg / d0, rb / d0
    d1 = gg + epsilon - l10 * rg
    l21 = (gb - l20 * rg) / d1
    d2 = bb + epsilon - l20 * rb - l21 * l21 * d1
    channels = []
    for channel in image.unbind(1):
        products = _box(torch.stack([channel, *(channel * colour for colour in colours)], 1), radius)
        mean = products[:, 0]
        r, g, b = (products[:, 1 + i] - means[i] * mean for i in range(3))
        g = g - l10 * r
        slope_b = (b - l20 * r - l21 * g) / d2
        slope_g = g / d1 - l21 * slope_b
        slope_r = r / d0 - l10 * slope_g - l20 * slope_b
        offset = mean - slope_r * means[0] - slope_g * means[1] - slope_b * means[2]
        smooth = _box(torch.stack([slope_r, slope_g, slope_b, offset], 1), radius)
        channels.append((smooth[:, :3] * inside).sum(1) + smooth[:, 3])
    return torch.stack(channels, 1)


def _box(values: Tensor, radius: int) -> Tensor:
    """Means of square windows, (B, C, h, w) -> (B, C, h - 2 radius, w - 2 radius)."""
    side = 2 * radius + 1
    return _sums(_sums(values, side, 2), side, 3) / side**2


def _sums(values: Tensor, count: int, dim: int) -> Tensor:
    """Sums of ``count`` neighbours, put together from sums of 1, 2, 4, ... of them: exact, unlike running sums."""
    length, done, width = values.shape[dim] - count + 1, 0, 1
    total: Tensor | None = None
    while True:
        if count & width:
            part = values.narrow(dim, done, length)
            total, done = part if total is None else total + part, done + width
        if 2 * width > count:
            assert total is not None  # a count has a highest bit
            return total
        shorter = values.shape[dim] - width
        values = values.narrow(dim, 0, shorter) + values.narrow(dim, width, shorter)
        width *= 2
