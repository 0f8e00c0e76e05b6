"""Display values (sRGB) to linear light and back, by table: fast, and the same on every machine."""

from functools import cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = [
    "FloatImage",
    "added",
    "bright_excess",
    "darkest_channel",
    "display_to_linear",
    "linear_to_display",
    "scaled",
    "to_uint8",
    "uint8_to_display",
    "uint8_to_linear",
    "veiled",
]

FloatImage = NDArray[np.float32]

_LEVELS = 1 << 16


def _decode(display: NDArray[np.float64]) -> FloatImage:
    return np.where(display <= 0.04045, display / 12.92, ((display + 0.055) / 1.055) ** 2.4).astype(np.float32)


@cache
def _table(name: str) -> FloatImage:
    if name == "display":
        return np.linspace(0, 1, 256, dtype=np.float32)
    if name == "linear":
        return _decode(np.linspace(0, 1, 256))
    levels = np.linspace(0, 1, _LEVELS)
    if name == "decode":
        return _decode(levels)
    return np.where(levels <= 0.0031308, levels * 12.92, 1.055 * levels ** (1 / 2.4) - 0.055).astype(np.float32)


def uint8_to_display(image: NDArray[np.uint8]) -> FloatImage:
    """uint8 (H, W, 3) to float32 display values in [0, 1]."""
    return cv2.LUT(image, _table("display")).astype(np.float32, copy=False)


def uint8_to_linear(image: NDArray[np.uint8]) -> FloatImage:
    """uint8 sRGB (H, W, 3) to float32 linear light in [0, 1]."""
    return cv2.LUT(image, _table("linear")).astype(np.float32, copy=False)


def _rescale(image: FloatImage, factor: float, depth: int) -> NDArray[Any]:
    # OpenCV takes a scalar for the first channel only, hence the flat view; it rounds and saturates
    flat = np.ascontiguousarray(image, dtype=np.float32).reshape(image.shape[0], -1)
    return np.asarray(cv2.multiply(flat, factor, dtype=depth)).reshape(image.shape)  # type: ignore[call-overload]


def _look_up(name: str, image: FloatImage) -> FloatImage:
    # 16 bits are always inside a table of 65536: wrapping takes half the time of a check
    return _table(name).take(_rescale(image, _LEVELS - 1, cv2.CV_16U), mode="wrap")


def display_to_linear(image: FloatImage) -> FloatImage:
    """float32 display values (clipped to [0, 1]) to linear light."""
    return _look_up("decode", image)


def linear_to_display(image: FloatImage) -> FloatImage:
    """float32 linear light (clipped to [0, 1], as a sensor saturates) to display values."""
    return _look_up("encode", image)


def to_uint8(image: FloatImage) -> NDArray[np.uint8]:
    """float32 display values to uint8, rounded and clipped."""
    return np.asarray(_rescale(image, 255, cv2.CV_8U), np.uint8)


def darkest_channel(image: FloatImage) -> FloatImage:
    """(H, W, 3) to (H, W): the least of the three."""
    # NumPy is slow where the innermost axis has three elements
    red, green, blue = cv2.split(image)
    return np.asarray(cv2.min(cv2.min(red, green), blue), np.float32)


def bright_excess(light: FloatImage) -> FloatImage:
    """How near to white (H, W, 3) linear light is, (H, W) in [0, 1]: 0 up to three quarters of it.

    What a photo stores as white was brighter; coloured parts with one full channel were not.
    """
    excess = np.maximum(darkest_channel(light) - np.float32(0.75), 0) * np.float32(4)
    return excess * excess


def scaled(image: FloatImage, factor: FloatImage) -> FloatImage:
    """(H, W, 3) times (H, W)."""
    return image * cv2.cvtColor(factor, cv2.COLOR_GRAY2RGB)


def veiled(image: FloatImage, colour: FloatImage, share: FloatImage) -> FloatImage:
    """Mixes (H, W, 3) with a colour (3,): image share + colour (1 - share), share (H, W)."""
    row = np.tile(colour.astype(np.float32), image.shape[1])
    flat = image.reshape(image.shape[0], -1) - row
    flat *= cv2.cvtColor(share, cv2.COLOR_GRAY2RGB).reshape(flat.shape)
    flat += row
    return flat.reshape(image.shape)


def added(image: FloatImage, brightness: FloatImage, share: FloatImage, hiding: float) -> FloatImage:
    """Adds white light to (H, W, 3): image (1 - hiding share) + brightness share, clipped to 1; all (H, W)."""
    image = scaled(image, 1 - np.float32(hiding) * share)
    image += cv2.cvtColor(share * brightness, cv2.COLOR_GRAY2RGB)
    return np.minimum(image, 1, out=image)
