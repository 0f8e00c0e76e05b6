"""Snow: flakes of several sizes and distances, and a veil."""

import math

import numpy as np

from restorevar.datamodules.degradations.depth import relative_depth
from restorevar.datamodules.degradations.haze import airlight_colour, overcast, veil
from restorevar.datamodules.degradations.light import FloatImage, veiled
from restorevar.datamodules.degradations.particles import Strokes, at_places, cover, draw, gusts, near_window, places
from restorevar.datamodules.degradations.view import Parameters, View

__all__ = ["snow"]

# flake diameter (pixels in 512 x 512), number at full density, opacity: the nearest are out of focus
_LAYERS = (
    (0.8, 2000, 0.85),
    (1.4, 1500, 1.0),
    (2.3, 560, 1.0),
    (3.5, 200, 1.0),
    (5.4, 80, 0.9),
    (8.5, 28, 0.7),
    (13.0, 11, 0.5),
    (22.0, 4, 0.3),
)


def snow(view: View, severity: float) -> tuple[FloatImage, Parameters]:
    """Flakes from far (tiny, many) to near (large, few, out of focus), moving, partly transparent, over a veil."""
    random = view.random("snow")
    angle = math.radians(random.normal(0, 30))
    speed = random.uniform(0.0, 1.0) ** 2 * 3.5
    scale = random.uniform(0.8, 1.5)
    largest = int(random.integers(3, len(_LAYERS) + 1))
    # fine snow is denser
    density = severity * random.uniform(0.6, 1.6) * (2.0 if largest <= 3 else 1.0)
    strength = min(1.0, severity**0.4 * random.uniform(0.6, 1.2))
    mist = severity * random.uniform(0.3, 1.1)
    blur = random.uniform(0.12, 0.4)
    airlight = airlight_colour(view, random)
    # flakes are white under a grey sky: seldom as bright as the camera's white, never darker than the veil they make
    glow = float(view.thumbnail.mean()) + random.uniform(0.25, 0.55)
    brightness = min(1.0, max(glow, 0.65, float(np.mean(airlight)))) * view.illumination ** (1 / 2.2)
    gloom = min(1.0, 4 * severity) * random.uniform(0.2, 0.9)
    gust = gusts(view, random.uniform(0.2, 0.8))

    image = view.display()
    depth = relative_depth(view)
    if gloom:
        image = overcast(view, image, gloom)
    if mist:
        image = veil(view, image, depth, mist, airlight)
    clear = np.ones(image.shape[:2], np.float32)
    height, width = view.size
    for layer, (diameter, number, fading) in enumerate(_LAYERS[:largest]):
        diameter = max(diameter * scale * view.unit, 0.7)
        border = (4 + 2 * speed) * diameter + 4
        area = (height + 2 * border) * (width + 2 * border) / (512 * view.unit) ** 2
        count = int(number * density * area)
        # streams of their own: more severity adds flakes and moves none
        centre = places(view, f"places {layer}", count, border)
        turned = view.random(f"angles {layer}").normal(0, 0.4, count)
        speeds = view.random(f"speeds {layer}").normal(-0.5, 0.6, count)
        opacity = strength * fading * (0.1 + 0.9 * view.random(f"opacities {layer}").random(count) ** 1.3)
        opacity *= at_places(view, gust, centre)
        strongest = float(opacity.max(initial=0))
        # what follows, only for those that can be seen
        near = near_window(view, centre, border + 2 * diameter)
        centre, opacity = centre[:, near], opacity[near]
        tilt, path = angle + turned[near], 0.5 * speed * diameter * np.minimum(np.exp(speeds[near]), 2)
        reach = np.stack([np.sin(tilt), np.cos(tilt)]) * path
        thickness = diameter
        if layer >= 2:
            # a flake is a lump of crystals, not a disc: three rods with directions of their own
            lumps = view.random(f"lumps {layer}").normal(0, 0.35 * diameter, (count, 3, 2))[near]
            turn = view.random(f"turns {layer}").uniform(0, 2 * math.pi, (count, 3))[near]
            length = view.random(f"lengths {layer}").uniform(0.05, 0.5, (count, 3))[near] * diameter
            rods = np.stack([np.cos(turn) * length, np.sin(turn) * length])
            centre = (centre[:, :, None] + lumps.transpose(2, 0, 1)).reshape(2, -1)
            reach, opacity = (reach[:, :, None] + rods).reshape(2, -1), opacity.repeat(3)
            thickness = 0.45 * diameter
        # what is near is out of focus
        softness = blur * diameter if layer < 5 else max(blur, 0.3) * diameter
        drawn = draw(view, Strokes(centre, reach, opacity, strongest, thickness, max(0.4, softness)))
        if drawn is not None:
            if layer < 2:
                # what is near has few of the far flakes before it
                drawn *= np.minimum(depth + np.float32(0.4), 1)
            cover(clear, drawn)
    return veiled(image, np.full(3, brightness), clear), {
        "angle_degrees": math.degrees(angle),
        "speed": speed,
        "scale": scale,
        "density": density,
        "strength": strength,
        "largest_layer": largest,
        "softness": blur,
        "veil": mist,
        "gloom": gloom,
        "airlight": [round(float(value), 4) for value in airlight],
        "flake_brightness": brightness,
    }
