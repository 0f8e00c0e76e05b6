"""Snow: flakes of several sizes and distances, and a veil."""

import math

import numpy as np

from restorevar.datamodules.degradations.depth import relative_depth
from restorevar.datamodules.degradations.haze import airlight_colour, transmission
from restorevar.datamodules.degradations.light import FloatImage
from restorevar.datamodules.degradations.particles import Strokes, draw
from restorevar.datamodules.degradations.view import Parameters, View

__all__ = ["snow"]

# flake diameter (pixels at 512), number at full density, softness relative to the diameter
_LAYERS = ((1.2, 2600, 0.3), (2.5, 700, 0.3), (5.0, 160, 0.35), (10.0, 30, 0.5))


def snow(view: View, severity: float) -> tuple[FloatImage, Parameters]:
    """Flakes from far (tiny, many) to near (large, few, out of focus), moving, partly transparent, over a veil."""
    random = view.random("snow")
    angle = math.radians(random.normal(0, 30))
    speed = random.uniform(0.2, 2.5)
    scale = random.uniform(0.7, 1.5)
    density = severity * random.uniform(0.4, 1.5)
    strength = min(1.0, severity**0.5 * random.uniform(0.7, 1.2))
    veil = severity**1.5 * random.uniform(0.0, 0.5)
    largest = int(random.integers(1, len(_LAYERS) + 1))
    airlight = airlight_colour(view, random)
    flake_colour = random.uniform(0.88, 1.0)
    ambient = np.float32(view.illumination ** (1 / 2.2))

    image = view.display()
    if veil:
        through = transmission(relative_depth(view), veil)[..., None]
        image = airlight * ambient + (image - airlight * ambient) * through
    clear = np.ones(image.shape[:2], np.float32)
    height, width = view.size
    for layer, (diameter, number, blur) in enumerate(_LAYERS[:largest]):
        stream = view.random(f"flakes {layer}")
        diameter = diameter * scale * view.unit
        border = 4 * diameter + 4
        area = (height + 2 * border) * (width + 2 * border) / (512 * view.unit) ** 2
        count, limit = int(number * density * area), int(number * 1.5 * area) + 1
        centre = stream.uniform(-border, (width + border, height + border), (limit, 2))[:count]
        tilt = angle + stream.normal(0, 0.25, limit)[:count]
        size = 0.5 * speed * diameter * stream.uniform(0.2, 1.2, limit)[:count]
        opacity = strength * stream.uniform(0.3, 1, limit)[:count] * (0.5 if layer == 3 else 1)
        vector = np.stack([np.sin(tilt), np.cos(tilt)], axis=1) * size[:, None]
        clear *= 1 - draw(view, Strokes(centre, vector, opacity, diameter, max(0.5, blur * diameter)))
    image = image + (flake_colour * ambient - image) * (1 - clear[..., None])
    return image, {
        "angle_degrees": math.degrees(angle),
        "speed": speed,
        "scale": scale,
        "density": density,
        "strength": strength,
        "largest_layer": largest,
        "veil": veil,
        "airlight": [round(float(value), 4) for value in airlight],
        "flake_brightness": flake_colour,
    }
