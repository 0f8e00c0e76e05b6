"""Haze and fog: Koschmieder's law with a depth map."""

import cv2
import numpy as np

from restorevar.datamodules.degradations.depth import relative_depth
from restorevar.datamodules.degradations.light import FloatImage, display_to_linear, linear_to_display
from restorevar.datamodules.degradations.view import Parameters, View

__all__ = ["airlight_colour", "haze", "transmission"]


def transmission(depth: FloatImage, beta: float) -> FloatImage:
    """exp(-beta depth), the share of light that reaches the camera."""
    return cv2.exp(depth * np.float32(-beta))


def airlight_colour(view: View, random: np.random.Generator) -> FloatImage:
    """A light grey (3,) in display values, sometimes bluish or yellowish."""
    brightness = random.uniform(0.7, 1.0)
    warmth, green = random.normal(0, 0.025), random.normal(0, 0.008)
    colour = brightness * np.array([1 + warmth, 1 + green, 1 - warmth])
    return np.clip(colour, 0, 1).astype(np.float32)


def haze(view: View, severity: float) -> tuple[FloatImage, Parameters]:
    """I = J t + A (1 - t), t = exp(-beta d).

    The depth d is the view's own map if it has one, else a guess; heterogeneous fog modulates beta smoothly. As in
    RESIDE the law is applied to display values in half the cases, to linear light (as it happens) in the others.
    """
    random = view.random("haze")
    beta = severity * random.uniform(0.8, 3.0)
    airlight = airlight_colour(view, random)
    linear = bool(random.random() < 0.5)
    patchiness = random.uniform(0.2, 0.6) if random.random() < 0.35 else 0.0
    depth = relative_depth(view)
    if patchiness:
        patches = view.coarse_noise("fog", 4) + 0.5 * view.coarse_noise("fog detail", 10)
        depth = depth * view.sample(np.exp(np.clip(patchiness * patches, -1.5, 1.0)))
    through = transmission(depth, beta)[..., None]
    if linear:
        light = display_to_linear(airlight[None, None])[0, 0] * np.float32(view.illumination)
        image = linear_to_display(light + (view.linear() - light) * through)
    else:
        light = airlight * np.float32(view.illumination ** (1 / 2.2))
        image = light + (view.display() - light) * through
    return image, {
        "beta": beta,
        "airlight": [round(float(value), 4) for value in airlight],
        "linear_light": linear,
        "patchiness": patchiness,
        "depth": "given" if view.depth is not None else "estimated",
    }
