"""Low light: too little exposure, photon and read noise, a wrong white balance, coarse digitization."""

import cv2
import numpy as np

from restorevar.datamodules.degradations.light import (
    FloatImage,
    bright_excess,
    darkest_channel,
    display_to_linear,
    linear_to_display,
    scaled,
)
from restorevar.datamodules.degradations.view import Parameters, View

__all__ = ["exposure_stops", "low_light"]

_MARGIN = 4  # pixels that the camera's noise smoothing reaches


def exposure_stops(view: View, severity: float) -> float:
    """How many times the light is halved."""
    return severity * view.random("exposure").uniform(2.0, 7.0)


def _lamps(view: View, own: FloatImage, brightness: float) -> FloatImage:
    """(h, w, 3) light of what shines by itself and does not darken: small parts far brighter than all around them."""
    coarse = display_to_linear(view.thumbnail)
    around = np.asarray(cv2.blur(darkest_channel(coarse), (15, 15)), np.float32)
    limit = np.maximum(0.5, 3 * around)
    share = np.clip((darkest_channel(own) - view.sample(limit, _MARGIN)) * 4, 0, 1)
    light = scaled(own, share * share * np.float32(brightness))
    # their glow in mist and lens
    share = np.clip((darkest_channel(coarse) - limit) * 4, 0, 1)
    glow = np.asarray(cv2.GaussianBlur(scaled(coarse, share), (0, 0), 2.5), np.float32)
    light += view.sample(glow, _MARGIN) * np.float32(0.15 * brightness)
    return light


def _regained(view: View, own: FloatImage, amount: float) -> FloatImage:
    """(h, w) factors of what the photo stores as white: a shorter exposure shows what was in it, brightest inside."""
    inside = np.asarray(cv2.GaussianBlur(bright_excess(display_to_linear(view.thumbnail)), (0, 0), 3), np.float32)
    inside *= cv2.exp(view.coarse_noise("clouds", 3) * np.float32(0.4))
    return 1 + np.float32(amount) * view.sample(inside, _MARGIN) * bright_excess(own)


def low_light(view: View, severity: float) -> tuple[FloatImage, Parameters]:
    """Darkens in linear light and takes the picture again with a noisy sensor.

    Lamps and reflections keep their light and glow. Exposure, uneven lighting and a contrast curve (dark parts lose
    more than sky) set the rest; Poisson and read noise, white balance and the steps of the raw digitization are the
    camera's.
    """
    random = view.random("low light")
    stops = exposure_stops(view, severity)
    contrast = 1 + severity * random.uniform(0.1, 1.1)
    photons = 10 ** random.uniform(2.6, 3.8)
    read_noise = random.uniform(0.5, 4.0)
    # lamps differ along the colours of hot bodies, hardly towards green
    warmth, green = random.normal(0.03, 0.1) * severity, random.normal(0, 0.02) * severity
    balance = np.exp(np.array([warmth, green, -warmth])).astype(np.float32)
    lamps = severity * random.uniform(0.2, 1.0)
    unevenness = severity * random.uniform(0, 0.9)
    bits = int(random.integers(9, 13))
    grain = random.uniform(0, 1.2)
    highlights = severity * 8 * random.random() ** 2

    own = view.linear(_MARGIN)  # once: the steps of a composition run anew each time they are asked
    light = own
    if contrast > 1:
        # of luminance: dark colours do not become gaudy
        light = scaled(light, np.power(cv2.cvtColor(light, cv2.COLOR_RGB2GRAY), np.float32(contrast - 1)))
    if highlights:
        light = scaled(light, _regained(view, own, highlights))
    # the contrast curve takes part of the stops: a bright grey (0.35) loses as many as wanted
    lost = stops - min((contrast - 1) * 1.5, 0.5 * stops)
    field = cv2.exp(view.coarse_noise("illumination", 2.5) * np.float32(unevenness * 0.7))
    light = scaled(light, view.sample(np.minimum(field, 1.6) * np.float32(2.0**-lost), _MARGIN))
    light.reshape(len(light), -1)[:] *= np.tile(balance, light.shape[1])
    if lamps:
        light += _lamps(view, own, lamps)
    if severity > 1e-3:
        # more photons for a smaller severity: none of the noise is left at 0
        scale = np.float32(photons / severity**2)
        electrons = light * scale
        normal = view.noise("electrons", _MARGIN)
        # Poisson by its normal approximation with the first skewness term, plus the amplifier's noise
        electrons += np.float32(read_noise**2)
        noise = np.asarray(cv2.sqrt(electrons), np.float32)
        noise += normal * np.float32(1 / 6)
        noise *= normal
        noise -= np.float32(1 / 6)
        if grain > 0.3:
            # neighbouring pixels share noise after demosaicing and the camera's own smoothing
            size = 2 * _MARGIN + 1
            noise = np.asarray(cv2.GaussianBlur(noise, (size, size), grain), np.float32) * np.float32(1 + grain)
        # raw values are whole steps; below black there is nothing
        step = np.float32(severity / 2**bits)
        noise *= 1 / scale
        light += noise
        np.maximum(light, 0, out=light)
        light *= 1 / step
        np.rint(light, out=light)
        light *= step
    return linear_to_display(light[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN]), {
        "stops": stops,
        "contrast": contrast,
        "photons_at_white": photons,
        "read_noise_electrons": read_noise,
        "white_balance": [round(float(value), 4) for value in balance],
        "unevenness": unevenness,
        "lamps": lamps,
        "bits": bits,
        "grain": grain,
        "highlights": highlights,
    }
