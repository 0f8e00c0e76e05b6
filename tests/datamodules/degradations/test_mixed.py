import pytest

from restorevar.datamodules.degradations import View, degrade
from restorevar.datamodules.degradations.haze import haze
from restorevar.datamodules.degradations.low_light import low_light
from restorevar.datamodules.degradations.motion_blur import motion_blur
from restorevar.datamodules.degradations.rain import rain
from restorevar.datamodules.degradations.snow import snow
from restorevar.datamodules.degradations.view import Window

ORDER = ["motion_blur", "low_light", "haze", "rain", "snow"]


def test_two_or_three_in_their_natural_order(photos):
    seen = set()
    for seed in range(30):
        _, parameters = degrade(photos[0], "mixed", 0.7, seed, crop=(0, 0, 8, 8))
        steps = list(parameters["steps"])
        assert len(steps) in (2, 3)
        assert steps == sorted(steps, key=ORDER.index)
        assert not {"rain", "snow"} <= set(steps)
        seen.update(steps)
    assert seen == set(ORDER)


def test_weather_is_as_dark_as_the_scene(photos):
    for seed in range(200):
        _, parameters = degrade(photos[0], "mixed", 1.0, seed, crop=(0, 0, 8, 8))
        steps = parameters["steps"]
        if set(steps) == {"low_light", "haze"} and steps["low_light"]["stops"] > 3:
            image, _ = degrade(photos[0], "mixed", 1.0, seed)
            assert image.mean() < 0.8 * photos[0].mean()
            return
    raise AssertionError("no seed combines darkness and haze")


@pytest.mark.parametrize("function", [motion_blur, low_light, haze, rain, snow])
def test_a_step_asks_the_one_before_it_once(photos, function):
    runs = []

    def counted(view, severity):
        runs.append(view.window)
        return view.display(), {}

    height, width = photos[0].shape[:2]
    for seed in range(5):
        view = View(photos[0], Window(0, 0, height, width), seed).then(counted, 0.5, {})
        function(view, 0.8)
        assert len(runs) == seed + 1
