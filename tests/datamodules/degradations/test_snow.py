import importlib

import numpy as np

from restorevar.datamodules.degradations import degrade

snow = importlib.import_module("restorevar.datamodules.degradations.snow")  # the package has a function of this name

DARK = np.full((240, 320, 3), 40, np.uint8)


def test_more_severity_adds_flakes_and_moves_none():
    for seed in range(6):
        little, much = (degrade(DARK, "snow", severity, seed)[0].mean(axis=2) for severity in (0.3, 0.9))
        flakes = little > np.median(little) + 12
        assert flakes.any()
        assert (much[flakes] >= little[flakes] - 15).mean() > 0.99


def test_flakes_keep_their_shape_as_more_of_them_fall(monkeypatch):
    drawn = []
    monkeypatch.setattr(snow, "draw", lambda view, strokes: drawn.append(strokes))
    for severity in (0.3, 0.9):
        degrade(DARK, "snow", severity, 3)
    few, many = drawn[: len(drawn) // 2], drawn[len(drawn) // 2 :]
    assert sum(len(strokes.opacity) for strokes in few) > 100
    for a, b in zip(few, many, strict=True):
        np.testing.assert_array_equal(a.centre, b.centre[:, : len(a.opacity)])
        np.testing.assert_array_equal(a.reach, b.reach[:, : len(a.opacity)])


def test_fine_to_large_flakes():
    largest = {degrade(DARK, "snow", 0.8, seed)[1]["largest_layer"] for seed in range(40)}
    assert min(largest) <= 3
    assert max(largest) >= 8


def test_snow_is_light(photos):
    for seed, photo in enumerate(photos):
        assert degrade(photo, "snow", 0.8, seed)[0].mean() > photo.mean()
