"""The degradations as Albumentations transforms, to compose with a pipeline of your own.

Import this module only where Albumentations is wanted: it takes a second, and none of the rest needs it.
"""

import os
from typing import Any

import numpy as np

from restorevar.datamodules.degradations.haze import haze
from restorevar.datamodules.degradations.low_light import low_light
from restorevar.datamodules.degradations.mixed import mixed
from restorevar.datamodules.degradations.motion_blur import motion_blur
from restorevar.datamodules.degradations.rain import rain
from restorevar.datamodules.degradations.registry import degrade
from restorevar.datamodules.degradations.snow import snow
from restorevar.datamodules.degradations.view import DegradationFunction
from restorevar.errors import UserError

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # its import would ask the network for a newer version

from albumentations.core.transforms_interface import ImageOnlyTransform

__all__ = ["DegradationTransform", "Haze", "LowLight", "Mixed", "MotionBlur", "Rain", "Snow"]


class DegradationTransform(ImageOnlyTransform):
    """Base of the adapters: a subclass names its function as ``degradation``.

    Args:
        severity: A number from 0 to 1, or a range (low, high) to draw from.
        p: How often it is applied.
    """

    degradation: DegradationFunction

    class InitSchema(ImageOnlyTransform.InitSchema):  # noqa: D106
        severity: float | tuple[float, float]

    def __init__(self, severity: float | tuple[float, float] = (0.0, 1.0), p: float = 1.0) -> None:
        super().__init__(p=p)
        low, high = severity if isinstance(severity, tuple | list) else (severity, severity)
        if not 0 <= low <= high <= 1:
            raise UserError(f"severity is {severity}; expected a number or a range from 0 to 1")
        self.severity = (float(low), float(high))

    def get_params(self) -> dict[str, Any]:
        """Draws severity and seed from Albumentations' own random stream."""
        severity = self.random_generator.uniform(*self.severity)
        return {"severity": float(severity), "seed": int(self.random_generator.integers(2**31))}

    def apply(self, img: np.ndarray, severity: float, seed: int, **params: Any) -> np.ndarray:
        """Degrades one uint8 (H, W, 3) image."""
        return degrade(img, type(self).degradation, severity, seed)[0]


class Haze(DegradationTransform):
    """``haze``."""

    degradation = staticmethod(haze)


class Rain(DegradationTransform):
    """``rain``."""

    degradation = staticmethod(rain)


class Snow(DegradationTransform):
    """``snow``."""

    degradation = staticmethod(snow)


class LowLight(DegradationTransform):
    """``low_light``."""

    degradation = staticmethod(low_light)


class MotionBlur(DegradationTransform):
    """``motion_blur``."""

    degradation = staticmethod(motion_blur)


class Mixed(DegradationTransform):
    """``mixed``."""

    degradation = staticmethod(mixed)
