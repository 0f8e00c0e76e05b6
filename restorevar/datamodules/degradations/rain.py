"""Rain: streaks at several distances, and the veil that heavy rain adds."""

import math

import cv2
import numpy as np

from restorevar.datamodules.degradations.depth import relative_depth
from restorevar.datamodules.degradations.haze import airlight_colour, overcast, veil
from restorevar.datamodules.degradations.light import FloatImage, added
from restorevar.datamodules.degradations.particles import Strokes, at_places, cover, draw, gusts, near_window, places
from restorevar.datamodules.degradations.view import Parameters, View

__all__ = ["rain"]


def rain(view: View, severity: float) -> tuple[FloatImage, Parameters]:
    """Streak layers from far (thin, short, many) to near (thick, long, few), over a veil and under a grey sky.

    Drops show the light of the whole scene: in drizzle the streaks are hardly brighter than the photo, and dark before
    a bright sky. With growing severity they become the dense, white, long streaks of Rain100H.
    """
    random = view.random("rain")
    angle = math.radians(random.normal(0, 15))
    layers = int(random.integers(2, 5))
    crossing = math.radians(random.uniform(0, 14)) if random.random() < 0.3 else 0.02
    strength = min(1.0, random.uniform(0.2, 0.5) * severity**0.5 + random.uniform(0.6, 1.8) * severity**1.2)
    length = random.uniform(14, 60)
    width = random.uniform(0.6, 1.3) * (length / 25) ** 0.5 * (1 + 0.4 * severity)
    # streaks in 512 x 512 pixels: as many as cover this share, long and thick ones are fewer
    coverage = severity**0.6 * random.uniform(0.25, 1.1)
    density = min(coverage * 512**2 / (0.6 * length * max(width, 1)), 7000)
    # fine rain comes with mist, the heaviest sometimes
    mist = min(severity, 0.25) * (1.1 - severity) * random.uniform(0, 1)
    mist += severity * random.uniform(0, 0.8) * (random.random() < 0.2)
    airlight = airlight_colour(view, random)
    # the drops' brightness: the scene's average and more, up to white
    heaviness = min(1.0, 1.8 * severity) * min(1.0, random.uniform(0.6, 1.6))
    scene = float(view.thumbnail.mean())
    glow = min(1.0, scene + random.uniform(0.15, 0.35))
    brightness = glow + (random.uniform(0.85, 1.0) - glow) * heaviness
    brightness *= view.illumination ** (1 / 2.2)
    # a drop hides what is behind it; in Rain100H its light is only added
    hiding = 1 - heaviness * min(1.0, random.uniform(0, 1.3))

    # outdoors: no sun, distances vanish, far streaks too fine to be told apart, the nearest out of focus
    natural = min(1.0, 8 * severity) * (1 - heaviness)
    gloom = natural * random.uniform(0.2, 1.0)
    mist += natural * random.uniform(0.05, 0.5)
    gust = gusts(view, random.uniform(0.1, 0.6))

    image = view.display()
    depth = relative_depth(view)
    if gloom:
        image = overcast(view, image, gloom)
    if mist:
        image = veil(view, image, depth, mist, airlight)
    clear = np.ones(image.shape[:2], np.float32)
    height, columns = view.size
    distances = [(0.5 + 1.0 * layer / max(layers - 1, 1), 1.0) for layer in range(layers)]
    if natural > 0.05:
        distances = [(near, 1 - 0.5 * natural) for near, _ in distances]
        distances = [(0.22, 0.7 * natural), *distances, (3.0, 0.3 * natural)]
    for nearness, share in distances:
        stream = view.random(f"streaks {nearness:.2f}")
        reach = 0.5 * length * nearness * view.unit
        border = 2 * reach + 4
        area = (height + 2 * border) * (columns + 2 * border) / (512 * view.unit) ** 2
        count = int(min(density / layers / nearness**1.5, 1400 if nearness < 0.3 else math.inf) * area)
        bend, waver = stream.normal(0, crossing), stream.normal(0, stream.uniform(0.015, 0.09), count)
        # streams of their own: more severity adds streaks and moves none
        centre = places(view, f"places {nearness:.2f}", count, border)
        opacity = 0.15 + 0.85 * view.random(f"opacities {nearness:.2f}").random(count) ** (1 + 0.8 * natural)
        opacity *= strength * share * at_places(view, gust, centre)
        thickness = max(width * nearness * view.unit, 0.6)
        softness = max(0.25 if nearness < 1 else 0.35, 0.25 * nearness) * thickness
        spread = view.random(f"lengths {nearness:.2f}").normal(0, 0.5, count)
        # what follows, only for those that can be seen
        near = near_window(view, centre, border + 3 * thickness + 1)
        size = reach * np.minimum(0.4 * np.exp(spread[near]), 1.2)
        tilt = angle + bend + waver[near]
        taper = 0.8 * reach * math.sin(angle), 0.8 * reach * math.cos(angle)
        strongest = float(opacity.max(initial=0))
        direction = np.stack([np.sin(tilt), np.cos(tilt)])
        drawn = draw(
            view, Strokes(centre[:, near], direction * size, opacity[near], strongest, thickness, softness, taper)
        )
        if drawn is not None:
            if nearness < 0.3:
                # what is near has no rain far before it
                drawn *= np.minimum(depth + np.float32(0.15), 1)
            cover(clear, drawn)
    # a drop shows much of what surrounds it
    local = cv2.blur(cv2.cvtColor(view.thumbnail, cv2.COLOR_RGB2GRAY), (15, 15)) - np.float32(scene)
    local *= np.float32(0.6 * natural * view.illumination ** (1 / 2.2))
    shown = view.sample(np.clip(local + np.float32(brightness), 0, 1))
    image = added(image, shown, 1 - clear, hiding)
    return image, {
        "angle_degrees": math.degrees(angle),
        "layers": layers,
        "density": density,
        "strength": strength,
        "length": length,
        "width": width,
        "veil": mist,
        "gloom": gloom,
        "airlight": [round(float(value), 4) for value in airlight],
        "streak_brightness": brightness,
        "hiding": hiding,
    }
