"""Patch discriminator (pix2pix, arXiv 1611.07004) for the adversarial term of stage 1. Not part of a model folder."""

from __future__ import annotations

import itertools

from torch import Tensor, nn
from torch.func import functional_call

__all__ = ["PatchDiscriminator"]


class PatchDiscriminator(nn.Module):
    """Scores overlapping patches: higher is more like a clean photo.

    Args:
        channels: Channels of the first layer; they double to at most eight times as many.
        layers: Stride-2 layers.
    """

    def __init__(self, channels: int = 64, layers: int = 3) -> None:
        super().__init__()
        widths = [channels * min(2**layer, 8) for layer in range(layers)]
        blocks: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for before, after in itertools.pairwise(widths):
            # group norm in place of batch norm: no statistics to share between processes
            blocks += [
                nn.Conv2d(before, after, 4, stride=2, padding=1, bias=False),
                nn.GroupNorm(min(32, after // 4), after),
                nn.LeakyReLU(0.2),
            ]
        blocks.append(nn.Conv2d(widths[-1], 1, 3, padding=1))
        self.layers = nn.Sequential(*blocks)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, 1, H / 2^layers, W / 2^layers)."""
        return self.layers(image)

    def frozen(self, image: Tensor) -> Tensor:
        """The same scores with gradients to the image only, so that one backward pass serves both players."""
        weights: dict[str, Tensor] = {name: value.detach() for name, value in self.named_parameters()}
        return functional_call(self, weights, (image,))
