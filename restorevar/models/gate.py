"""Gate: how much of the degraded photo to keep, told from statistics of the whole (ours, not the paper's)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from restorevar.models.config import GateConfig
from restorevar.models.guided_filter import guided_filter

__all__ = ["Correction", "PhotoGate", "photo_statistics"]

BRIGHTNESS = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
BLOCKS = (0.02, 0.1, 0.5, 0.9, 0.98)
ENDS = (0.005, 0.995)
DARKNESS = (0.01, 0.1, 0.5, 0.9, 0.99)
BLACK, WHITE = 0.6 / 255, 0.98
STATISTICS_COUNT = 69


class Correction(NamedTuple):
    """What a gate makes of one photo, or of each of B.

    Attributes:
        share: g, (B, 1), how much of the degraded photo to keep, in (0, 1).
        shift: s, (B, 3), by how much to move each colour of the rest, in values of [0, 1].
        gain: a, (B, 1), by which part of itself to strengthen the rest.
    """

    share: Tensor
    shift: Tensor
    gain: Tensor


class PhotoGate(nn.Module):
    """Blends degraded and restored photo: z + g (x - z) + (1 - g) (a z + s), by a share g, a gain a and a shift s.

    z is the restored photo y through a guided filter whose guide is the degraded photo x: as a rule a degradation is
    smooth, or an affine change of colours from place to place, and what a decoder draws into a sky is neither.

    Whether a photo suffers at all, and how bright it should be, is a matter of the whole: a good photo is best left
    alone, and a dark one may be meant so. What tells (brightness, noise in flat places, sharpness at two sizes, how far
    the two photos differ) are a few dozen numbers, and a small network reads them. From so few it can be learned on a
    thousand photos, where a network on pixels learns the photos by heart.

    Args:
        config: Sizes.
    """

    def __init__(self, config: GateConfig) -> None:
        super().__init__()
        self.config = config
        self.norm = nn.BatchNorm1d(STATISTICS_COUNT, affine=False, momentum=None)
        self.dropout = nn.Dropout(config.dropout)
        self.fc1 = nn.Linear(STATISTICS_COUNT, config.hidden)
        self.fc2 = nn.Linear(config.hidden, 5)
        nn.init.zeros_(self.fc2.weight)
        nn.init.zeros_(self.fc2.bias)
        nn.init.constant_(self.fc2.bias[:1], -2.0)

    def read(self, statistics: Tensor) -> Correction:
        """What to do with photos of these statistics.

        Args:
            statistics: (B, 69) float32, from :func:`photo_statistics`.

        Returns:
            Float32.
        """
        with torch.autocast(statistics.device.type, enabled=False):
            x = self.dropout(self.norm(statistics).clamp(-4, 4))
            x = F.silu(F.linear(x, self.fc1.weight.float(), self.fc1.bias.float()))
            x = F.linear(x, self.fc2.weight.float(), self.fc2.bias.float())
        share, shift, gain = x.split((1, 3, 1), dim=1)
        return Correction(share.sigmoid(), 0.03 * shift, 0.1 * gain)

    def decide(self, tiles: Tensor, shrunk: Tensor | None) -> Correction:
        """What to do with a photo of several tiles.

        Noise and blur show at full size only, the scene as a whole shows best in the shrunk photo: the share is told
        from the mean of the tiles alone, shift and gain from both.

        Args:
            tiles: (n, 69) statistics of the tiles.
            shrunk: (1, 69) statistics of the whole photo in one tile; None without.

        Returns:
            As :meth:`read`, of one photo.
        """
        near = self.read(tiles.mean(0, keepdim=True))
        if shrunk is None:
            return near
        far = self.read(shrunk)
        return Correction(near.share, (near.shift + far.shift) / 2, (near.gain + far.gain) / 2)

    @property
    def reach(self) -> int:
        """How far away, in pixels, what a pixel of a blend depends on can be."""
        return 2 * self.config.filter_radius

    def filtered(self, restored: Tensor, degraded: Tensor) -> Tensor:
        """The restored photo as a locally affine function of the degraded one.

        Args:
            restored: y, (B, 3, H, W) float32 in [0, 1].
            degraded: x, the same.

        Returns:
            z, the same.
        """
        if self.config.filter_radius == 0:
            return restored
        return guided_filter(degraded, restored, self.config.filter_radius, self.config.filter_epsilon)

    def forward(self, restored: Tensor, degraded: Tensor, weight: float | Tensor) -> Tensor:
        """Blends two photos by what their statistics say.

        Args:
            restored: (B, 3, H, W) in [-1, 1].
            degraded: The same.
            weight: Fidelity w in [0, 1], a number or one a sample (B,).

        Returns:
            (B, 3, H, W) float32.
        """
        with torch.autocast(restored.device.type, enabled=False):
            restored, degraded = ((photo.float().clamp(-1, 1) + 1) / 2 for photo in (restored, degraded))
            correction = self.read(photo_statistics(degraded, restored))
            return 2 * self.blend(restored, degraded, correction, weight) - 1

    def blend(self, restored: Tensor, degraded: Tensor, correction: Correction, weight: float | Tensor) -> Tensor:
        """Blends two photos, y + w (z + g (x - z) + (1 - g) (a z + s) - y).

        Args:
            restored: y, (B, 3, H, W) float32 in [0, 1].
            degraded: x, the same.
            correction: g, s and a, of each photo or one for all.
            weight: w, a number or one a sample (B,).

        Returns:
            (B, 3, H, W).
        """
        if isinstance(weight, Tensor):
            weight = weight.float().view(-1, 1, 1, 1)
        share, shift, gain = (value[:, :, None, None] for value in correction)
        filtered = self.filtered(restored, degraded)
        blended = filtered + share * (degraded - filtered) + (1 - share) * (gain * filtered + shift)
        return restored + weight * (blended - restored)


def photo_statistics(degraded: Tensor, restored: Tensor) -> Tensor:
    """What the gate reads of a degraded and a restored photo.

    Quantiles of brightness, of the dark channel (the least of the colours, of pixels and of windows) and of the
    deviation inside small blocks, which is noise in flat ones and sharpness in others, at full and half size; how much
    is black (in haze nothing) and white (in low light nothing); how lopsided and how rare fine detail is (streaks and
    flakes are bright); and what restoring changed.

    Args:
        degraded: (B, 3, H, W) float32 in [0, 1]; 32 pixels a side or more.
        restored: The same.

    Returns:
        (B, 69) float32.
    """
    seen, given = _luma(degraded), _luma(restored)
    half, change = F.avg_pool2d(seen, 2), restored - degraded
    fine, coarse = _fine(seen), _fine(half)
    least, most = degraded.amin(1, keepdim=True), degraded.amax(1, keepdim=True)
    dark = F.avg_pool2d(least, 4)
    windows = -F.max_pool2d(-dark, 7, stride=1, padding=3)
    blocks, means = _deviations(fine, 8), F.avg_pool2d(seen, 8).flatten(1)
    middle = _quantiles(means, (0.5,))
    shadows = torch.where(means <= middle, blocks, blocks.new_ones(()))
    lights = torch.where(means >= middle, blocks, blocks.new_ones(()))
    smooth = F.avg_pool2d(change, 16)
    brightness = _quantiles(half, BRIGHTNESS)
    red, green, blue = degraded.mean((2, 3)).unbind(1)
    positive = [
        brightness + 0.01,
        _quantiles(blocks, BLOCKS),
        _quantiles(_deviations(_fine(given), 8), BLOCKS),
        _quantiles(_deviations(coarse, 4), BLOCKS),
        _quantiles(shadows, (0.05,)),
        _quantiles(lights, (0.05,)),
        _quantiles(_deviations(_fine(degraded[:, :1] - degraded[:, 1:2]), 8), (0.05, 0.5)),
        _quantiles(fine, ENDS).abs(),
        _quantiles(_fine(_luma(change)), ENDS).abs(),
        smooth.square().mean((1, 2, 3)).sqrt()[:, None],
        change.square().mean((1, 2, 3)).sqrt()[:, None],
        (degraded < BLACK).float().mean((2, 3)),
        (most > WHITE).float().mean((1, 2, 3))[:, None],
        (least > WHITE).float().mean((1, 2, 3))[:, None],
    ]
    power = fine.square().mean((1, 2, 3)) + 1e-6
    plain = [
        brightness,
        _quantiles(F.avg_pool2d(given, 2), BRIGHTNESS),
        _quantiles(dark, (0.05, 0.5, 0.95)),
        smooth.mean((2, 3)),
        _quantiles(_luma(smooth), (0.05, 0.5, 0.95)),
        torch.stack([red - green, blue - green], 1),
        _quantiles(windows, DARKNESS),
        (fine.pow(3).mean((1, 2, 3)) / power.pow(1.5))[:, None],
        (fine.pow(4).mean((1, 2, 3)) / power.square() + 1e-3).log()[:, None],
    ]
    return torch.cat([torch.cat(positive, 1).add(1e-3).log(), *plain], dim=1)


def _luma(photo: Tensor) -> Tensor:
    red, green, blue = photo.split(1, dim=1)
    return 0.299 * red + 0.587 * green + 0.114 * blue


def _fine(photo: Tensor) -> Tensor:
    """What differs from the mean of the 3x3 pixels around."""
    return photo - F.avg_pool2d(F.pad(photo, (1, 1, 1, 1), mode="reflect"), 3, stride=1)


def _deviations(fine: Tensor, side: int) -> Tensor:
    """Root mean square in blocks, (B, 1, H, W) -> (B, blocks)."""
    return F.avg_pool2d(fine.square(), side).flatten(1).sqrt()


def _quantiles(values: Tensor, shares: tuple[float, ...]) -> Tensor:
    """Quantiles of each sample by nearest rank, (B, ...) -> (B, len(shares)); sorting can be exported."""
    ordered = values.flatten(1).sort(dim=1).values
    ranks = [round(share * (ordered.shape[1] - 1)) for share in shares]
    return torch.stack([ordered[:, rank] for rank in ranks], dim=1)
