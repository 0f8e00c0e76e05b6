"""Pixel distances."""

import torch.nn.functional as F
from torch import Tensor

from restorevar.losses.base import ImageLoss

__all__ = ["AbsoluteError", "SquaredError"]


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
