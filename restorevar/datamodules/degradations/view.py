"""What a degradation sees: a window of a photo, in the coordinates of the whole photo.

Everything random or smooth (depth, fog, streaks, noise) is a function of the seed and of whole-photo coordinates, never
of the window. So the degraded crop is the crop of the degraded photo, and a crop costs what a crop costs.
"""

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from restorevar.datamodules.degradations.light import (
    FloatImage,
    display_to_linear,
    uint8_to_display,
    uint8_to_linear,
)

__all__ = ["DegradationFunction", "Parameters", "View", "Window"]

Parameters = dict[str, Any]

_TILE = 64  # side of the noise tiles, in pixels
_COARSE = 96  # cells along the long side of the coarse grid


class Window(NamedTuple):
    """A rectangle in whole-photo pixels."""

    top: int
    left: int
    height: int
    width: int

    def grown(self, margin: int) -> "Window":
        """The rectangle with ``margin`` more pixels on each side."""
        return Window(self.top - margin, self.left - margin, self.height + 2 * margin, self.width + 2 * margin)


@dataclass(frozen=True)
class View:
    """A window of a photo.

    Attributes:
        photo: uint8 (H, W, 3), the whole clean photo, RGB.
        window: The rectangle to be degraded.
        seed: Non-negative; with ``stream`` it fixes all randomness.
        depth: float32 (H, W) relative distance of the whole photo, larger is farther, or None.
        stream: Numbers that keep the steps of a composition apart.
        illumination: Brightness of the ambient light relative to the clean photo's, in linear light (less than 1 once
            the photo was darkened), so that later fog, rain and snow are lit alike.
    """

    photo: NDArray[np.uint8]
    window: Window
    seed: int
    depth: FloatImage | None = None
    stream: tuple[int, ...] = ()
    illumination: float = 1.0
    _previous: "_Step | None" = field(default=None, repr=False)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the whole photo."""
        return self.photo.shape[0], self.photo.shape[1]

    @property
    def unit(self) -> float:
        """Lengths scale with the photo: 1.0 where its short side has 512 pixels."""
        # a panorama or a tiny photo would be filled with millions of tiny streaks
        return max(min(self.size), 0.5 * math.sqrt(math.prod(self.size)), 48) / 512

    def random(self, name: str) -> np.random.Generator:
        """An independent random stream, the same for every window of the photo."""
        entropy = [self.seed, *self.stream, zlib.crc32(name.encode())]
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))

    def at(self, window: Window) -> "View":
        """The same photo and randomness seen through another window (inside the photo)."""
        return replace(self, window=window)

    def then(
        self, function: "DegradationFunction", severity: float, used: dict[str, Parameters], darkening: float = 1.0
    ) -> "View":
        """The view of the photo as degraded by ``function``: the next step of a composition starts from it.

        Args:
            function: The step; it runs when the next one asks for pixels, on as many as that one needs.
            severity: Its severity.
            used: Takes the step's parameters under the function's name.
            darkening: How much of the ambient light the step leaves.
        """
        number = self.stream[-1] + 1 if self.stream else 1
        return replace(
            self,
            stream=(*self.stream[:-1], number),
            illumination=self.illumination * darkening,
            _previous=_Step(function, severity, self, used),
        )

    # --- pixels ---------------------------------------------------------------------------------------------------

    def _inside(self, margin: int) -> tuple[Window, tuple[int, int, int, int]]:
        """The part of the grown window inside the photo, and how many pixels are missing on each side."""
        height, width = self.size
        grown = self.window.grown(margin)
        top, left = max(grown.top, 0), max(grown.left, 0)
        bottom, right = min(grown.top + grown.height, height), min(grown.left + grown.width, width)
        missing = (
            top - grown.top,
            grown.top + grown.height - bottom,
            left - grown.left,
            grown.left + grown.width - right,
        )
        return Window(top, left, bottom - top, right - left), missing

    def _pixels(self, margin: int, convert: Callable[[NDArray[np.uint8]], FloatImage]) -> FloatImage:
        (top, left, height, width), missing = self._inside(margin)
        part = convert(self.photo[top : top + height, left : left + width])
        return _pad(part, missing, cv2.BORDER_REFLECT_101)

    def clean(self, margin: int = 0) -> FloatImage:
        """float32 (h + 2 margin, w + 2 margin, 3) display values of the clean photo; mirrored beyond its border."""
        return self._pixels(margin, uint8_to_display)

    def display(self, margin: int = 0) -> FloatImage:
        """float32 display values in [0, 1] as the steps before left them; mirrored beyond the photo's border."""
        if self._previous is None:
            return self.clean(margin)
        step = self._previous
        window, missing = self._inside(margin)
        image, step.used[step.function.__name__] = step.function(step.view.at(window), step.severity)
        return _pad(image, missing, cv2.BORDER_REFLECT_101)

    def linear(self, margin: int = 0) -> FloatImage:
        """float32 linear light in [0, 1] as the steps before left it; mirrored beyond the photo's border."""
        if self._previous is None:
            return self._pixels(margin, uint8_to_linear)
        return display_to_linear(self.display(margin))

    # --- smooth fields --------------------------------------------------------------------------------------------

    @property
    def step(self) -> int:
        """Side of a coarse cell in pixels: a whole number, so that fields line up in every window."""
        return max(1, math.ceil(max(self.size) / _COARSE))

    @property
    def coarse_size(self) -> tuple[int, int]:
        """(rows, columns) of the coarse grid that covers the whole photo."""
        height, width = self.size
        return math.ceil(height / self.step), math.ceil(width / self.step)

    @cached_property
    def thumbnail(self) -> FloatImage:
        """float32 (rows, columns, 3): the whole clean photo averaged over coarse cells, display values."""
        height, width = self.size
        rows, columns = self.coarse_size
        missing = (0, rows * self.step - height, 0, columns * self.step - width)
        covered = _pad(self.photo, missing, cv2.BORDER_REPLICATE)
        return uint8_to_display(cv2.resize(covered, (columns, rows), interpolation=cv2.INTER_AREA))

    def sample(self, coarse: FloatImage, margin: int = 0) -> FloatImage:
        """Reads a coarse (rows, columns[, channels]) field at the window's pixels, bilinearly."""
        (top, left, height, width), missing = self._inside(margin)
        step = self.step
        first_row, first_column = max(top // step - 2, 0), max(left // step - 2, 0)
        part = coarse[first_row : (top + height) // step + 3, first_column : (left + width) // step + 3]
        rows, columns = part.shape[:2]
        fine = cv2.resize(part, (columns * step, rows * step), interpolation=cv2.INTER_LINEAR)
        top, left = top - first_row * step, left - first_column * step
        return _pad(fine[top : top + height, left : left + width], missing, cv2.BORDER_REPLICATE)

    def coarse_noise(self, name: str, cells: float) -> FloatImage:
        """Smooth noise on the coarse grid, roughly normal: about ``cells`` independent values along the long side."""
        rows, columns = self.coarse_size
        scale = cells / max(rows, columns)
        small = self.random(name).standard_normal((math.ceil(rows * scale) + 3, math.ceil(columns * scale) + 3))
        y = (np.arange(rows, dtype=np.float32) * scale + 1)[:, None].repeat(columns, 1)
        x = (np.arange(columns, dtype=np.float32) * scale + 1)[None].repeat(rows, 0)
        return cv2.remap(small.astype(np.float32), x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE) * 1.4

    # --- pixel noise ----------------------------------------------------------------------------------------------

    def noise(self, name: str, margin: int = 0) -> FloatImage:
        """Standard normal float32 (h + 2 margin, w + 2 margin, 3), independent for each pixel of the whole photo."""
        window = self.window.grown(margin)
        first_row, first_column = window.top // _TILE, window.left // _TILE
        last_row, last_column = (window.top + window.height - 1) // _TILE, (window.left + window.width - 1) // _TILE
        tiles = np.empty(((last_row - first_row + 1) * _TILE, (last_column - first_column + 1) * _TILE, 3), np.uint16)
        entropy = [self.seed, *self.stream, zlib.crc32(name.encode())]
        for row in range(first_row, last_row + 1):
            for column in range(first_column, last_column + 1):
                # tiles left of and above the photo have negative numbers; SeedSequence wants none
                sequence = np.random.SeedSequence([*entropy, row + (1 << 16), column + (1 << 16)])
                raw = np.random.PCG64(sequence).random_raw(_TILE * _TILE * 3 // 4).astype("<u8", copy=False)
                top, left = (row - first_row) * _TILE, (column - first_column) * _TILE
                tiles[top : top + _TILE, left : left + _TILE] = raw.view("<u2").reshape(_TILE, _TILE, 3)
        top, left = window.top - first_row * _TILE, window.left - first_column * _TILE
        # 16 bits are always inside a table of 65536: wrapping takes half the time of a check
        return _normal_table().take(tiles[top : top + window.height, left : left + window.width], mode="wrap")


@cache
def _normal_table() -> FloatImage:
    """The normal distribution's quantiles for 16 uniform bits: four times faster than drawing normal numbers."""
    from scipy.special import ndtri

    return ndtri((np.arange(1 << 16) + 0.5) / (1 << 16)).astype(np.float32)


class DegradationFunction(Protocol):
    """Takes a view and a severity in [0, 1]; returns float32 display values of the window's size, parameters."""

    __name__: str

    def __call__(self, view: View, severity: float) -> tuple[FloatImage, Parameters]:
        """Degrades the view's window."""
        ...


class _Step(NamedTuple):
    function: DegradationFunction
    severity: float
    view: View
    used: dict[str, Parameters]


def _pad(image: Any, missing: tuple[int, int, int, int], border: int) -> Any:
    if not any(missing):
        return image
    return cv2.copyMakeBorder(image, *missing, border)
