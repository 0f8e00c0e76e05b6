"""Training against the build-up of errors: inputs hold the model's own mistakes, targets say how to mend them.

Under teacher forcing every scale sees perfect coarser scales; in a roll-out it sees its own. Here some input tokens are
replaced by the model's own samples, and what follows is quantized again against the sum that they lead to, so that the
finer scales' targets make up for them (the idea of self-correction in Infinity, arXiv 2412.04431, there by bit flips).

Shapes: B batch, T tokens of all scales, V vocabulary, Z channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from restorevar.models.quantizer import MultiScaleQuantizer, area_resize
from restorevar.models.scales import ScaleSchedule

__all__ = ["SelfCorrection", "requantize", "sample_top_k"]


@dataclass(frozen=True)
class SelfCorrection:
    """How much is replaced.

    Attributes:
        image_share: Part of the images that get wrong tokens.
        token_share: Largest part of such an image's input tokens that are replaced; the part is drawn for each image,
            uniformly from 0 on.
        top_k: Samples are drawn from so many of the most likely tokens.
    """

    image_share: float = 0.3
    token_share: float = 0.2
    top_k: int = 20

    def draw(self, batch: int, tokens: int, device: torch.device) -> Tensor:
        """Which tokens to replace, (B, T) bool, by torch's global generator."""
        chosen = torch.rand(batch, 1, device=device) < self.image_share
        part = self.token_share * torch.rand(batch, 1, device=device)
        return chosen & (torch.rand(batch, tokens, device=device) < part)


def sample_top_k(logits: Tensor, top_k: int) -> Tensor:
    """A token for each place, drawn from the most likely ones: (B, T, V) -> (B, T) int64."""
    values, indices = logits.topk(min(top_k, logits.shape[-1]), dim=-1)
    drawn = torch.multinomial(values.float().softmax(-1).flatten(0, 1), 1).view(*logits.shape[:2], 1)
    return indices.gather(-1, drawn).squeeze(-1)


@torch.no_grad()
def requantize(
    quantizer: MultiScaleQuantizer, latent: Tensor, samples: Tensor, replaced: Tensor, scales: ScaleSchedule
) -> tuple[Tensor, Tensor]:
    """Quantizes a latent while some of its tokens are replaced by others.

    Args:
        quantizer: Codebook and phi.
        latent: (B, Z, s_K, s_K) continuous latent of the clean photos.
        samples: (B, T) int64 tokens to put in.
        replaced: (B, T) bool, where.
        scales: The schedule.

    Returns:
        Input tokens (B, T), with the replaced ones; target tokens (B, T): at every scale the nearest entries to what
        is still missing from the sum of the inputs so far. Both are the usual tokens where nothing is replaced.
    """
    with torch.autocast(latent.device.type, enabled=False):
        residual = latent.float()
        inputs, targets = [], []
        for scale in range(len(scales)):
            span = scales.span(scale)
            looked_up = area_resize(residual, scales[scale]).flatten(2).transpose(1, 2).flatten(0, 1)
            target = quantizer.nearest(looked_up).view(len(latent), -1)
            given = torch.where(replaced[:, span], samples[:, span], target)
            residual = residual - quantizer.contribution(given, scale, scales)
            inputs.append(given)
            targets.append(target)
    return torch.cat(inputs, 1), torch.cat(targets, 1)
