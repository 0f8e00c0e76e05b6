"""Patch adversarial loss (hinge form, as in VQGAN)."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

__all__ = ["AdversarialLoss", "generator_loss", "hinge_loss"]


@dataclass(frozen=True)
class AdversarialLoss:
    """How the adversarial term is used.

    Attributes:
        weight: Factor of the generator's term.
        start_share: The term and the discriminator begin after this part of the run.
        channels: Channels of the discriminator's first layer.
        layers: Its stride-2 layers.
    """

    weight: float = 0.1
    start_share: float = 0.5
    channels: int = 64
    layers: int = 3


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's loss from its scores of clean and decoded patches, any shape -> scalar."""
    return 0.5 * (F.relu(1 - real.float()).mean() + F.relu(1 + fake.float()).mean())


def generator_loss(fake: Tensor) -> Tensor:
    """The decoder's loss from the scores of its patches, any shape -> scalar."""
    return -fake.float().mean()
