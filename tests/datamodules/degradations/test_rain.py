import math

import numpy as np

from restorevar.datamodules.degradations import degrade

DARK = np.full((240, 320, 3), 40, np.uint8)


def test_streaks_run_along_their_angle():
    for seed in range(8):
        image, parameters = degrade(DARK, "rain", 0.5, seed)
        grey = image.astype(float).mean(axis=2)
        down, across = np.gradient(grey)
        # the smallest eigenvector of the structure tensor points along the streaks
        tensor = np.array([[np.mean(across**2), np.mean(across * down)], [np.mean(across * down), np.mean(down**2)]])
        along = np.linalg.eigh(tensor)[1][:, 0]
        found = math.degrees(math.atan2(along[0] * np.sign(along[1]), abs(along[1])))
        assert abs(found - parameters["angle_degrees"]) < 20


def test_drizzle_to_downpour():
    shifts = [np.mean([degrade(DARK, "rain", s, seed)[0].mean() for seed in range(8)]) for s in (0.05, 0.3, 1.0)]
    assert 40 < shifts[0] < 50
    assert shifts[1] < 110
    assert shifts[2] > 105


def test_a_large_photo_looks_like_a_small_one():
    # lengths and widths scale with the photo: the covered share stays
    large = np.full((720, 960, 3), 40, np.uint8)
    for seed in range(3):
        small_mean, large_mean = (degrade(photo, "rain", 0.6, seed)[0].mean() for photo in (DARK, large))
        assert abs(small_mean - large_mean) < 0.3 * (small_mean - 40) + 3
