import numpy as np

from restorevar.datamodules.degradations import degrade

DARK = np.full((240, 320, 3), 40, np.uint8)


def test_more_severity_adds_flakes_and_moves_none():
    for seed in range(6):
        little, much = (degrade(DARK, "snow", severity, seed)[0].mean(axis=2) for severity in (0.3, 0.9))
        flakes = little > np.median(little) + 12
        assert flakes.any()
        assert (much[flakes] >= little[flakes] - 15).mean() > 0.99


def test_fine_to_large_flakes():
    largest = {degrade(DARK, "snow", 0.8, seed)[1]["largest_layer"] for seed in range(40)}
    assert min(largest) <= 3
    assert max(largest) >= 8


def test_snow_is_light(photos):
    for seed, photo in enumerate(photos):
        assert degrade(photo, "snow", 0.8, seed)[0].mean() > photo.mean()
