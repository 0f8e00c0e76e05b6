import numpy as np
import pytest

from restorevar.datamodules.degradations import View, Window, degrade
from restorevar.datamodules.degradations.depth import relative_depth
from restorevar.datamodules.degradations.light import display_to_linear, linear_to_display


def view_of(photo, seed=0, depth=None):
    return View(photo, Window(0, 0, *photo.shape[:2]), seed, depth)


def plain(photo, depth, linear):
    """Parameters of a seed whose fog has no patches and uses the law on display values or on linear light."""
    for seed in range(100):
        image, parameters = degrade(photo, "haze", 0.8, seed, depth=depth)
        if not parameters["patchiness"] and parameters["linear_light"] is linear:
            return image, parameters
    raise AssertionError


@pytest.mark.parametrize("linear", [False, True])
def test_law_with_a_measured_depth(motorcycle, linear):
    photo, distance = motorcycle
    image, parameters = plain(photo, distance, linear)
    scale = np.percentile(distance[np.isfinite(distance)], 99)
    depth = np.where(np.isfinite(distance), np.minimum(distance / scale, 2), 1)
    through = np.exp(-parameters["beta"] * depth)[..., None]
    clean, light = photo.astype(np.float32) / 255, np.array(parameters["airlight"], np.float32)
    if linear:
        clean, light = display_to_linear(clean), display_to_linear(light[None, None])
    expected = clean * through + light * (1 - through)
    expected = linear_to_display(expected.astype(np.float32)) if linear else expected
    error = np.abs(image - expected * 255)
    # the percentile of the distance is taken from part of the pixels
    assert np.percentile(error, 99) < 2
    assert parameters["depth"] == "given"


def test_guessed_depth_agrees_with_the_measured_one(motorcycle):
    photo, distance = motorcycle
    known = np.isfinite(distance)
    ranks = np.argsort(np.argsort(distance[known]))
    agreement = []
    for seed in range(10):
        guessed = relative_depth(view_of(photo, seed))
        agreement.append(np.corrcoef(np.argsort(np.argsort(guessed[known])), ranks)[0, 1])
    assert np.mean(agreement) > 0.3


def test_sky_is_farthest(photos):
    # the rocket stands before a sky that fills the upper part
    rocket = photos[3]
    depth = relative_depth(view_of(rocket, 1))
    assert np.median(depth[:20]) > 1.5 * np.median(depth[-20:])


def test_depth_follows_edges():
    photo = np.full((120, 160, 3), 40, np.uint8)
    photo[:60] = (150, 190, 240)  # sky over dark ground
    depth = relative_depth(view_of(photo, 3))
    assert depth[50].mean() - depth[70].mean() > 0.5


def test_haze_brightens_dark_parts_and_lowers_contrast(photos):
    for seed, photo in enumerate(photos):
        image, _ = degrade(photo, "haze", 0.9, seed)
        assert image.std() < photo.std()
        assert np.percentile(image, 5) > np.percentile(photo, 5)


def test_fog_is_patchy_or_even_as_asked_for(photos):
    path = "restorevar.datamodules.degradations.haze."
    for seed in range(12):
        either, heterogeneous, homogeneous = (
            degrade(photos[0], kind, 0.8, seed)
            for kind in ("haze", path + "heterogeneous_haze", path + "homogeneous_haze")
        )
        assert heterogeneous[1]["patchiness"] > 0
        assert homogeneous[1]["patchiness"] == 0
        # the same fog otherwise
        assert heterogeneous[1]["beta"] == homogeneous[1]["beta"] == either[1]["beta"]
        assert (either[0] == (heterogeneous if either[1]["patchiness"] else homogeneous)[0]).all()
        assert (heterogeneous[0] != homogeneous[0]).any()


def test_depth_without_any_value_is_far(photos):
    image, _ = degrade(photos[0], "haze", 1.0, 2, depth=np.full(photos[0].shape[:2], np.nan, np.float32))
    assert np.abs(image.astype(int) - photos[0]).mean() > 5
