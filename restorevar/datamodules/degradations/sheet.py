"""A contact sheet: one picture of all kinds and severities, to see what a model would be trained on."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from restorevar.datamodules.degradations.registry import degrade
from restorevar.datamodules.degradations.view import DegradationFunction

__all__ = ["contact_sheet"]

_GAP, _LABEL = 4, 22  # pixels


def contact_sheet(
    photos: Sequence[NDArray[np.uint8]],
    kinds: Sequence[str | DegradationFunction],
    severities: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
    seed: int = 0,
    cell: tuple[int, int] = (160, 240),
) -> NDArray[np.uint8]:
    """A labelled grid, one row a kind and one column a severity.

    Args:
        photos: uint8 (H, W, 3) each, RGB; each row shows the next of them. With one kind there is a row for each photo.
        kinds: Names or functions.
        severities: In [0, 1].
        seed: The row's number is added.
        cell: Height and width of a picture; photos are cut in the middle to its shape.

    Returns:
        uint8 (H, W, 3).
    """
    rows = max(len(kinds), len(photos)) if len(kinds) == 1 else len(kinds)
    height, width = cell
    sheet = np.full((_LABEL + rows * (height + _GAP), _LABEL + len(severities) * (width + _GAP), 3), 255, np.uint8)
    for row in range(rows):
        kind, photo = kinds[row % len(kinds)], _filling(photos[row % len(photos)], cell)
        for column, severity in enumerate(severities):
            image, _ = degrade(photo, kind, severity, seed + row)
            top, left = _LABEL + row * (height + _GAP), _LABEL + column * (width + _GAP)
            sheet[top : top + height, left : left + width] = cv2.resize(
                image, (width, height), interpolation=cv2.INTER_AREA
            )
    return _labelled(sheet, [_name(kinds[row % len(kinds)]) for row in range(rows)], severities, cell)


def _name(kind: str | DegradationFunction) -> str:
    name = kind if isinstance(kind, str) else kind.__name__
    return name.rpartition(".")[2].replace("_", " ")


def _filling(photo: NDArray[np.uint8], cell: tuple[int, int]) -> NDArray[np.uint8]:
    """The photo cut to the cell's shape, at twice its size: fine streaks stay visible, a large photo costs little."""
    height, width = 2 * cell[0], 2 * cell[1]
    scale = max(height / photo.shape[0], width / photo.shape[1])
    size = max(width, round(photo.shape[1] * scale)), max(height, round(photo.shape[0] * scale))
    resized = cv2.resize(photo, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    top, left = (size[1] - height) // 2, (size[0] - width) // 2
    return np.ascontiguousarray(resized[top : top + height, left : left + width], np.uint8)


def _labelled(
    sheet: NDArray[np.uint8], names: Sequence[str], severities: Sequence[float], cell: tuple[int, int]
) -> NDArray[np.uint8]:
    height, width = cell
    font = ImageFont.load_default(size=14)
    picture = Image.fromarray(sheet)
    draw = ImageDraw.Draw(picture)
    for column, severity in enumerate(severities):
        middle = _LABEL + column * (width + _GAP) + width // 2
        draw.text((middle, _LABEL // 2), f"severity {severity:g}", fill="black", font=font, anchor="mm")
    for row, name in enumerate(names):
        # sideways, beside the row
        strip = Image.new("RGB", (height, _LABEL), "white")
        ImageDraw.Draw(strip).text((height // 2, _LABEL // 2), name, fill="black", font=font, anchor="mm")
        picture.paste(strip.transpose(Image.Transpose.ROTATE_90), (0, _LABEL + row * (height + _GAP)))
    return np.array(picture)
