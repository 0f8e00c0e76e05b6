"""Optional colour fixes after restoration: they take brightness or low frequencies back from the given photo.

They undo colour shifts of a model, and with them the removal of haze and of darkness: not for those.
"""

from typing import Any, Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from restorevar.errors import UserError

__all__ = ["ColorFix", "check_color_fix", "fix_color"]

ColorFix = Literal["none", "mean", "wavelet"]
_BAND = 256
_LEVELS = 5


def check_color_fix(name: str) -> None:
    """Raises a `UserError` for a name that is no colour fix."""
    if name not in get_args(ColorFix):
        raise UserError(f"color fix '{name}' is unknown; expected one of: {', '.join(get_args(ColorFix))}")


def fix_color(restored: NDArray[Any], given: NDArray[Any], method: ColorFix) -> NDArray[Any]:
    """Takes colour back from the photo before restoration.

    Args:
        restored: (H, W, 3) uint8, uint16 or float32 in [0, 1]; changed in place.
        given: The photo before restoration, of the same shape and type.
        method: ``none``; ``mean`` shifts each channel to the given mean; ``wavelet`` exchanges all frequencies below
            about 1/64 of a cycle a pixel (five levels of the undecimated B-spline pyramid).

    Returns:
        ``restored``.
    """
    check_color_fix(method)
    if method == "mean":
        shift = given.mean((0, 1), dtype=np.float64) - restored.mean((0, 1), dtype=np.float64)
        for top in range(0, len(restored), _BAND):
            band = restored[top : top + _BAND]
            band[:] = _stored(band.astype(np.float32) + shift.astype(np.float32), restored.dtype)
    elif method == "wavelet":
        # bands from the top; a band's upper neighbours are needed as they were
        halo = 2**_LEVELS - 1
        above = restored[:0].copy()
        for top in range(0, len(restored), _BAND):
            end = min(top + _BAND, len(restored))
            first, last = max(top - halo, 0), min(end + halo, len(restored))
            before = np.concatenate([above, restored[top:last]]).astype(np.float32)
            low = _low_frequencies(given[first:last].astype(np.float32)) - _low_frequencies(before)
            above = restored[max(end - halo, 0) : end].copy()
            inner = slice(top - first, top - first + end - top)
            restored[top:end] = _stored(before[inner] + low[inner], restored.dtype)
    return restored


def _low_frequencies(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """(h, w, 3) through the 1/4 1/2 1/4 kernel at spacings 1, 2, 4, 8, 16."""
    for number in range(_LEVELS):
        kernel = np.zeros(2 ** (number + 1) + 1, np.float32)
        kernel[0] = kernel[-1] = 0.25
        kernel[2**number] = 0.5
        image = np.asarray(cv2.sepFilter2D(image, -1, kernel, kernel, borderType=cv2.BORDER_REPLICATE), np.float32)
    return image


def _stored(values: NDArray[np.float32], dtype: np.dtype[Any]) -> NDArray[Any]:
    if dtype.kind == "u":
        return np.rint(values).clip(0, np.iinfo(dtype).max).astype(dtype)
    return values.clip(0, 1).astype(dtype)
