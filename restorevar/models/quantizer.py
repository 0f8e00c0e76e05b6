"""Multi-scale residual vector quantizer (VAR, arXiv 2404.02905, algorithms 1 and 2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from restorevar.models.config import TokenizerConfig
from restorevar.models.scales import ScaleSchedule

__all__ = ["MultiScaleQuantizer", "Quantization", "area_resize", "bicubic_resize"]


def area_resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Mean over windows from floor to ceil, (B, C, H, W) -> (B, C, *size); the input itself if the size is right."""
    return x if x.shape[2:] == torch.Size(size) else F.adaptive_avg_pool2d(x, size)


def bicubic_resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bicubic with a = -0.75, no corner alignment, no antialiasing; the input itself if the size is right."""
    if x.shape[2:] == torch.Size(size):
        return x
    # the channels-last kernel of F.interpolate is several times slower for bicubic
    return F.interpolate(x.contiguous(), size=size, mode="bicubic", align_corners=False)


@dataclass
class Quantization:
    """What quantizing a latent gives.

    Attributes:
        tokens: (B, T) int64, all scales coarse to fine, row by row.
        latent: (B, Z, h, w) running sum f_hat after the last scale.
        straight_through: ``latent`` with the gradient of the input.
        loss: Scalar, mean over scales of 0.25 mse(sg(f_hat_k), f) + mse(f_hat_k, sg(f)).
        residuals: What was looked up at each scale, K tensors (B * s_k^2, Z), without gradient.
    """

    tokens: Tensor
    latent: Tensor
    straight_through: Tensor
    loss: Tensor
    residuals: list[Tensor]


class MultiScaleQuantizer(nn.Module):
    """Codebook and shared residual convolutions phi. Works in float32 whatever autocast says.

    Args:
        config: Sizes of the tokenizer.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        channels = config.latent_channels
        self.codebook = nn.Embedding(config.vocabulary_size, channels)
        self.phi = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(config.phi_count))
        self.phi_identity = config.phi_identity
        self.phi_convolution = config.phi_convolution

    def nearest(self, vectors: Tensor) -> Tensor:
        """Index of the nearest codebook entry in Euclidean distance, (N, Z) -> (N,) int64."""
        entries = self.codebook.weight
        with torch.autocast(vectors.device.type, enabled=False):
            distances = torch.addmm(entries.square().sum(1)[None], vectors.to(entries.dtype), entries.T, alpha=-2.0)
        return distances.argmin(1)  # the vector's own squared length moves no minimum

    def mean_entries(self, logits: Tensor) -> Tensor:
        """Mean of a distribution of tokens, (B, n, V) float32 -> (B, n, Z): the least expected squared error."""
        with torch.autocast(logits.device.type, enabled=False):
            return logits.softmax(-1) @ self.codebook.weight

    def contribution(self, tokens: Tensor, scale: int, scales: ScaleSchedule) -> Tensor:
        """What the tokens of one scale add to the running sum.

        Args:
            tokens: (B, s_k^2) int64.
            scale: Index k of the scale, from 0.
            scales: The schedule.

        Returns:
            (B, Z, s_K, s_K) float32.
        """
        return self.contribution_of(self.codebook(tokens), scale, scales)

    def contribution_of(self, entries: Tensor, scale: int, scales: ScaleSchedule) -> Tensor:
        """:meth:`contribution` of codebook entries, or of means of them, (B, s_k^2, Z)."""
        with torch.autocast(entries.device.type, enabled=False):
            return self.spread(entries.float().transpose(1, 2).unflatten(2, scales[scale]), scale, scales)

    def spread(self, small: Tensor, scale: int, scales: ScaleSchedule) -> Tensor:
        """Embedded map (B, Z, s_k, s_k) of one scale as an addition to the running sum (B, Z, s_K, s_K)."""
        h = bicubic_resize(small, scales.finest)
        conv = self.phi[scales.phi_index(len(self.phi))[scale]]
        return self.phi_identity * h + self.phi_convolution * conv(h)

    def quantize(self, latent: Tensor, scales: ScaleSchedule, last_scale: int | None = None) -> Quantization:
        """Tokens, running sum and training loss of a continuous latent.

        Args:
            latent: (B, Z, s_K, s_K), after ``quant_conv``.
            scales: The schedule.
            last_scale: Stop after this scale (index from 0); None runs all. Used in training only.
        """
        with torch.autocast(latent.device.type, enabled=False):
            latent = latent.float()
            target = latent.detach()
            residual = target
            running = torch.zeros_like(target)
            loss = latent.new_zeros(())
            tokens, residuals = [], []
            count = len(scales) if last_scale is None else last_scale + 1
            for scale in range(count):
                looked_up = area_resize(residual, scales[scale]).flatten(2).transpose(1, 2).flatten(0, 1)
                index = self.nearest(looked_up.detach()).view(len(latent), -1)
                added = self.contribution(index, scale, scales)
                running = running + added
                residual = residual - added.detach()
                loss = loss + 0.25 * F.mse_loss(running.detach(), latent) + F.mse_loss(running, target)
                tokens.append(index)
                residuals.append(looked_up.detach())
            straight_through = latent + (running - latent).detach()
            return Quantization(torch.cat(tokens, 1), running, straight_through, loss / count, residuals)

    def running_sums(self, tokens: Tensor, scales: ScaleSchedule) -> list[Tensor]:
        """Running sum f_hat after each scale, K tensors (B, Z, s_K, s_K), of tokens (B, T)."""
        sums: list[Tensor] = []
        for scale in range(len(scales)):
            added = self.contribution(tokens[:, scales.span(scale)], scale, scales)
            sums.append(added if not sums else sums[-1] + added)
        return sums

    def latent_from_tokens(self, tokens: Tensor, scales: ScaleSchedule) -> Tensor:
        """Discrete latent f_hat (B, Z, s_K, s_K) of tokens (B, T)."""
        return self.running_sums(tokens, scales)[-1]

    def teacher_input(self, tokens: Tensor, scales: ScaleSchedule) -> Tensor:
        """Transformer inputs of scales 2..K for given tokens.

        Args:
            tokens: (B, T) int64.
            scales: The schedule.

        Returns:
            (B, T - s_1^2, Z): for each scale from the second, the running sum before it, area-downsampled to s_k.
        """
        sums = self.running_sums(tokens, scales)[:-1]
        if not sums:
            return self.codebook.weight.new_zeros(len(tokens), 0, self.codebook.embedding_dim)
        return torch.cat([self.next_input(running, scale + 1, scales) for scale, running in enumerate(sums)], 1)

    @staticmethod
    def next_input(running: Tensor, scale: int, scales: ScaleSchedule) -> Tensor:
        """Running sum (B, Z, s_K, s_K) as the input (B, s_k^2, Z) of scale ``scale``."""
        return area_resize(running, scales[scale]).flatten(2).transpose(1, 2)
