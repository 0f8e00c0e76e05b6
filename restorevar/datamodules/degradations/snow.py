"""Snow: flakes of several sizes and distances, and a veil."""

import math

import numpy as np

from restorevar.datamodules.degradations.haze import airlight_colour, veil
from restorevar.datamodules.degradations.light import FloatImage, veiled
from restorevar.datamodules.degradations.particles import Strokes, draw
from restorevar.datamodules.degradations.view import Parameters, View

__all__ = ["snow"]

# flake diameter (pixels in 512 x 512), number at full density, opacity: the nearest are out of focus
_LAYERS = (
    (1.1, 2400, 0.8),
    (1.7, 1500, 1.0),
    (2.6, 700, 1.0),
    (3.8, 260, 1.0),
    (5.6, 110, 1.0),
    (8.5, 45, 0.8),
    (13.0, 14, 0.6),
    (20.0, 6, 0.35),
)


def snow(view: View, severity: float) -> tuple[FloatImage, Parameters]:
    """Flakes from far (tiny, many) to near (large, few, out of focus), moving, partly transparent, over a veil."""
    random = view.random("snow")
    angle = math.radians(random.normal(0, 30))
    speed = random.uniform(0.0, 1.0) ** 2 * 5
    scale = random.uniform(0.8, 1.5)
    largest = int(random.integers(2, len(_LAYERS) + 1))
    # fine snow is denser
    density = severity * random.uniform(0.4, 1.6) * (2.0 if largest <= 3 else 1.0)
    strength = min(1.0, severity**0.4 * random.uniform(0.6, 1.2))
    mist = severity * random.uniform(0.1, 0.8)
    blur = random.uniform(0.15, 0.4)
    airlight = airlight_colour(view, random)
    brightness = random.uniform(0.85, 1.0) * view.illumination ** (1 / 2.2)

    image = view.display()
    if mist:
        image = veil(view, image, mist, airlight)
    clear = np.ones(image.shape[:2], np.float32)
    height, width = view.size
    for layer, (diameter, number, fading) in enumerate(_LAYERS[:largest]):
        diameter = max(diameter * scale * view.unit, 0.9)
        border = (4 + speed) * diameter + 4
        area = (height + 2 * border) * (width + 2 * border) / (512 * view.unit) ** 2
        count = int(number * density * area)
        # streams of their own: more severity adds flakes and moves none
        centre = view.random(f"places {layer}").uniform(-border, (width + border, height + border), (count, 2))
        tilt = angle + view.random(f"angles {layer}").normal(0, 0.3, count)
        path = 0.5 * speed * diameter * view.random(f"speeds {layer}").uniform(0.3, 1.2, count)
        opacity = strength * fading * view.random(f"opacities {layer}").uniform(0.25, 1, count)
        reach = np.stack([np.sin(tilt), np.cos(tilt)], axis=1) * path[:, None]
        thickness = diameter
        if layer >= 2:
            # a flake is a lump of crystals, not a disc
            lumps = view.random(f"lumps {layer}").normal(0, 0.3 * diameter, (count, 3, 2))
            centre = (centre[:, None] + lumps).reshape(-1, 2)
            reach, opacity = reach.repeat(3, axis=0), opacity.repeat(3)
            thickness = 0.6 * diameter
        drawn = draw(view, Strokes(centre, reach, opacity, thickness, max(0.3, blur * diameter)))
        if drawn is not None:
            clear *= 1 - drawn
    return veiled(image, np.full(3, brightness), clear), {
        "angle_degrees": math.degrees(angle),
        "speed": speed,
        "scale": scale,
        "density": density,
        "strength": strength,
        "largest_layer": largest,
        "softness": blur,
        "veil": mist,
        "airlight": [round(float(value), 4) for value in airlight],
        "flake_brightness": brightness,
    }
