"""Two or three degradations at once, in the order in which they happen."""

from restorevar.datamodules.degradations.haze import haze
from restorevar.datamodules.degradations.light import FloatImage
from restorevar.datamodules.degradations.low_light import exposure_stops, low_light
from restorevar.datamodules.degradations.motion_blur import motion_blur
from restorevar.datamodules.degradations.rain import rain
from restorevar.datamodules.degradations.snow import snow
from restorevar.datamodules.degradations.view import DegradationFunction, Parameters, View

__all__ = ["mixed"]


def mixed(view: View, severity: float) -> tuple[FloatImage, Parameters]:
    """Blur, then light, then haze, then rain or snow: two or three of them, each milder than alone."""
    random = view.random("mixed")
    falling = rain if random.random() < 0.5 else snow
    order: list[DegradationFunction] = [motion_blur, low_light, haze, falling]
    count = 2 if random.random() < 0.6 else 3
    chosen = sorted(int(index) for index in random.choice(len(order), count, replace=False))
    shares = random.uniform(0.4, 0.85, len(order)) * (1, 1, 1, 0.6)
    used: dict[str, Parameters] = {}
    for index in chosen[:-1]:
        share = severity * shares[index]
        darkening = 2.0 ** -exposure_stops(view, share) if order[index] is low_light else 1.0
        view = view.then(order[index], share, used, darkening)
    last = order[chosen[-1]]
    image, used[last.__name__] = last(view, severity * shares[chosen[-1]])
    return image, {"steps": used}
