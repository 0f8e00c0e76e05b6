"""Rain: streaks at several distances, and the veil that heavy rain adds."""

import math

import numpy as np

from restorevar.datamodules.degradations.depth import relative_depth
from restorevar.datamodules.degradations.haze import airlight_colour, transmission
from restorevar.datamodules.degradations.light import FloatImage
from restorevar.datamodules.degradations.particles import Strokes, draw
from restorevar.datamodules.degradations.view import Parameters, View

__all__ = ["rain"]


def rain(view: View, severity: float) -> tuple[FloatImage, Parameters]:
    """Streak layers from far (thin, short, many) to near (thick, long, few), screened in over a veil.

    Small severities are drizzle, large ones the dense streaks of Rain100H.
    """
    random = view.random("rain")
    angle = math.radians(random.normal(0, 14))
    layers = int(random.integers(2, 5))
    density = severity * random.uniform(600, 2600)
    strength = min(1.0, severity * random.uniform(0.9, 1.8))
    length, width = random.uniform(14, 50), random.uniform(0.8, 2.2)
    veil = severity**1.5 * random.uniform(0.0, 0.5)
    airlight = airlight_colour(view, random)
    streak_colour = random.uniform(0.85, 1.0)
    ambient = np.float32(view.illumination ** (1 / 2.2))

    image = view.display()
    if veil:
        through = transmission(relative_depth(view), veil)[..., None]
        image = airlight * ambient + (image - airlight * ambient) * through
    clear = np.ones(image.shape[:2], np.float32)
    height, width_px = view.size
    for layer in range(layers):
        stream = view.random(f"streaks {layer}")
        nearness = 0.6 + 0.8 * layer / max(layers - 1, 1)
        reach = 0.5 * length * nearness * view.unit
        border = 2 * reach + 4
        area = (height + 2 * border) * (width_px + 2 * border) / (512 * view.unit) ** 2
        count = int(density / layers / nearness**2 * area)
        # all are drawn from the stream whatever the severity, so that more severity adds streaks and moves none
        limit = int(4500 / layers / nearness**2 * area)
        centre = stream.uniform(-border, (width_px + border, height + border), (limit, 2))[:count]
        tilt = angle + stream.normal(0, 0.03) + stream.normal(0, 0.03, limit)[:count]
        size = reach * stream.uniform(0.5, 1.3, limit)[:count]
        opacity = strength * stream.uniform(0.25, 1, limit)[:count]
        vector = np.stack([np.sin(tilt), np.cos(tilt)], axis=1) * size[:, None]
        thickness = width * nearness * view.unit
        softness = 0.35 * thickness + (0.4 if thickness < 1 else 0)
        clear *= 1 - draw(view, Strokes(centre, vector, opacity, thickness, softness))
    image = image + (streak_colour * ambient - image) * (1 - clear[..., None])
    return image, {
        "angle_degrees": math.degrees(angle),
        "layers": layers,
        "density": density,
        "strength": strength,
        "length": length,
        "width": width,
        "veil": veil,
        "airlight": [round(float(value), 4) for value in airlight],
        "streak_brightness": streak_colour,
    }
