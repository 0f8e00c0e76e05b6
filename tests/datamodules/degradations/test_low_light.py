import numpy as np

from restorevar.datamodules.degradations import degrade
from restorevar.datamodules.degradations.light import uint8_to_linear
from restorevar.datamodules.degradations.view import View


def test_light_is_taken_away(photos):
    for seed, photo in enumerate(photos):
        image, parameters = degrade(photo, "low_light", 0.8, seed)
        ratio = uint8_to_linear(image).mean() / uint8_to_linear(photo).mean()
        assert ratio < 1
        assert parameters["stops"] >= 0.8 * 2
    darkest = min(degrade(photos[0], "low_light", 1.0, seed)[0].mean() for seed in range(20))
    assert darkest < 20


def test_noise_grows_with_the_light_as_photons_do():
    photo = np.full((128, 128, 3), 0, np.uint8)
    photo[:, :64], photo[:, 64:] = 120, 250
    ratios = []
    for seed in range(20):
        image, parameters = degrade(photo, "low_light", 0.6, seed)
        if parameters["photons_at_white"] > 3000 or parameters["unevenness"] > 0.3:
            continue
        light = uint8_to_linear(image)
        # differences of neighbours: the uneven lighting is smooth
        noise = [np.diff(part[..., 1], axis=0).var() for part in (light[:, :60], light[:, 68:])]
        ratios.append(noise[1] / noise[0])
    assert len(ratios) > 3
    assert np.median(ratios) > 1.3


def test_noise_adds_no_light(monkeypatch):
    # where it is not so dark that what is below black is cut off
    photo = np.full((256, 256, 3), 200, np.uint8)
    seeds = range(6)
    noisy = [degrade(photo, "low_light", 0.5, seed)[0] for seed in seeds]
    monkeypatch.setattr(View, "noise", lambda view, name, margin=0: 0 * view.linear(margin))
    for seed, image in zip(seeds, noisy, strict=True):
        still = degrade(photo, "low_light", 0.5, seed)[0]
        before, after = (uint8_to_linear(part).reshape(4, 64, 4, 64, 3).mean(axis=(1, 3)) for part in (still, image))
        np.testing.assert_allclose(after, before, rtol=0.02, atol=2e-4)
        assert image.std() > still.std()


def test_what_was_white_is_not_one_flat_value():
    # a photo's blown sky held more light than it stores; evenly lit cases, and not too bright to see
    photo = np.full((240, 320, 3), 60, np.uint8)
    photo[:, 160:] = 255
    spreads = []
    for seed in range(150):
        if degrade(photo[:8, :8], "low_light", 0.9, seed)[1]["unevenness"] > 0.15:
            continue
        light = uint8_to_linear(degrade(photo, "low_light", 0.9, seed)[0])[:, 170:, 1]
        parts = light.reshape(8, 30, 5, 30).mean(axis=(1, 3))
        if parts.max() < 0.95:
            spreads.append(parts.max() / parts.min())
    assert len(spreads) > 10
    assert 1.5 < np.median(spreads) < 4


def test_dark_photos_have_few_levels(photos):
    image, _ = degrade(photos[2], "low_light", 1.0, 1)
    assert len(np.unique(image)) < len(np.unique(photos[2]))
