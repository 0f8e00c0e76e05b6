"""The degradations by name, and the one call that applies them."""

import contextlib
import inspect
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from restorevar.datamodules.degradations.light import FloatImage, to_uint8
from restorevar.datamodules.degradations.view import DegradationFunction, Parameters, View, Window
from restorevar.errors import UserError

__all__ = ["KINDS", "degrade", "get_degradation"]

_TABLE = {
    "haze": "restorevar.datamodules.degradations.haze.haze",
    "rain": "restorevar.datamodules.degradations.rain.rain",
    "snow": "restorevar.datamodules.degradations.snow.snow",
    "low_light": "restorevar.datamodules.degradations.low_light.low_light",
    "motion_blur": "restorevar.datamodules.degradations.motion_blur.motion_blur",
    "mixed": "restorevar.datamodules.degradations.mixed.mixed",
}
KINDS: tuple[str, ...] = tuple(_TABLE)
"""The kinds that can be made from a clean photo."""


def get_degradation(name: str) -> DegradationFunction:
    """The degradation function of that name.

    Args:
        name: One of ``KINDS``, or the import path of a function of your own, such as ``my_package.dust.dust``.

    Raises:
        UserError: There is no such degradation, or it cannot be called with a view and a severity.
    """
    if "." not in name and name not in _TABLE:
        raise UserError(
            f"unknown degradation {name!r}; expected one of {', '.join(KINDS)}, or an import path such as "
            "my_package.my_module.my_degradation"
        )
    module, _, attribute = _TABLE.get(name, name).rpartition(".")
    try:
        function: DegradationFunction = getattr(import_module(module), attribute)
    except Exception as error:  # a module of the user's own raises what it likes while it is imported
        package, advice = name.partition(".")[0], "correct the path, or mend the module"
        if isinstance(error, ModuleNotFoundError) and error.name == package:
            # unlike `python -m`, an installed command does not look into the folder it is run from
            advice = (
                f"run it from the folder that holds {package} as `PYTHONPATH=. restorevar ...`, or install {package}"
            )
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"cannot import the degradation {name!r} ({what}); {advice}") from error
    if isinstance(function, type) or not callable(function):
        raise UserError(f"{name!r} is a {type(function).__name__}; expected a function of a view and a severity")
    if name not in _TABLE:
        with contextlib.suppress(ValueError):  # some functions written in C tell nothing of their parameters
            signature = inspect.signature(function)
            try:
                signature.bind(None, 0.5)
            except TypeError as error:
                found = f"{name!r} takes {signature}"
                raise UserError(f"{found}; expected a function of a view and a severity") from error
    return function


def degrade(
    photo: NDArray[np.uint8],
    kind: str | DegradationFunction,
    severity: float,
    seed: int,
    crop: tuple[int, int, int, int] | None = None,
    depth: FloatImage | None = None,
) -> tuple[NDArray[np.uint8], Parameters]:
    """Degrades a photo, or a crop of it as it would look in the degraded photo.

    Args:
        photo: uint8 (H, W, 3), RGB.
        kind: One of ``KINDS``, an import path, or a degradation function itself.
        severity: 0 (the photo itself) to 1.
        seed: Non-negative; the same seed gives the same result on every machine, nearly all values to 1/255.
        crop: (top, left, height, width) in the photo's pixels, or None for all of it.
        depth: (H, W) relative distance, larger is farther, for the kinds that depend on it; guessed if None.

    Returns:
        uint8 RGB of the crop's size, and a dict of the parameters used, fit for JSON.

    Raises:
        UserError: One of the arguments is not as described, or a function of the user's own returned something else
            than it should.
    """
    photo = np.asarray(photo)
    if photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[2] != 3 or 0 in photo.shape:
        raise UserError(f"found a photo of {photo.dtype} {photo.shape}; expected uint8 (height, width, 3)")
    if not (isinstance(severity, int | float | np.number) and 0 <= severity <= 1):
        raise UserError(f"severity is {severity}; expected a number from 0 to 1")
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise UserError(f"seed is {seed!r}; expected a whole number from 0")
    height, width = photo.shape[:2]
    window = Window(0, 0, height, width) if crop is None else Window(*(int(value) for value in crop))
    if min(window.top, window.left) < 0 or min(window.height, window.width) < 1:
        raise UserError(f"crop is {tuple(window)}; expected (top, left, height, width) inside the photo")
    if window.top + window.height > height or window.left + window.width > width:
        raise UserError(f"crop {tuple(window)} leaves the photo of {height} x {width} pixels")
    if depth is not None:
        depth = np.asarray(depth, dtype=np.float32)
        if depth.shape != (height, width):
            raise UserError(f"the depth map is {depth.shape}; expected the photo's {(height, width)}")
    function: DegradationFunction = get_degradation(kind) if isinstance(kind, str) else kind
    result = function(View(photo, window, int(seed), depth), float(severity))
    name = kind if isinstance(kind, str) else kind.__name__
    image, parameters = _checked(name, result, (window.height, window.width, 3))
    used = {"kind": name, "severity": float(severity), "seed": int(seed)}
    return to_uint8(image), {**used, **parameters}


def _checked(kind: str, result: Any, shape: tuple[int, ...]) -> tuple[FloatImage, Parameters]:
    """What a degradation function returned, or a `UserError` that says what is wrong with it."""
    returned = f"degradation {kind!r} returned"
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)):
        raise UserError(f"{returned} a {type(result).__name__}; expected (image, parameters)")
    image, parameters = result
    if not isinstance(image, np.ndarray):
        raise UserError(f"{returned} an image that is a {type(image).__name__}; expected an array of {shape}")
    if image.shape != shape or image.dtype.kind != "f":
        found = f"{image.dtype} {image.shape}"
        raise UserError(f"{returned} an image of {found}; expected float32 {shape}, the size of the view's window")
    if not np.isfinite(image).all():
        raise UserError(f"{returned} an image with values that are not finite; expected display values in [0, 1]")
    return image, parameters
