"""A photo of any size through a model of one size: blended tiles, and one restoration of the whole photo to level them.

Tiles lie evenly spaced and cross-fade over the overlap. The photo is worked through in bands of one tile's height, so
that besides the photo and its result only a band is held in floating point.

A tile cannot know how bright the rest of the photo is, nor whether its even grey is sky or haze, so neighbouring tiles
may come back at different levels. One restoration of the whole photo at reduced size says how much each region
should change: each tile is given a gain and a smooth map per channel, so that its low frequencies change as they did
there. The gain is for photos that become brighter: light multiplies, while haze, whose removal darkens, was added.
Changes are compared, not values, so that a model that changes nothing is left exactly alone.

The reduced photo has lost its rain and noise, and the tiles cannot see the whole: how bright the photo is in all, each
colour's mean, is what both say on average, unless they are far apart: then there are tiles with nothing in them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

__all__ = [
    "Axis",
    "GlobalChange",
    "TileModel",
    "blend_in_bands",
    "level",
    "measure_global_change",
    "reflect",
    "restore_tiles",
]

TileModel = Callable[[Tensor], Tensor]
"""(B, 3, h, w) in [-1, 1] to (B, 3, h, w) in [0, 1]."""

CELLS = 8
"""A tile's low frequencies are the means of this many cells a side."""
GAIN_LIMITS = (0.5, 2.0)
MEAN_LIMIT = 0.01
"""How far the tiles can move the whole photo's mean, of values in [0, 1]."""
BAND_PIXELS = 1 << 18


def reflect(index: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Folds any integers into 0 ... length - 1 by reflection at the ends, as often as needed."""
    if length == 1:
        return np.zeros_like(index)
    folded = np.mod(index, 2 * (length - 1))
    return np.minimum(folded, 2 * (length - 1) - folded)


@dataclass(frozen=True)
class Axis:
    """How tiles lie along one side of a photo.

    Attributes:
        length: Pixels of the photo.
        tile: Pixels of a tile.
        overlap: Pixels over which neighbours cross-fade; they may share more.
    """

    length: int
    tile: int
    overlap: int

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """First pixel of each tile; negative for the single tile of a photo that is smaller."""
        spare = self.length - self.tile
        if spare <= 0:
            return (spare // 2,)
        count = 1 + -(-spare // (self.tile - self.overlap))
        return tuple(round(index * spare / (count - 1)) for index in range(count))

    @property
    def inside(self) -> slice:
        """The part of every tile that is photo and not padding."""
        first = max(-self.starts[0], 0)
        return slice(first, first + min(self.length, self.tile))

    def pixels(self, number: int) -> NDArray[np.int64]:
        """(tile,) the photo's pixels under tile ``number``, reflected at the photo's ends."""
        return reflect(np.arange(self.tile) + self.starts[number], self.length)

    def span(self, number: int) -> tuple[int, int]:
        """First pixel of the photo under tile ``number``, and the one after the last."""
        first = max(self.starts[number], 0)
        return first, first + min(self.length, self.tile)

    def weights(self, number: int) -> NDArray[np.float32]:
        """Blending weights of tile ``number`` for the part `inside`; over all tiles they add up to 1."""
        first, end = self.span(number)
        places = np.arange(first, end) + 0.5
        return (self._risen(number, places) - self._risen(number + 1, places)).astype(np.float32)

    def _risen(self, number: int, places: NDArray[Any]) -> NDArray[Any]:
        """A smooth step from 0 to 1 in the middle of what tiles ``number - 1`` and ``number`` share."""
        if number == 0:
            return np.ones_like(places)
        if number == len(self.starts):
            return np.zeros_like(places)
        middle = (self.starts[number] + self.starts[number - 1] + self.tile) / 2
        along = np.clip((places - middle) / max(self.overlap, 1e-6) + 0.5, 0, 1)
        return 0.5 - 0.5 * np.cos(np.pi * along)


class GlobalChange:
    """What restoring the whole photo at reduced size changed.

    Args:
        change: (h, w, 3) restored minus given, in [-1, 1].
        size: Height and width of the photo.
    """

    def __init__(self, change: NDArray[np.float32], size: tuple[int, int]) -> None:
        self.size = size
        # sums over all rectangles from the top left corner: exact means over any rectangle, fractional ones too
        sums = change.astype(np.float64).cumsum(0).cumsum(1)
        self._sums = np.pad(sums, ((1, 0), (1, 0), (0, 0)))

    @property
    def mean(self) -> NDArray[np.float64]:
        """(3,) mean change of each colour."""
        height, width, _ = self._sums.shape
        return np.asarray(self._sums[-1, -1] / ((height - 1) * (width - 1)), np.float64)

    @property
    def brightens(self) -> bool:
        """Whether the photo as a whole became brighter."""
        return float(self.mean.sum()) > 0

    def cells(self, rows: tuple[int, int], columns: tuple[int, int], counts: tuple[int, int]) -> NDArray[np.float32]:
        """Mean changes in a grid of cells over a rectangle of the photo.

        Args:
            rows: First row and the one after the last, in pixels of the photo.
            columns: The same for columns.
            counts: Cells along both sides.

        Returns:
            (3, counts[0], counts[1]).
        """
        edges = []
        for (first, end), count, length, side in zip(
            (rows, columns), counts, self.size, self._sums.shape, strict=False
        ):
            edges.append(np.linspace(first, end, count + 1) * ((side - 1) / length))
        corners = _interpolate(_interpolate(self._sums, edges[0], 0), edges[1], 1)
        totals = np.diff(np.diff(corners, axis=0), axis=1)
        areas = np.diff(edges[0])[:, None] * np.diff(edges[1])[None, :]
        return (totals / areas[..., None]).transpose(2, 0, 1).astype(np.float32)


def _interpolate(table: NDArray[np.float64], places: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    places = np.clip(places, 0, table.shape[axis] - 1)
    lower = np.minimum(places.astype(int), table.shape[axis] - 2)
    share = np.expand_dims(places - lower, tuple(other for other in range(table.ndim) if other != axis))
    return table.take(lower, axis) * (1 - share) + table.take(lower + 1, axis) * share


def _unit_range(pixels: NDArray[Any], device: torch.device) -> Tensor:
    """(..., H, W, 3) of uint8, uint16 or float in [0, 1] to (..., 3, H, W) float32 in [0, 1]."""
    if pixels.dtype == np.uint16:
        pixels = pixels.astype(np.float32) / 65535
    tensor = torch.from_numpy(np.ascontiguousarray(pixels)).to(device).movedim(-1, -3)
    return tensor.float() / 255 if tensor.dtype == torch.uint8 else tensor.float()


def measure_global_change(
    restore: TileModel, pixels: NDArray[Any], tile: tuple[int, int], device: torch.device
) -> GlobalChange:
    """Restores the whole photo, shrunk into one tile with its aspect ratio kept, and measures what changed.

    Args:
        restore: The model.
        pixels: (H, W, 3) uint8, uint16 or float32 in [0, 1].
        tile: Height and width of the model's input.
        device: Where the model is.
    """
    size = pixels.shape[0], pixels.shape[1]
    shrink = min(tile[0] / size[0], tile[1] / size[1], 1.0)
    height, width = (max(round(side * shrink), 1) for side in size)
    small = _unit_range(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA), device).clamp_(0, 1)
    rows, columns = Axis(height, tile[0], 0), Axis(width, tile[1], 0)
    padded = small[:, torch.from_numpy(rows.pixels(0)).to(device)][:, :, torch.from_numpy(columns.pixels(0)).to(device)]
    restored = restore(padded[None] * 2 - 1)[0].float()[:, rows.inside, columns.inside]
    return GlobalChange((restored - small).permute(1, 2, 0).cpu().numpy(), size)


def level(restored: Tensor, given: Tensor, wanted: Tensor, scale: bool) -> Tensor:
    """Adds a smooth map to each tile, after a gain if asked for, so that its low frequencies change as wanted.

    Args:
        restored: (B, 3, h, w) in [0, 1], changed in place.
        given: (B, 3, h, w) in [0, 1], the tiles before restoration.
        wanted: (B, 3, n, m) mean changes in a grid of cells.
        scale: Whether to reach the wanted mean by a gain (from 0.5 to 2) as far as possible.

    Returns:
        ``restored``.
    """
    counts = (wanted.shape[2], wanted.shape[3])
    means = F.adaptive_avg_pool2d(restored, counts)
    target = F.adaptive_avg_pool2d(given, counts).add_(wanted)
    if scale:
        floor = 1 / 255
        gain = (target.mean((2, 3), keepdim=True).clamp_min(0) + floor) / (means.mean((2, 3), keepdim=True) + floor)
        gain = gain.clamp(*GAIN_LIMITS)
        restored, means = restored.mul_(gain), means * gain
    left = target - means
    return restored.add_(F.interpolate(left, size=restored.shape[2:], mode="bilinear", align_corners=False))


def restore_tiles(
    restore: TileModel,
    pixels: NDArray[Any],
    *,
    tile: tuple[int, int],
    overlap: int,
    batch_size: Callable[[], int],
    device: torch.device,
    change: GlobalChange | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[Any]:
    """Restores a photo tile by tile.

    Args:
        restore: The model.
        pixels: (H, W, 3) uint8, uint16 or float32 in [0, 1].
        tile: Height and width of the model's input.
        overlap: Pixels over which neighbouring tiles cross-fade.
        batch_size: Asked before each call of the model: how many tiles to give it.
        device: Where the model is.
        change: How the low frequencies should change; None leaves each tile as the model made it.
        progress: Called after each batch with the number of tiles in it and of all tiles.

    Returns:
        An array like ``pixels``.
    """
    height, width = pixels.shape[:2]
    rows, columns = Axis(height, tile[0], overlap), Axis(width, tile[1], overlap)
    places = [(row, column) for row in range(len(rows.starts)) for column in range(len(columns.starts))]
    counts = min(CELLS, height, tile[0]), min(CELLS, width, tile[1])
    row_weights = [torch.from_numpy(rows.weights(row)).to(device)[:, None] for row in range(len(rows.starts))]
    column_weights = [torch.from_numpy(columns.weights(n)).to(device)[None, :] for n in range(len(columns.starts))]

    result = np.empty_like(pixels)
    band = torch.zeros(3, min(height, tile[0]), width, device=device)
    band_top = 0
    own_change = torch.zeros(3, dtype=torch.float64)  # of the tiles as the model made them, summed over the photo
    for group in _batches(places, batch_size):
        stacked = np.stack([pixels[rows.pixels(r)[:, None], columns.pixels(c)[None, :]] for r, c in group])
        given = _unit_range(stacked, device)
        restored = restore(given * 2 - 1).float()[:, :, rows.inside, columns.inside]
        if change is not None:
            given = given[:, :, rows.inside, columns.inside]
            for (row, column), changed in zip(group, restored - given, strict=True):
                own_change += (changed * row_weights[row] * column_weights[column]).sum((1, 2)).cpu()
            wanted = np.stack([change.cells(rows.span(r), columns.span(c), counts) for r, c in group])
            restored = level(restored.clone(), given, torch.from_numpy(wanted).to(device), change.brightens)
        for (row, column), restored_tile in zip(group, restored, strict=True):
            top = rows.span(row)[0]
            if top > band_top:  # rows above the new tiles are complete
                finished = top - band_top
                result[band_top:top] = _as_stored(band[:, :finished], pixels.dtype)
                band = torch.cat([band[:, finished:], torch.zeros_like(band[:, :finished])], dim=1)
                band_top = top
            first, end = columns.span(column)
            band[:, :, first:end].addcmul_(restored_tile, row_weights[row] * column_weights[column])
        if progress is not None:
            progress(len(group), len(places))
    result[band_top:] = _as_stored(band, pixels.dtype)
    if change is not None:
        shift = ((own_change.numpy() / (height * width) - change.mean) / 2).clip(-MEAN_LIMIT, MEAN_LIMIT)
        for rows_of_band in _bands(result, 1):
            found = _unit_range(result[rows_of_band], device)
            result[rows_of_band] = _as_stored(found + torch.from_numpy(shift).to(found)[:, None, None], result.dtype)
    return result


def blend_in_bands(
    blend: Callable[[Tensor, Tensor], Tensor],
    restored: NDArray[Any],
    pixels: NDArray[Any],
    reach: int,
    device: torch.device,
) -> None:
    """Blends a photo into its restoration, in place and band by band; what was rounded stays rounded.

    Args:
        blend: (1, 3, h, W) restored and degraded, in [0, 1], to the blend.
        restored: (H, W, 3) uint8, uint16 or float32 in [0, 1], changed in place.
        pixels: The same of the degraded photo.
        reach: Rows above and below that a row of the blend depends on.
        device: Where to work.
    """
    first, above = 0, restored[:0]  # rows that the next band needs as they were
    for band in _bands(restored, reach):
        top, end = band.start, band.stop
        last = min(end + reach, len(pixels))
        found = np.concatenate([above, restored[top:last]])
        # copied: what Pillow gives cannot be written to, of which torch would warn
        blended = blend(_unit_range(found, device)[None], _unit_range(pixels[first:last].copy(), device)[None])[0]
        restored[band] = _as_stored(blended[:, top - first : end - first], restored.dtype)
        above = found[max(end - reach, 0) - first : end - first]
        first = max(end - reach, 0)


def _bands(photo: NDArray[Any], least: int) -> Iterator[slice]:
    """Rows of a photo, at least so many, that are worked on together."""
    height = max(least, BAND_PIXELS // photo.shape[1], 1)
    for top in range(0, len(photo), height):
        yield slice(top, min(top + height, len(photo)))


def _batches(places: list[tuple[int, int]], size: Callable[[], int]) -> Iterator[list[tuple[int, int]]]:
    done = 0
    while done < len(places):
        group = places[done : done + size()]
        yield group
        done += len(group)


def _as_stored(values: Tensor, dtype: np.dtype[Any]) -> NDArray[Any]:
    """(3, h, w) in about [0, 1] to (h, w, 3) of the photo's type."""
    values = values.clamp(0, 1).movedim(0, -1)
    if dtype.kind == "u":
        values = (values * float(np.iinfo(dtype).max)).round_()
        values = values.to(torch.uint8 if dtype == np.uint8 else torch.int32)
    return values.cpu().numpy().astype(dtype, copy=False)
