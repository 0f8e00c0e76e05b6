"""Motion blur: a camera that moves during the exposure."""

import math
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from restorevar.datamodules.degradations.light import FloatImage, bright_excess, linear_to_display, scaled
from restorevar.datamodules.degradations.view import Parameters, View

__all__ = ["motion_blur", "shake_trajectory"]

_STRIP = 64  # rows averaged at a time: they stay in the processor's cache


def shake_trajectory(random: np.random.Generator, straightness: float, steps: int = 128) -> NDArray[np.float64]:
    """(steps, 2) positions x, y of a shaking camera, centred at 0, farthest point at distance 1.

    A steady drift plus a hand's own motion: a point with inertia and random pushes, sometimes thrown back by a jerk
    (after Boracchi and Foi 2012). Where it lingers the blur is bright.
    """
    heading = random.uniform(0, 2 * math.pi)
    drift = complex(math.cos(heading), math.sin(heading)) * (0.1 + 1.4 * straightness)
    loose = 1 - straightness
    pushes = (random.normal(0, 0.3, (steps, 2)) @ np.array([1, 1j])).tolist()
    jerks = (random.random(steps) < 0.02 * loose).tolist()
    shake = complex(*random.normal(0, 0.8, 2))
    position, path = 0j, np.empty(steps, np.complex128)
    for index in range(steps):
        shake = 0.95 * shake + pushes[index]
        if jerks[index]:
            shake = -shake
        position += drift + loose * shake
        path[index] = position
    path -= path.mean()
    path /= max(float(np.abs(path).max()), 1e-6)
    return np.stack([path.real, path.imag], axis=1)


def _steadied(path: NDArray[np.float64], share: float) -> NDArray[np.float64]:
    """The path passed at a more even speed: a point where a hand rests for long would leave a sharp second picture."""
    way = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(path, axis=0).T))])
    time = np.linspace(0, 1, len(path))
    mixed = (1 - share) * time + share * way / max(float(way[-1]), 1e-9)
    # the moment of each place, mixed from time and way, asked at even moments
    return np.stack([np.interp(time, mixed, path[:, axis]) for axis in (0, 1)], axis=1)


def _kernel(path: NDArray[np.float64]) -> list[tuple[int, int, float]]:
    """Whole-pixel shifts (row, column, weight) along a path in pixels."""
    # stages at most half a pixel apart, or a long path would fall into dots
    length = float(np.hypot(*np.diff(path, axis=0).T).sum())
    stages = np.linspace(0, len(path) - 1, max(len(path), math.ceil(2 * length)))
    column, row = (np.interp(stages, np.arange(len(path)), path[:, axis]) for axis in (0, 1))
    left, top = math.floor(column.min()), math.floor(row.min())
    grid = np.zeros((math.ceil(row.max()) - top + 2, math.ceil(column.max()) - left + 2))
    # a shutter opens and closes gradually: no hard ends
    open_share = np.clip(np.minimum(stages + 1, len(path) - stages) / (0.06 * len(path)), 0, 1)
    if length > 40:
        # a third of the shifts, and nobody sees half a pixel in a long blur
        np.add.at(grid, (np.rint(row).astype(int) - top, np.rint(column).astype(int) - left), open_share)
    else:
        first_row, first_column = np.floor(row).astype(int), np.floor(column).astype(int)
        y, x = row - first_row, column - first_column
        for dy, dx, share in ((0, 0, (1 - y) * (1 - x)), (0, 1, (1 - y) * x), (1, 0, y * (1 - x)), (1, 1, y * x)):
            np.add.at(grid, (first_row + dy - top, first_column + dx - left), share * open_share)
    grid /= grid.sum()
    rows, columns = np.nonzero(grid > 1e-4)
    weights = grid[rows, columns] / grid[rows, columns].sum()
    return [(int(r) + top, int(c) + left, float(w)) for r, c, w in zip(rows, columns, weights, strict=True)]


def _average_shifts(light: FloatImage, kernel: list[tuple[int, int, float]], margin: int) -> FloatImage:
    height, width = light.shape[0] - 2 * margin, light.shape[1] - 2 * margin
    blurred = np.zeros((height, width, 3), np.float32)
    for top in range(0, height, _STRIP):
        strip = blurred[top : top + _STRIP]
        rows = strip.shape[0]
        for row, column, weight in kernel:
            first, left = top + margin + row, margin + column
            cv2.scaleAdd(light[first : first + rows, left : left + width], weight, strip, strip)
    return blurred


def _average_turns(
    light: FloatImage, corner: tuple[int, int], centre: tuple[float, float], turn: float, zoom: float, passes: int
) -> FloatImage:
    """Averages 2**passes stages of a rotation and zoom about a centre: each pass doubles their number.

    Args:
        light: (h, w, 3).
        corner: Where in the photo its first pixel lies: x, y.
        centre: x, y in the photo.
        turn: In radians.
        zoom: Logarithm of the scale.
        passes: How often the number is doubled.
    """
    x = np.arange(light.shape[1]) + corner[0] - centre[0]
    y = np.arange(light.shape[0]) + corner[1] - centre[1]
    for number in range(passes):
        share = 2.0 ** (number - passes)
        scale = math.exp(zoom * share)
        cosine, sine = scale * math.cos(turn * share), scale * math.sin(turn * share)
        # OpenCV reads at 32nds of a pixel: rounded here in the photo's coordinates, so that every window reads alike
        along_x, across_x = _to_32nds(cosine * x + centre[0]) - corner[0], _to_32nds(-sine * y)
        along_y, across_y = _to_32nds(cosine * y + centre[1]) - corner[1], _to_32nds(sine * x)
        map_x, map_y = across_x[:, None] + along_x, along_y[:, None] + across_y
        turned = cv2.remap(light, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        light = np.asarray(cv2.addWeighted(light, 0.5, turned, 0.5, 0), np.float32)
    return light


def _to_32nds(values: NDArray[Any]) -> NDArray[np.float32]:
    return (np.rint(values * 32) / 32).astype(np.float32)


def motion_blur(view: View, severity: float) -> tuple[FloatImage, Parameters]:
    """Averages the moving photo over the exposure in linear light, with highlights brighter than the photo's white.

    The path of a shaking hand shifts the whole photo; in some photos it also turns or comes nearer, so that the blur
    differs from place to place. Sensor noise comes after the blur.
    """
    random = view.random("motion blur")
    reach = 0.5 * severity * random.uniform(16, 62) * view.unit
    straightness = random.beta(0.8, 0.8)
    highlights = severity * 14 * random.random() ** 2  # lamps and windows are many times brighter than white paper
    noise = severity * random.uniform(0.003, 0.02)
    defocus = severity * random.uniform(0.2, 0.9) * view.unit
    turns = random.random() < 0.4
    turn = severity * math.radians(random.normal(0, 1.2)) * turns
    zoom = severity * random.normal(0, 0.012) * turns
    height, width = view.size
    centre = width * random.uniform(0.1, 0.9), height * random.uniform(0.1, 0.9)
    path = shake_trajectory(random, straightness) * reach
    path = _steadied(path, random.uniform(0.6, 0.95))

    # the farthest corner moves most; each stage is at most about a pixel from the next
    swing = math.hypot(turn, zoom) * math.hypot(max(centre[0], width - centre[0]), max(centre[1], height - centre[1]))
    passes = min(7, math.ceil(math.log2(swing))) if swing > 1 else int(swing > 0.1)
    soft = math.ceil(2.5 * defocus) if defocus > 0.2 else 0
    shift = math.ceil(reach) + 2 + soft
    margin = shift + (math.ceil(swing) + 2 if passes else 0)
    light = view.linear(margin)
    if highlights:
        light = scaled(light, 1 + np.float32(highlights) * bright_excess(light))
    if passes:
        corner = view.window.left - margin, view.window.top - margin
        light = _average_turns(light, corner, centre, turn, zoom, passes)
        trim = margin - shift
        light = light[trim:-trim, trim:-trim]
    if soft:
        light = np.asarray(cv2.GaussianBlur(light, (2 * soft + 1, 2 * soft + 1), defocus), np.float32)
    image = linear_to_display(_average_shifts(light, _kernel(path), shift))
    if noise:
        image = np.clip(image + np.float32(noise) * view.noise("sensor"), 0, 1)
    return image, {
        "extent_pixels": 2 * reach,
        "straightness": straightness,
        "turn_degrees": math.degrees(turn),
        "zoom": zoom,
        "highlights": highlights,
        "defocus_pixels": defocus,
        "noise": noise,
    }
