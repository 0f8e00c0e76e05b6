"""Setting up and looking after a codebook while a tokenizer is trained from scratch.

Shapes: N vectors, V codebook entries, Z channels, K scales.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from restorevar.models.quantizer import MultiScaleQuantizer, area_resize
from restorevar.models.scales import ScaleSchedule

__all__ = [
    "CodebookTraining",
    "CodebookUse",
    "continuous_residuals",
    "initialize_codebook",
    "kmeans",
    "perplexity",
    "restart_codes",
    "token_counts",
]


@dataclass(frozen=True)
class CodebookTraining:
    """How a codebook is trained. Shares are parts of the run's optimizer steps unless they say otherwise.

    Attributes:
        continuous_share: First part of the run, without quantization; then k-means sets the codebook. 0 keeps the
            codebook that the model came with.
        discrete_share: Part of the photos whose discrete latent is decoded; the others' continuous one is.
        loss_weight: Weight of the quantizer's own loss.
        last_scale_share: Part of the steps that stop at a random scale.
        restart_every: Steps after which dead entries restart; also the window of the counts.
        restart_below: An entry is dead if it was used less than this part of the mean use.
        restart_until: No restarts after this part of the run.
    """

    continuous_share: float = 0.2
    discrete_share: float = 0.5
    loss_weight: float = 1.0
    last_scale_share: float = 0.1
    restart_every: int = 500
    restart_below: float = 0.01
    restart_until: float = 0.8


def token_counts(tokens: Tensor, scales: ScaleSchedule, vocabulary_size: int) -> Tensor:
    """How often each entry is used at each scale.

    Args:
        tokens: (B, t) int64, all scales or the first ones.
        scales: The schedule.
        vocabulary_size: Entries V.

    Returns:
        (K, V) int64.
    """
    counts = tokens.new_zeros(len(scales), vocabulary_size)
    for scale in range(len(scales)):
        if scales.span(scale).stop <= tokens.shape[1]:
            counts[scale] = torch.bincount(tokens[:, scales.span(scale)].flatten(), minlength=vocabulary_size)
    return counts


def perplexity(counts: Tensor) -> Tensor:
    """Exponential of the entropy of the use, (..., V) -> (...): V if all are used alike, 1 if one is, 0 if none."""
    total = counts.sum(-1, keepdim=True)
    dtype = torch.float32 if counts.device.type == "mps" else torch.float64  # MPS has no float64
    share = counts.to(dtype) / total.clamp(min=1)
    return torch.where(total[..., 0] > 0, (-torch.special.xlogy(share, share).sum(-1)).exp(), 0.0).float()


class CodebookUse(nn.Module):
    """Counts of the current window, kept in checkpoints.

    Feed it counts summed over all processes, so that it is the same on each.

    Args:
        scale_count: Number of scales K.
        vocabulary_size: Entries V.
    """

    def __init__(self, scale_count: int, vocabulary_size: int) -> None:
        super().__init__()
        self.register_buffer("counts", torch.zeros(scale_count, vocabulary_size, dtype=torch.int64))
        self.counts: Tensor

    @torch.no_grad()
    def update(self, counts: Tensor) -> None:
        """Adds (K, V) counts."""
        self.counts += counts

    @torch.no_grad()
    def dead(self, below: float) -> Tensor:
        """(V,) bool: entries used less than ``below`` times the mean over all entries."""
        used = self.counts.sum(0)
        return used < below * used.sum() / len(used)

    @torch.no_grad()
    def reset(self) -> None:
        """Begins the next window."""
        self.counts.zero_()


def _squared_distances(vectors: Tensor, centers: Tensor) -> Tensor:
    """(N, V), without the vectors' own squared lengths, which move no minimum."""
    return torch.addmm(centers.square().sum(1)[None], vectors, centers.T, alpha=-2.0)


def kmeans(
    vectors: Tensor, count: int, iterations: int, generator: torch.Generator, start: Tensor | None = None
) -> Tensor:
    """Lloyd's algorithm; clusters that lose all members move to a random vector.

    Args:
        vectors: (N, Z) float32.
        count: Clusters V.
        iterations: Rounds.
        generator: CPU generator of the random choices.
        start: (V, Z) centers to begin with; None takes random vectors.

    Returns:
        (V, Z) float32 centers.
    """
    vectors = vectors.float()

    def pick(number: int) -> Tensor:
        order = torch.randperm(len(vectors), generator=generator)
        order = order.repeat(-(-number // len(vectors)))[:number]
        return vectors[order.to(vectors.device)]

    centers = pick(count) if start is None else start.float().clone()
    for _ in range(iterations):
        nearest = torch.cat([_squared_distances(part, centers).argmin(1) for part in vectors.split(1 << 14)])
        members = torch.bincount(nearest, minlength=count)
        sums = torch.zeros_like(centers).index_add_(0, nearest, vectors)
        centers = sums / members.clamp(min=1)[:, None]
        empty = members == 0
        centers[empty] = pick(int(empty.sum()))
    return centers


@torch.no_grad()
def continuous_residuals(quantizer: MultiScaleQuantizer, latent: Tensor, scales: ScaleSchedule) -> Tensor:
    """What each scale would look up if every lookup were exact.

    Args:
        quantizer: Gives the shared convolutions phi.
        latent: (B, Z, s_K, s_K).
        scales: The schedule.

    Returns:
        (B T, Z) residuals of all scales in token proportion.
    """
    residual, found = latent.float(), []
    for scale in range(len(scales)):
        small = area_resize(residual, scales[scale])
        found.append(small.flatten(2).transpose(1, 2).flatten(0, 1))
        residual = residual - quantizer.spread(small, scale, scales)
    return torch.cat(found)


@torch.no_grad()
def initialize_codebook(
    quantizer: MultiScaleQuantizer,
    latent: Tensor,
    scales: ScaleSchedule,
    generator: torch.Generator,
    rounds: int = 3,
    iterations: int = 8,
) -> None:
    """Sets the codebook by k-means on the residuals of all scales, in token proportion.

    The first round takes residuals of exact lookups, the later ones those that the codebook so far really leaves.

    Args:
        quantizer: Changed in place.
        latent: (B, Z, s_K, s_K) continuous latents of some photos.
        scales: The schedule.
        generator: CPU generator of the random choices.
        rounds: Rounds of collecting residuals.
        iterations: Rounds of k-means each.
    """
    weight = quantizer.codebook.weight
    with torch.autocast(latent.device.type, enabled=False):
        vectors = continuous_residuals(quantizer, latent, scales)
        start = None
        for _ in range(rounds):
            start = kmeans(vectors, len(weight), iterations, generator, start)
            weight.copy_(start)
            vectors = torch.cat(quantizer.quantize(latent, scales).residuals)


@torch.no_grad()
def restart_codes(codebook: nn.Embedding, dead: Tensor, candidates: Tensor, generator: torch.Generator) -> int:
    """Moves dead entries to random current residuals, in place.

    Args:
        codebook: The codebook.
        dead: (V,) bool.
        candidates: (N, Z) residuals of the current step, from all processes.
        generator: CPU generator of the choice; seeded alike on all processes.

    Returns:
        How many entries moved.
    """
    number = int(dead.sum())
    if number and len(candidates):
        order = torch.randint(len(candidates), (number,), generator=generator)
        codebook.weight[dead] = candidates[order.to(candidates.device)].to(codebook.weight)
    return number
