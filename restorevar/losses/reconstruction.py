"""Pixel distances."""

import math

import torch.nn.functional as F
from torch import Tensor

from restorevar.losses.base import ImageLoss

__all__ = ["AbsoluteError", "NegativePSNR", "SquaredError"]


class AbsoluteError(ImageLoss):
    """Mean absolute difference (L1).

    Args:
        weight: Factor in the sum of the terms.
    """

    name = "l1"

    def __call__(self, decoded: Tensor, clean: Tensor) -> Tensor:
        """See :meth:`ImageLoss.__call__`."""
        return F.l1_loss(decoded, clean)


class SquaredError(ImageLoss):
    """Mean squared difference (L2).

    Args:
        weight: Factor in the sum of the terms.
    """

    name = "l2"

    def __call__(self, decoded: Tensor, clean: Tensor) -> Tensor:
        """See :meth:`ImageLoss.__call__`."""
        return F.mse_loss(decoded, clean)


class NegativePSNR(ImageLoss):
    """Mean over the photos of -PSNR in dB, clamped to no range (the loss of NAFNet, arXiv 2204.04676).

    What restoration is scored by: a photo of twice the error does not count for more than its decibels.

    Args:
        weight: Factor in the sum of the terms.
        floor: Added to the mean squared error of a photo, range [0, 1], so that no photo is worth ever more.
    """

    name = "negative_psnr"

    def __init__(self, weight: float = 0.05, floor: float = 1e-4) -> None:
        super().__init__(weight)
        self.floor = floor

    def __call__(self, decoded: Tensor, clean: Tensor) -> Tensor:
        """See :meth:`ImageLoss.__call__`."""
        error = (decoded - clean).square().mean(dim=(1, 2, 3)) / 4  # from [-1, 1] to the range [0, 1]
        return (error + self.floor).log().mean() * (10 / math.log(10))
