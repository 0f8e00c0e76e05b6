"""Distance of every pixel: from a given map, or guessed from the photo itself."""

import cv2
import numpy as np

from restorevar.datamodules.degradations.light import FloatImage
from restorevar.datamodules.degradations.view import View

__all__ = ["relative_depth"]


def relative_depth(view: View) -> FloatImage:
    """float32 (h, w) relative distance of the window's pixels; about 1 at the farthest part of the photo.

    A given map is scaled so that its 99th percentile is 1; pixels without a value (NaN, infinite) are far. Without a
    map the distance is guessed: a ground plane up to a horizon, bright and bluish parts above it farther than dark
    ones, smooth noise, all fitted to the photo's edges by a guided filter (He, Sun and Tang 2013) on the coarse grid.
    """
    if view.depth is not None:
        top, left, height, width = view.window
        spread = view.depth[:: view.step, :: view.step]
        finite = spread[np.isfinite(spread)]
        scale = float(np.percentile(finite, 99)) if finite.size else 1.0
        part = view.depth[top : top + height, left : left + width]
        part = np.where(np.isfinite(part), part, scale)
        return np.clip(part / max(scale, 1e-6), 0, 2).astype(np.float32)
    slope, offset = _guided(view, _coarse_depth(view))
    grey = _luminance(view.clean())
    return np.clip(view.sample(slope) * grey + view.sample(offset), 0.02, 1.5)


def _luminance(image: FloatImage) -> FloatImage:
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def _coarse_depth(view: View) -> FloatImage:
    random = view.random("depth")
    rows, columns = view.coarse_size
    y = (np.arange(rows, dtype=np.float32)[:, None] + 0.5) / rows
    x = (np.arange(columns, dtype=np.float32)[None] + 0.5) / columns
    horizon, nearness = random.uniform(0.1, 0.5), random.uniform(0.08, 0.5)
    ground = nearness / (np.maximum(y - horizon, 0) + nearness)
    # a road or an alley: farthest at a vanishing point rather than along a line
    vanishing, width = random.uniform(0.3, 0.7), random.uniform(0.2, 0.6)
    alley = 1 / (1 + np.square((x - vanishing) / width))
    alley = ground * (1 - random.choice([0.0, 0.6], p=[0.6, 0.4]) * (1 - alley))
    colour = view.thumbnail
    darkest = cv2.erode(colour.min(axis=2), np.ones((5, 5), np.uint8))
    blue = np.clip(colour[..., 2] - colour[..., 0], 0, 1)
    sky = np.clip(1.6 * darkest + 1.5 * blue - 0.3, 0, 1)
    strength = random.uniform(0.3, 0.7)
    above = np.clip((horizon + 0.25 - y) / 0.25, 0, 1)
    depth = alley * (1 - strength * above * (1 - sky)) + 0.25 * sky * above
    depth = depth + random.uniform(0.03, 0.12) * view.coarse_noise("depth noise", 5)
    return np.clip(depth, 0.03, 1.4).astype(np.float32)


def _guided(view: View, depth: FloatImage) -> tuple[FloatImage, FloatImage]:
    """Coarse slope and offset of depth as a linear function of luminance."""
    grey = _luminance(view.thumbnail)
    radius = (9, 9)

    def mean(values: FloatImage) -> FloatImage:
        return cv2.blur(values, radius, borderType=cv2.BORDER_REFLECT)

    grey_mean, depth_mean = mean(grey), mean(depth)
    variance = mean(grey * grey) - grey_mean * grey_mean
    slope = (mean(grey * depth) - grey_mean * depth_mean) / (variance + 0.004)
    return mean(slope), mean(depth_mean - slope * grey_mean)
