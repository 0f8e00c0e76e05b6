from restorevar.datamodules.degradations import degrade

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
