"""Low light: too little exposure, photon and read noise, a wrong white balance, coarse digitization."""

import cv2
import numpy as np

from restorevar.datamodules.degradations.light import FloatImage, linear_to_display, scaled
from restorevar.datamodules.degradations.view import Parameters, View

__all__ = ["exposure_stops", "low_light"]

_MARGIN = 4  # pixels that the camera's noise smoothing reaches


def exposure_stops(view: View, severity: float) -> float:
    """How many times the light is halved."""
    return severity * view.random("exposure").uniform(2.0, 7.0)


def low_light(view: View, severity: float) -> tuple[FloatImage, Parameters]:
    """Darkens in linear light and takes the picture again with a noisy sensor.

    Exposure, uneven lighting and a contrast curve (dark parts lose more than lamps and sky) set the light; Poisson and
    read noise, white balance and the steps of the raw digitization are the camera's.
    """
    random = view.random("low light")
    stops = exposure_stops(view, severity)
    contrast = 1 + severity * random.uniform(0, 0.7)
    photons = 10 ** random.uniform(2.5, 4.3)
    read_noise = random.uniform(0.5, 4.0)
    balance = np.exp(random.normal(0, 0.14, 3) * severity)
    balance = (balance / balance[1]).astype(np.float32)
    unevenness = severity * random.uniform(0, 0.9)
    bits = int(random.integers(9, 13))
    grain = random.uniform(0, 1.2)

    light = view.linear(_MARGIN)
    if contrast > 1:
        light = np.power(light, np.float32(contrast))
    # the contrast curve takes part of the stops: a bright grey (0.35) loses as many as wanted
    lost = stops - min((contrast - 1) * 1.5, 0.5 * stops)
    field = cv2.exp(view.coarse_noise("illumination", 2.5) * np.float32(unevenness * 0.7))
    light = scaled(light, view.sample(np.minimum(field, 1.6) * np.float32(2.0**-lost), _MARGIN))
    light.reshape(len(light), -1)[:] *= np.tile(balance, light.shape[1])
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
        "bits": bits,
        "grain": grain,
    }
