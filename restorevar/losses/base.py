"""What every image loss has."""

from abc import ABC, abstractmethod

from torch import Tensor

__all__ = ["ImageLoss"]


class ImageLoss(ABC):
    """A term of the decoding loss. Callers hand over float32 and weigh the result by ``weight``.

    Args:
        weight: Factor in the sum of the terms.
    """

    name: str
    """Key of the term in logs."""

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight

    @abstractmethod
    def __call__(self, decoded: Tensor, clean: Tensor) -> Tensor:
        """Distance of two batches.

        Args:
            decoded: (B, 3, H, W) float32, about [-1, 1], not clamped.
            clean: The same shape, in [-1, 1].

        Returns:
            Scalar.
        """
