"""Drawing thousands of short, soft strokes: rain streaks and moving flakes."""

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from restorevar.datamodules.degradations.light import FloatImage
from restorevar.datamodules.degradations.view import View

__all__ = ["Strokes", "at_places", "cover", "draw", "gusts", "near_window", "places"]

_SHIFT = 4  # fractional bits of coordinates handed to OpenCV
_LEVELS = 8  # opacities drawn apart


@dataclass(frozen=True)
class Strokes:
    """Strokes in whole-photo pixels; the axes come first, which NumPy is much quicker with.

    Attributes:
        centre: (2, N) x, y.
        reach: (2, N) half of the stroke as a vector x, y.
        opacity: (N,) in [0, 1].
        strongest: Greatest opacity in the whole photo, also of strokes left out because they are far from the window.
        thickness: Of all strokes, in pixels; rounded to whole pixels when drawn, thinner ones are fainter.
        softness: Standard deviation of the blur afterwards, in pixels.
        taper: x, y of the smear that thins out the strokes' ends, in pixels.
    """

    centre: NDArray[np.float64]
    reach: NDArray[np.float64]
    opacity: NDArray[np.float64]
    strongest: float
    thickness: float
    softness: float
    taper: tuple[float, float] = (0.0, 0.0)


def gusts(view: View, strength: float) -> FloatImage:
    """Factors on the coarse grid, 1 on average, that make what falls thicker in some places of the photo."""
    return np.exp(np.clip(strength * view.coarse_noise("gusts", 5), -1.5, 0.7))


def places(view: View, name: str, count: int, border: float) -> NDArray[np.float64]:
    """(2, count) x, y anywhere in the photo and up to ``border`` pixels beyond it."""
    drawn = view.random(name).random((count, 2))
    return np.stack([drawn[:, axis] * (side + 2 * border) - border for axis, side in enumerate(view.size[::-1])])


def near_window(view: View, centre: NDArray[np.float64], distance: float) -> NDArray[np.intp]:
    """Which of (2, N) places lie in the view's window or at most ``distance`` pixels beside it."""
    top, left, height, width = view.window
    x, y = centre
    across = (x >= left - distance) & (x <= left + width + distance)
    return np.flatnonzero(across & (y >= top - distance) & (y <= top + height + distance))


def at_places(view: View, coarse: FloatImage, centre: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,) values of a coarse (rows, columns) field at (2, N) places x, y; those outside take the border's."""
    rows, columns = coarse.shape
    # rounded towards 0: what is a little outside belongs to the border's cells as well
    column, row = (centre * (1 / view.step)).astype(np.intp)
    cells = np.clip(row, 0, rows - 1) * columns + np.clip(column, 0, columns - 1)
    return coarse.ravel().take(cells).astype(np.float64)


def draw(view: View, strokes: Strokes) -> FloatImage | None:
    """float32 (h, w) opacity of the strokes in the view's window, or None if there are none."""
    height, width = view.window.height, view.window.width
    blur = math.ceil(2.5 * strokes.softness) if strokes.softness > 0.2 else 0
    # three smears by one step and two steps make four copies, a third of the taper apart
    smear = np.rint(np.array(strokes.taper) / 3).astype(int)
    around = blur + 3 * int(np.abs(smear).max())
    wanted = view.window.grown(around)
    extent = np.abs(strokes.reach) + strokes.thickness + 2
    corner = np.array([[wanted.left], [wanted.top]])
    half = 0.5 * np.array([[wanted.width], [wanted.height]])
    across, along = np.abs(strokes.centre - corner - half) <= extent + half
    seen = np.flatnonzero(across & along)
    if not len(seen):
        return None
    # strokes lie wholly inside the canvas: OpenCV clips them differently at its border
    border = math.ceil(float(extent[:, seen].max())) * 2 + 2
    canvas = np.zeros((wanted.height + 2 * border, wanted.width + 2 * border), np.uint8)
    reach = strokes.reach[:, seen]
    start = strokes.centre[:, seen] - reach - 1.5 * smear[:, None] - corner + border
    ends = np.rint(np.stack([start, start + 2 * reach]) * (1 << _SHIFT)).astype(np.int32)  # (end, axis, stroke)
    points = np.ascontiguousarray(ends.transpose(2, 0, 1))
    thickness = max(1, round(strokes.thickness))
    opacity = strokes.opacity[seen] * min(1.0, strokes.thickness)
    top = strokes.strongest * min(1.0, strokes.thickness)
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
