import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from restorevar.restoration.restorer import Restorer
from restorevar.restoration.tiling import Axis, GlobalChange, level, reflect
from tests.restoration.stubs import StubModel, minus_mean, random_gain


def ramp(height, width, low=0.15, high=0.65, dtype=np.uint8):
    """A smooth ramp along both sides, with a slow wave."""
    y, x = np.mgrid[0:height, 0:width]
    ramp = 0.5 * x / max(width - 1, 1) + 0.4 * y / max(height - 1, 1) + 0.05 * (1 + np.sin(x / width * 9))
    values = low + (high - low) * np.repeat(ramp[..., None], 3, 2)
    return (values * np.iinfo(dtype).max).round().astype(dtype) if np.dtype(dtype).kind == "u" else values.astype(dtype)


def photo_like(height, width, seed=0, dtype=np.uint8):
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, (height, width, 3), dtype)


@given(st.integers(1, 40), st.integers(-200, 200))
def test_reflection_is_that_of_numpy_pad(length, start):
    index = np.arange(start, start + 50)
    low, high = max(-start, 0), max(start + 50 - length, 0)
    expected = np.pad(np.arange(length), (low, high), mode="reflect")[start + low : start + low + 50]
    np.testing.assert_array_equal(reflect(index, length), expected)


@given(st.integers(1, 2000), st.integers(8, 64), st.data())
def test_tiles_cover_a_side_and_their_weights_add_up_to_one(length, tile, data):
    overlap = data.draw(st.integers(0, tile // 2))
    axis = Axis(length, tile, overlap)
    total = np.zeros(length)
    for number in range(len(axis.starts)):
        first, end = axis.span(number)
        weights = axis.weights(number)
        assert weights.shape == (end - first,)
        assert weights.min() >= 0
        total[first:end] += weights
        if length >= tile:
            np.testing.assert_array_equal(axis.pixels(number), np.arange(first, end))
    np.testing.assert_allclose(total, 1, atol=1e-6)
    steps = np.diff(axis.starts)
    assert (steps <= tile - overlap).all()
    assert len(axis.starts) == max(1, -(-(length - overlap) // (tile - overlap)))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 90),
    st.integers(1, 130),
    st.sampled_from([np.uint8, np.uint16, np.float32]),
    st.integers(0, 16),
    st.sampled_from(["on", "off"]),
)
@example(1, 1, np.uint8, 4, "on")
@example(1, 700, np.uint8, 4, "on")
@example(500, 3, np.uint16, 0, "on")
def test_an_identity_comes_back_exactly(height, width, dtype, overlap, correction):
    pixels = photo_like(height, width, dtype=np.uint16 if dtype == np.uint16 else np.uint8)
    if dtype == np.float32:
        pixels = pixels.astype(np.float32) / 255
    model = StubModel(image_size=(32, 40))
    restored = Restorer(model, overlap=overlap, global_correction=correction).restore(pixels)
    assert restored.dtype == dtype
    if dtype == np.float32:
        np.testing.assert_allclose(restored, pixels, atol=1e-5)
    else:
        np.testing.assert_array_equal(restored, pixels)


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 160), st.integers(65, 200), st.booleans(), st.integers(0, 99))
@example(256, 256, True, 0)
def test_tiles_that_come_back_at_different_levels_leave_no_step(height, width, gain, seed):
    pixels = ramp(height, width, dtype=np.float32)
    function = random_gain(seed) if gain else minus_mean
    restored = Restorer(StubModel(function), global_correction="on").restore(pixels)
    own_slope = max(np.abs(np.diff(pixels, axis=axis)).max() if pixels.shape[axis] > 1 else 0 for axis in (0, 1))
    for axis in (0, 1):
        if pixels.shape[axis] > 1:
            assert np.abs(np.diff(restored, axis=axis)).max() <= 1.4 * own_slope + 1 / 255


@pytest.mark.parametrize("function", [minus_mean, random_gain()])
def test_steps_on_a_smooth_ramp_stay_below_two_of_255(function):
    pixels = ramp(700, 900)
    for overlap, correction, visible in ((16, "on", False), (4, "on", False), (4, "off", True)):
        model = StubModel(function, image_size=(128, 128))
        restored = Restorer(model, overlap=overlap, global_correction=correction).restore(pixels).astype(int)
        steps = max(np.abs(np.diff(restored, axis=axis)).max() for axis in (0, 1))
        assert (steps > 2) == visible


def test_the_corrected_photo_has_the_levels_of_the_restored_whole():
    pixels = ramp(300, 400, dtype=np.float32)
    restored = Restorer(StubModel(minus_mean), global_correction="on").restore(pixels)
    np.testing.assert_allclose(restored, pixels - pixels.mean() + 0.5, atol=0.01)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize(
    ("of_shrunk", "of_tiles", "expected"),
    [(0.02, 0.04, (0.03, 0.015, 0.0)), (0.03, 0.01, (0.02, 0.01, 0.0)), (0.3, 0.1, (0.29, 0.14, 0.0))],
)
def test_the_mean_is_halfway_between_what_tiles_and_shrunk_photo_say(dtype, of_shrunk, of_tiles, expected):
    shifts = iter([of_shrunk])  # the shrunk photo comes first

    def brighten(tiles):
        return tiles + torch.tensor([1.0, 0.5, 0.0]).view(3, 1, 1) * next(shifts, of_tiles)

    unit = 1.0 if dtype == np.float32 else np.iinfo(dtype).max
    pixels = ((np.random.default_rng(0).random((150, 210, 3)) * 0.3 + 0.2) * unit).astype(dtype)
    restored = Restorer(StubModel(brighten)).restore(pixels)
    added = (restored.astype(np.float64) - pixels).mean((0, 1)) / unit
    np.testing.assert_allclose(added, expected, atol=2e-3 + (dtype == np.uint8) / 255)


def test_tiles_are_levelled_unless_told_otherwise():
    pixels = ramp(200, 200)
    on, off, default = (
        Restorer(StubModel(minus_mean), **given).restore(pixels)
        for given in ({"global_correction": "on"}, {"global_correction": "off"}, {})
    )
    np.testing.assert_array_equal(default, on)
    assert (off != on).any()


def test_the_whole_photo_is_shown_to_the_model_unsquashed():
    seen = []

    def remember(tiles):
        seen.append(tiles[0].permute(1, 2, 0).numpy())
        return tiles

    y, x = np.mgrid[0:300, 0:600]
    disc = ((y - 150) ** 2 + (x - 300) ** 2 < 100**2).astype(np.float32)
    Restorer(StubModel(remember)).restore(np.repeat(disc[..., None], 3, 2))
    inside = seen[0][16:48, :, 0] > 0.5  # the photo is 32 x 64 in the middle of 64 x 64
    assert abs(np.ptp(np.nonzero(inside)[0]) - np.ptp(np.nonzero(inside)[1])) <= 1


def test_changes_are_averaged_over_fractional_rectangles():
    change = GlobalChange(np.arange(12, dtype=np.float32).reshape(3, 4, 1).repeat(3, 2) / 12, (30, 40))
    cells = change.cells((0, 30), (0, 40), (3, 4))
    np.testing.assert_allclose(cells[0], np.arange(12).reshape(3, 4) / 12, atol=1e-6)
    np.testing.assert_allclose(change.cells((5, 25), (0, 40), (1, 1)), 5.5 / 12, atol=1e-6)
    np.testing.assert_allclose(change.cells((0, 10), (5, 15), (1, 1)), 0.5 / 12, atol=1e-6)


@pytest.mark.parametrize("scale", [True, False])
def test_levelling_meets_the_wanted_change(scale):
    torch.manual_seed(0)
    given, wanted = torch.rand(2, 3, 64, 64) * 0.3, torch.rand(2, 3, 1, 1).expand(2, 3, 8, 8) * 0.3
    levelled = level(given * 1.7, given, wanted, scale)
    contrast = levelled.std((2, 3)) / (given * 1.7).std((2, 3))
    assert ((contrast - 1).abs() > 0.05).any() == scale
    torch.testing.assert_close(levelled.mean((2, 3)), (given + wanted[:, :, :1, :1]).mean((2, 3)))


def test_every_call_keeps_to_the_batch_size_and_progress_adds_up():
    model, shares = StubModel(), []
    Restorer(model, global_correction="off").restore(photo_like(200, 500), progress=shares.append)
    assert model.calls[0] == 1
    assert max(model.calls) <= 4
    assert sum(model.calls) == 4 * 9
    assert sum(shares) == pytest.approx(1)
