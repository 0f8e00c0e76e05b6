"""Drawing thousands of short, soft strokes: rain streaks and moving flakes."""

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from restorevar.datamodules.degradations.light import FloatImage
from restorevar.datamodules.degradations.view import View

__all__ = ["Strokes", "at_places", "cover", "draw", "gusts"]

_SHIFT = 4  # fractional bits of coordinates handed to OpenCV
_LEVELS = 8  # opacities drawn apart


@dataclass(frozen=True)
class Strokes:
    """Strokes in whole-photo pixels.

    Attributes:
        centre: (N, 2) x, y.
        reach: (N, 2) half of the stroke as a vector x, y.
        opacity: (N,) in [0, 1].
        thickness: Of all strokes, in pixels; rounded to whole pixels when drawn, thinner ones are fainter.
        softness: Standard deviation of the blur afterwards, in pixels.
        taper: x, y of the smear that thins out the strokes' ends, in pixels.
    """

    centre: NDArray[np.float64]
    reach: NDArray[np.float64]
    opacity: NDArray[np.float64]
    thickness: float
    softness: float
    taper: tuple[float, float] = (0.0, 0.0)


def gusts(view: View, strength: float) -> FloatImage:
    """Factors on the coarse grid, 1 on average, that make what falls thicker in some places of the photo."""
    return np.exp(np.clip(strength * view.coarse_noise("gusts", 5), -1.5, 0.7))


def at_places(view: View, coarse: FloatImage, centre: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,) values of a coarse (rows, columns) field at (N, 2) places x, y; those outside take the border's."""
    cells = (centre // view.step).astype(int)
    rows, columns = coarse.shape
    found = coarse[np.clip(cells[:, 1], 0, rows - 1), np.clip(cells[:, 0], 0, columns - 1)]
    return found.astype(np.float64)


def draw(view: View, strokes: Strokes) -> FloatImage | None:
    """float32 (h, w) opacity of the strokes in the view's window, or None if there are none."""
    height, width = view.window.height, view.window.width
    blur = math.ceil(2.5 * strokes.softness) if strokes.softness > 0.2 else 0
    # three smears by one step and two steps make four copies, a third of the taper apart
    smear = np.rint(np.array(strokes.taper) / 3).astype(int)
    around = blur + 3 * int(np.abs(smear).max())
    wanted = view.window.grown(around)
    extent = np.abs(strokes.reach) + strokes.thickness + 2
    corner = np.array([wanted.left, wanted.top])
    half = 0.5 * np.array([wanted.width, wanted.height])
    # NumPy is slow where the innermost axis has two elements, hence an axis at a time
    across, along = (np.abs(strokes.centre[:, i] - corner[i] - half[i]) <= extent[:, i] + half[i] for i in (0, 1))
    seen = np.flatnonzero(across & along)
    if not len(seen):
        return None
    # strokes lie wholly inside the canvas: OpenCV clips them differently at its border
    border = math.ceil(float(extent[seen].max())) * 2 + 2
    canvas = np.zeros((wanted.height + 2 * border, wanted.width + 2 * border), np.uint8)
    start = strokes.centre[seen] - strokes.reach[seen] - 1.5 * smear - corner + border
    ends = np.stack([start, start + 2 * strokes.reach[seen]], axis=1)
    points = np.rint(ends * (1 << _SHIFT)).astype(np.int32)
    thickness = max(1, round(strokes.thickness))
    opacity = strokes.opacity[seen] * min(1.0, strokes.thickness)
    top = float(strokes.opacity.max()) * min(1.0, strokes.thickness)
    level = np.clip(np.ceil(opacity / max(top, 1e-6) * _LEVELS), 1, _LEVELS).astype(int)
    for value in range(1, _LEVELS + 1):
        chosen = points[level == value]
        if len(chosen):
            cv2.polylines(canvas, list(chosen), False, round(255 * value / _LEVELS), thickness, cv2.LINE_AA, _SHIFT)
    layer = canvas[border : border + wanted.height, border : border + wanted.width]
    if smear.any():
        for step in (smear, 2 * smear):
            layer = _smeared(layer, int(step[0]), int(step[1]))
    if blur:
        layer = np.asarray(cv2.GaussianBlur(layer, (2 * blur + 1, 2 * blur + 1), strokes.softness), np.uint8)
    layer = layer[around : around + height, around : around + width]
    return np.multiply(layer, top / 255, dtype=np.float32)


def cover(clear: FloatImage, drawn: FloatImage) -> None:
    """Makes a share of clear sight (h, w) smaller by a layer's opacity, in place; ``drawn`` is used up."""
    np.minimum(drawn, 1, out=drawn)
    clear *= np.subtract(1, drawn, out=drawn)


def _smeared(layer: NDArray[np.uint8], x: int, y: int) -> NDArray[np.uint8]:
    """The mean of a layer and itself moved by whole pixels; what comes in at the border is empty."""
    height, width = layer.shape
    moved = np.zeros_like(layer)
    moved[max(y, 0) : height + min(y, 0), max(x, 0) : width + min(x, 0)] = layer[
        max(-y, 0) : height + min(-y, 0), max(-x, 0) : width + min(-x, 0)
    ]
    return np.asarray(cv2.addWeighted(layer, 0.5, moved, 0.5, 0), np.uint8)
