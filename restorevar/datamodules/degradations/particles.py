"""Drawing thousands of short, soft strokes: rain streaks and moving flakes."""

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from restorevar.datamodules.degradations.light import FloatImage
from restorevar.datamodules.degradations.view import View, Window

__all__ = ["Strokes", "draw"]

_SHIFT = 4  # fractional bits of coordinates handed to OpenCV
_LEVELS = 8


@dataclass(frozen=True)
class Strokes:
    """Strokes in whole-photo pixels.

    Attributes:
        centre: (N, 2) x, y.
        reach: (N, 2) half of the stroke as a vector x, y.
        opacity: (N,) in [0, 1].
        thickness: Of all strokes, in pixels; rounded to whole pixels when drawn.
        softness: Standard deviation of the blur afterwards, in pixels.
    """

    centre: NDArray[np.float64]
    reach: NDArray[np.float64]
    opacity: NDArray[np.float64]
    thickness: float
    softness: float


def draw(view: View, strokes: Strokes) -> FloatImage:
    """float32 (h, w) opacity of the strokes in the view's window."""
    blur = math.ceil(3 * strokes.softness) if strokes.softness > 0.2 else 0
    wanted = view.window.grown(blur)
    extent = np.abs(strokes.reach) + strokes.thickness + 2
    seen = _touches(wanted, strokes.centre, extent)
    if not seen.any():
        return np.zeros((view.window.height, view.window.width), np.float32)
    # strokes lie wholly inside the canvas: OpenCV clips them differently at its border
    margin = math.ceil(float(extent[seen].max())) * 2 + 2
    canvas = np.zeros((wanted.height + 2 * margin, wanted.width + 2 * margin), np.uint8)
    origin = np.array([wanted.left - margin, wanted.top - margin])
    start, reach = strokes.centre[seen] - origin - strokes.reach[seen], strokes.reach[seen]
    ends = np.stack([start, start + 2 * reach], axis=1)
    points = np.round(ends * (1 << _SHIFT)).astype(np.int32)
    thickness = max(1, round(strokes.thickness))
    level = np.clip(np.ceil(strokes.opacity[seen] * _LEVELS), 1, _LEVELS).astype(int)
    for value in range(1, _LEVELS + 1):
        chosen = points[level == value]
        if len(chosen):
            shade = round(255 * value / _LEVELS)
            cv2.polylines(canvas, list(chosen), False, shade, thickness, cv2.LINE_AA, _SHIFT)
    layer = canvas[margin : margin + wanted.height, margin : margin + wanted.width]
    if blur:
        size = 2 * blur + 1
        layer = cv2.GaussianBlur(np.ascontiguousarray(layer), (size, size), strokes.softness)
        layer = layer[blur : blur + view.window.height, blur : blur + view.window.width]
    return layer.astype(np.float32) / 255


def _touches(window: Window, centre: NDArray[np.float64], extent: NDArray[np.float64]) -> NDArray[np.bool_]:
    low = np.array([window.left, window.top]) - extent
    high = np.array([window.left + window.width, window.top + window.height]) + extent
    return ((centre >= low) & (centre <= high)).all(axis=1)
