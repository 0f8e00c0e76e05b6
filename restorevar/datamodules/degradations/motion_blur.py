"""Motion blur: a hand that shakes during the exposure."""

import math

import numpy as np
from numpy.typing import NDArray

from restorevar.datamodules.degradations.light import FloatImage, linear_to_display
from restorevar.datamodules.degradations.view import Parameters, View

__all__ = ["motion_blur", "shake_trajectory"]


def shake_trajectory(random: np.random.Generator, straightness: float, steps: int = 192) -> NDArray[np.float64]:
    """(steps, 2) positions x, y of a shaking camera, centred at 0, farthest point at distance 1.

    A point with inertia, random pushes and a pull back to where the photographer aims, after Boracchi and Foi 2012.
    """
    heading = random.uniform(0, 2 * math.pi)
    velocity = np.array([math.cos(heading), math.sin(heading)])
    drift = velocity.copy()
    pushes = random.normal(0, 0.35 * (1 - straightness), (steps, 2))
    jerks = random.random(steps) < 0.02 * (1 - straightness)
    position, path = np.zeros(2), np.empty((steps, 2))
    for index in range(steps):
        pull = -0.03 * (1 - straightness) * position
        velocity = velocity + pushes[index] + pull + 0.02 * (drift - velocity)
        if jerks[index]:
            velocity = -velocity + 2 * pushes[index]
        position = position + velocity / max(float(np.hypot(*velocity)), 1e-6) * (0.3 + random.random())
        path[index] = position
    path -= path.mean(axis=0)
    return path / max(float(np.hypot(path[:, 0], path[:, 1]).max()), 1e-6)


def _kernel(path: NDArray[np.float64]) -> dict[tuple[int, int], float]:
    """Weights of whole-pixel shifts (y, x) along a path in pixels, spread bilinearly."""
    base = np.floor(path).astype(int)
    x, y = (path - base).T
    weights: dict[tuple[int, int], float] = {}
    for dx, dy, share in ((0, 0, (1 - x) * (1 - y)), (1, 0, x * (1 - y)), (0, 1, (1 - x) * y), (1, 1, x * y)):
        for (column, row), weight in zip(base + np.array((dx, dy)), share, strict=True):
            key = int(row), int(column)
            weights[key] = weights.get(key, 0.0) + float(weight) / len(path)
    return {key: weight for key, weight in weights.items() if weight > 1e-4}


def motion_blur(view: View, severity: float) -> tuple[FloatImage, Parameters]:
    """Averages the shifted photo over the exposure in linear light; highlights are brighter than the paper's white."""
    random = view.random("motion blur")
    reach = 0.5 * severity * random.uniform(12, 56) * view.unit
    straightness = random.beta(1, 1)
    highlights = severity * random.uniform(0, 3)
    noise = severity * random.uniform(0, 0.015)
    path = shake_trajectory(random, straightness) * reach
    kernel = _kernel(path)
    total = sum(kernel.values())
    margin = math.ceil(reach) + 1
    light = view.linear(margin)
    if highlights:
        # the clipped parts were brighter than what the photo could store
        light = light + np.float32(highlights) * np.square(np.maximum(light - 0.8, 0) * 5)
    height, width = view.window.height, view.window.width
    blurred = np.zeros((height, width, 3), np.float32)
    for (row, column), weight in kernel.items():
        part = light[margin + row : margin + row + height, margin + column : margin + column + width]
        blurred += part * np.float32(weight / total)
    image = linear_to_display(blurred)
    if noise:
        image = image + np.float32(noise) * view.noise("sensor")
    return np.clip(image, 0, 1), {
        "extent_pixels": 2 * reach,
        "straightness": straightness,
        "highlights": highlights,
        "noise": noise,
    }
