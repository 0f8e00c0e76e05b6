"""Low light: too little exposure, photon and read noise, a wrong white balance, coarse digitization."""

import cv2
import numpy as np

from restorevar.datamodules.degradations.light import FloatImage, linear_to_display
from restorevar.datamodules.degradations.view import Parameters, View

__all__ = ["exposure_stops", "low_light"]


def exposure_stops(view: View, severity: float) -> float:
    """How many times the light is halved."""
    return severity * view.random("exposure").uniform(1.0, 5.5)


def low_light(view: View, severity: float) -> tuple[FloatImage, Parameters]:
    """Darkens in linear light and takes the picture again with a noisy sensor."""
    random = view.random("low light")
    stops = exposure_stops(view, severity)
    photons = 10 ** random.uniform(2.6, 4.2)
    read_noise = random.uniform(0.5, 4.0)
    balance = np.exp(random.normal(0, 0.12, 3) * severity)
    balance = balance / balance[1]
    unevenness = severity * random.uniform(0, 0.8)
    bits = int(random.integers(9, 13))
    grain = random.uniform(0, 1.0)

    margin = 4
    light = view.linear(margin) * np.float32(2.0**-stops)
    light *= view.sample(np.exp(-unevenness * np.abs(view.coarse_noise("illumination", 2.5))), margin)[..., None]
    light *= balance.astype(np.float32)
    if severity > 0:
        # more photons for a smaller severity: none of the noise is left at 0
        scale = np.float32(photons / severity**2)
        electrons = light * scale
        normal = view.noise("photons", margin)
        # Poisson by its normal approximation with the first skewness term, plus the amplifier's noise
        shot = cv2.sqrt(electrons) * normal + (normal * normal - 1) / 6
        noise = (shot + np.float32(read_noise) * view.noise("read", margin)) / scale
        if grain > 0.3:
            # neighbouring pixels share noise after demosaicing and the camera's own smoothing
            noise = cv2.GaussianBlur(noise, (2 * margin + 1, 2 * margin + 1), grain) * np.float32(1 + grain)
        light = np.maximum(light + noise, 0)
        step = np.float32(severity / 2**bits)
        light = np.round(light / step) * step
    light = np.ascontiguousarray(light[margin:-margin, margin:-margin])
    return linear_to_display(light), {
        "stops": stops,
        "photons_at_white": photons,
        "read_noise_electrons": read_noise,
        "white_balance": [round(float(value), 4) for value in balance],
        "unevenness": unevenness,
        "bits": bits,
        "grain": grain,
    }
