import numpy as np
import pytest

from restorevar.datamodules.degradations import degrade
from restorevar.datamodules.degradations.light import uint8_to_linear
from restorevar.datamodules.degradations.motion_blur import shake_trajectory


@pytest.mark.parametrize("straightness", [0.0, 0.5, 1.0])
def test_trajectories_are_centred_and_scaled(straightness):
    for seed in range(5):
        path = shake_trajectory(np.random.default_rng(seed), straightness)
        assert np.abs(path.mean(axis=0)).max() < 1e-9
        assert np.hypot(*path.T).max() == pytest.approx(1)
    if straightness == 1:
        assert np.abs(np.linalg.svd(path)[1][1]) < 1e-9


def test_blur_keeps_the_light():
    # no highlights: nothing is brighter than it was stored
    photo = np.random.default_rng(0).integers(0, 200, (160, 200, 3), dtype=np.uint8)
    for seed in range(6):
        blurred, _ = degrade(photo, "motion_blur", 1.0, seed)
        inner = np.s_[40:-40, 40:-40]
        assert uint8_to_linear(blurred)[inner].mean() == pytest.approx(uint8_to_linear(photo)[inner].mean(), rel=0.04)
        assert blurred.std() < 0.6 * photo.std()


def test_a_lamp_becomes_its_path():
    photo = np.zeros((200, 200, 3), np.uint8)
    photo[99:102, 99:102] = 255
    for seed in range(6):
        blurred, parameters = degrade(photo, "motion_blur", 0.8, seed)
        rows, columns = np.nonzero(blurred.max(axis=2) > 24)
        reach = np.hypot(rows - 100, columns - 100).max()
        assert reach <= 0.5 * parameters["extent_pixels"] + 10
        assert len(rows) > 12


def test_lamps_are_brighter_than_stored():
    photo = np.zeros((200, 200, 3), np.uint8)
    photo[97:104, 97:104] = 255
    gains = {True: [], False: []}
    for seed in range(14):
        blurred, parameters = degrade(photo, "motion_blur", 0.8, seed)
        gain = uint8_to_linear(blurred).sum() / uint8_to_linear(photo).sum()
        gains[parameters["highlights"] > 3].append(gain)
    assert np.mean(gains[True]) > 1.5 * np.mean(gains[False])


def test_turning_blurs_the_corners_more():
    photo = np.random.default_rng(0).integers(0, 255, (300, 300, 3), dtype=np.uint8)
    turning = [
        seed for seed in range(60) if abs(degrade(photo[:8, :8], "motion_blur", 1.0, seed)[1]["turn_degrees"]) > 1
    ]
    assert turning
    seed = turning[0]
    whole, _ = degrade(photo, "motion_blur", 0.15, seed)
    spread = [
        whole[np.s_[row : row + 100, column : column + 100]].std() for row in (0, 100, 200) for column in (0, 100, 200)
    ]
    assert max(spread) > 1.05 * min(spread)
