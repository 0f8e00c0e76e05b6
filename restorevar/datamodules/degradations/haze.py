"""Haze and fog: Koschmieder's law with a depth map."""

import cv2
import numpy as np

from restorevar.datamodules.degradations.depth import relative_depth
from restorevar.datamodules.degradations.light import FloatImage, display_to_linear, linear_to_display, veiled
from restorevar.datamodules.degradations.view import Parameters, View

__all__ = [
    "airlight_colour",
    "haze",
    "heterogeneous_haze",
    "homogeneous_haze",
    "overcast",
    "transmission",
    "veil",
]


def transmission(depth: FloatImage, beta: float) -> FloatImage:
    """exp(-beta depth), the share of light that reaches the camera."""
    return np.asarray(cv2.exp(depth * np.float32(-beta)), np.float32)


def airlight_colour(view: View, random: np.random.Generator) -> FloatImage:
    """(3,) display values: a light grey, slightly bluish or yellowish, drawn towards the photo's own bright parts."""
    brightness, share = random.uniform(0.7, 1.0), random.uniform(0.2, 0.9)
    warmth, green = random.normal(0, 0.015), random.normal(0, 0.003)
    grey = brightness * np.array([1 + warmth, 1 + green, 1 - warmth])
    flat = view.thumbnail.reshape(-1, 3)
    luminance = cv2.cvtColor(view.thumbnail, cv2.COLOR_RGB2GRAY).ravel()
    # the brightest twentieth: mostly sky, or a wall in the light
    chosen = flat[luminance >= np.partition(luminance, -(len(flat) // 20) - 1)[-(len(flat) // 20) - 1]]
    own = 0.5 * chosen.mean(axis=0) + 0.5 * chosen.mean()
    # air is never mauve or green
    own[1] = 0.5 * (own[0] + own[2])
    own *= max(0.65, float(own.mean())) / max(float(own.mean()), 1e-6)
    return np.clip(grey + share * (own - grey), 0, 1).astype(np.float32)


def veil(view: View, image: FloatImage, depth: FloatImage, beta: float, airlight: FloatImage) -> FloatImage:
    """The haze that rain and snow bring with them, on display values."""
    light = airlight * np.float32(view.illumination ** (1 / 2.2))
    return veiled(image, light, transmission(depth, beta))


def overcast(view: View, image: FloatImage, amount: float) -> FloatImage:
    """The light under clouds, on display values: darker highlights, less colour, slightly cool; amount in [0, 1]."""
    mean = float(view.thumbnail.mean()) * view.illumination ** (1 / 2.2)
    saturation, contrast = 1 - 0.6 * amount, 1 - 0.2 * amount
    weights = np.array([0.299, 0.587, 0.114])
    colours = contrast * (saturation * np.eye(3) + (1 - saturation) * weights)
    colours *= np.array([[1 - 0.03 * amount], [1.0], [1 + 0.03 * amount]])
    offset = np.full((3, 1), (1 - contrast) * 0.3 * mean)
    return np.clip(cv2.transform(image, np.hstack([colours, offset])), 0, 1)


def haze(view: View, severity: float) -> tuple[FloatImage, Parameters]:
    """I = J t + A (1 - t), t = exp(-beta d).

    The depth d is the view's own map if it has one, else a guess; fog is heterogeneous, beta modulated smoothly, in 3
    of 10 photos. As in RESIDE the law is applied to display values in half the cases, to linear light (as it happens)
    in the others.
    """
    return _koschmieder(view, severity, heterogeneous_share=0.3)


def heterogeneous_haze(view: View, severity: float) -> tuple[FloatImage, Parameters]:
    """``haze`` whose fog is denser in some places, in every photo."""
    return _koschmieder(view, severity, heterogeneous_share=1.0)


def homogeneous_haze(view: View, severity: float) -> tuple[FloatImage, Parameters]:
    """``haze`` whose fog is equally dense everywhere, in every photo."""
    return _koschmieder(view, severity, heterogeneous_share=0.0)


def _koschmieder(view: View, severity: float, heterogeneous_share: float) -> tuple[FloatImage, Parameters]:
    random = view.random("haze")
    beta = severity * random.uniform(0.8, 3.0)
    airlight = airlight_colour(view, random)
    linear = bool(random.random() < 0.5)
    patchiness = random.uniform(0.05, 0.2) if random.random() < heterogeneous_share else 0.0
    depth = relative_depth(view)
    if patchiness:
        patches = view.coarse_noise("fog", 2)
        depth = depth * view.sample(np.exp(np.clip(patchiness * patches, -1.2, 0.8)).astype(np.float32))
    through = transmission(depth, beta)
    if linear:
        light = display_to_linear(airlight[None, None])[0, 0] * np.float32(view.illumination)
        image = linear_to_display(veiled(view.linear(), light, through))
    else:
        light = airlight * np.float32(view.illumination ** (1 / 2.2))
        image = veiled(view.display(), light, through)
    return image, {
        "beta": beta,
        "airlight": [round(float(value), 4) for value in airlight],
        "linear_light": linear,
        "patchiness": patchiness,
        "depth": "given" if view.depth is not None else "estimated",
    }
