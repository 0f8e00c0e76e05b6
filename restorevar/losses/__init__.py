"""Losses between a decoded and a clean photo; stage configs list the ones they want."""

from restorevar.losses.adversarial import AdversarialLoss, generator_loss, hinge_loss
from restorevar.losses.base import ImageLoss
from restorevar.losses.perceptual import MultiScaleSimilarity, PerceptualDistance
from restorevar.losses.reconstruction import AbsoluteError, NegativePSNR, SquaredError

__all__ = [
    "AbsoluteError",
    "AdversarialLoss",
    "ImageLoss",
    "MultiScaleSimilarity",
    "NegativePSNR",
    "PerceptualDistance",
    "SquaredError",
    "generator_loss",
    "hinge_loss",
]
