"""The degradations as an Albumentations transform, to compose with a pipeline of your own.

Import this module only where Albumentations is wanted: it takes a second, and none of the rest needs it.
"""

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from restorevar.datamodules.degradations.registry import degrade, get_degradation
from restorevar.errors import UserError

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # its import would ask the network for a newer version

from albumentations.core.transforms_interface import ImageOnlyTransform

__all__ = ["Degradation"]


class Degradation(ImageOnlyTransform):
    """Degrades uint8 RGB images.

    Severity and seed come from Albumentations' own random stream: `Compose(..., seed=...)` or `set_random_seed`
    repeats them. Data loader workers share that stream's state unless each sample sets it.

    The parameters used, as `degrade` returns them, are part of Albumentations' own record: the entry `parameters` of
    `get_applied_params()`, or in a pipeline of `Compose(..., save_applied_params=True)`'s `applied_transforms`. Of
    several images in one call they are the last one's.

    Args:
        kind: `haze`, `rain`, `snow`, `low_light`, `motion_blur`, `mixed`, or the import path of your own function.
        severity: Range to draw from, inside [0, 1].
        p: Share of the images that are degraded.

    Raises:
        UserError: There is no such kind, or the range is wrong.
    """

    def __init__(self, kind: str, severity: tuple[float, float] = (0.0, 1.0), p: float = 1.0) -> None:
        # no InitSchema, as other transforms have: with one, Albumentations only warns of a misspelt argument
        super().__init__(p=p)
        low, high = severity
        if not 0 <= low <= high <= 1:
            raise UserError(f"severity is {severity}; expected a range inside 0 to 1")
        get_degradation(kind)
        self.kind, self.severity = kind, severity

    def get_params(self) -> dict[str, Any]:
        """Draws severity and seed."""
        severity = float(self.random_generator.uniform(*self.severity))
        return {"severity": severity, "seed": int(self.random_generator.integers(2**31))}

    def apply(self, img: NDArray[np.uint8], severity: float, seed: int, **params: Any) -> NDArray[np.uint8]:
        """Degrades one (H, W, 3) image."""
        # what Albumentations saves once the image is done; some parameters depend on its pixels
        image, self.params["parameters"] = degrade(img, self.kind, severity, seed)
        return image
