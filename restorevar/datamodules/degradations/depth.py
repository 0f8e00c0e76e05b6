"""Distance of every pixel: from a given map, or guessed from the photo itself."""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from restorevar.datamodules.degradations.light import FloatImage, darkest_channel
from restorevar.datamodules.degradations.view import View

__all__ = ["relative_depth"]

_SKY = 2.5  # the sky is farther than all else: haze hides it first


def relative_depth(view: View) -> FloatImage:
    """float32 (h, w) relative distance of the window's pixels; about 1 at the farthest objects, more in the sky.

    A given map is scaled so that its 99th percentile is 1; pixels without a value (NaN, infinite) are far. Without a
    map the distance is guessed: a ground plane up to a horizon, bright and bluish smooth parts above it farther than
    dark ones, smooth noise, all fitted to the photo's edges by a guided filter (He, Sun and Tang 2013) on the coarse
    grid.
    """
    if view.depth is not None:
        top, left, height, width = view.window
        spread = view.depth[:: view.step, :: view.step]
        finite = spread[np.isfinite(spread)]
        scale = max(float(np.percentile(finite, 99)) if finite.size else 1.0, 1e-6)
        part = view.depth[top : top + height, left : left + width]
        part = np.where(np.isfinite(part), part, scale)
        return np.clip(part / scale, 0, 2).astype(np.float32)
    slope, offset = _guided(view, _coarse_depth(view))
    grey = _luminance(view.clean())
    depth = view.sample(slope) * grey + view.sample(offset)
    return np.clip(depth, 0.02, _SKY)


def _luminance(image: FloatImage) -> FloatImage:
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.float32)


def _coarse_depth(view: View) -> FloatImage:
    random = view.random("depth")
    rows, columns = view.coarse_size
    y = (np.arange(rows, dtype=np.float32)[:, None] + 0.5) / rows
    x = (np.arange(columns, dtype=np.float32)[None] + 0.5) / columns
    horizon, nearness = random.uniform(0.1, 0.5), random.uniform(0.06, 0.35)
    ground = nearness / (np.maximum(y - horizon, 0) + nearness)
    # a road or an alley: farthest at a vanishing point rather than along a line
    vanishing, width = random.uniform(0.3, 0.7), random.uniform(0.2, 0.6)
    walls = 0.6 * (random.random() < 0.35)
    alley = ground * (1 - walls * (1 - 1 / (1 + np.square((x - vanishing) / width))))
    strength = random.uniform(0.2, 0.6)
    above = np.clip((horizon + 0.25 - y) / 0.25, 0, 1)
    sky = _sky(view) * np.clip((0.75 - y) / 0.25, 0, 1)
    depth = alley * (1 - strength * above)
    depth = depth * (1 + random.uniform(0.02, 0.07) * view.coarse_noise("depth noise", 4))
    depth = depth + (_SKY - depth) * sky
    return np.clip(depth, 0.03, _SKY).astype(np.float32)


def _sky(view: View) -> FloatImage:
    """(rows, columns) in [0, 1]: smooth, bright or blue, and joined to the photo's upper edge."""
    colour = view.thumbnail
    grey = _luminance(colour)
    blue = np.clip((colour[..., 2] - colour[..., 0]) * 4, 0, 1)
    bright = np.clip((darkest_channel(colour) - 0.55) * 4, 0, 1)
    mean = cv2.blur(grey, (3, 3))
    rough = np.sqrt(np.maximum(cv2.blur(grey * grey, (3, 3)) - mean * mean, 0))
    smooth = np.clip(1.6 - rough * 25, 0, 1)
    sky = np.maximum(blue * np.clip((colour[..., 2] - 0.2) * 5, 0, 1), bright) * smooth
    # what is below something that is not sky is not sky
    return np.minimum.accumulate(cv2.dilate(sky, np.ones((3, 3), np.uint8)), axis=0)


def _guided(view: View, depth: FloatImage) -> tuple[FloatImage, FloatImage]:
    """Coarse slope and offset of depth as a linear function of luminance."""
    grey = _luminance(view.thumbnail)

    def mean(values: NDArray[Any]) -> FloatImage:
        return np.asarray(cv2.blur(values, (7, 7), borderType=cv2.BORDER_REFLECT), np.float32)

    grey_mean, depth_mean = mean(grey), mean(depth)
    variance = mean(grey * grey) - grey_mean * grey_mean
    slope = (mean(grey * depth) - grey_mean * depth_mean) / (variance + 0.002)
    return mean(slope), mean(depth_mean - slope * grey_mean)
