import numpy as np
import pytest
from scipy import ndimage

from restorevar.errors import UserError
from restorevar.restoration.color import fix_color


def photos(height, width, dtype):
    generator = np.random.default_rng(0)
    given = generator.random((height, width, 3)) * 0.4 + 0.3
    restored = given * 0.7 + 0.1 + generator.normal(0, 0.03, given.shape)
    limit = np.iinfo(dtype).max if np.dtype(dtype).kind == "u" else 1
    return [(photo.clip(0, 1) * limit).astype(dtype) for photo in (restored, given)]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_mean_shifts_each_channel_to_the_given_mean(dtype):
    restored, given = photos(300, 50, dtype)
    limit = np.iinfo(dtype).max if np.dtype(dtype).kind == "u" else 1
    fixed = fix_color(restored.copy(), given, "mean")
    np.testing.assert_allclose(fixed.mean((0, 1)) / limit, given.mean((0, 1)) / limit, atol=2.1e-3)


def test_wavelet_keeps_detail_and_takes_low_frequencies_back():
    restored, given = photos(600, 80, np.float32)
    fixed = fix_color(restored.copy(), given, "wavelet")

    def low(image):
        for spacing in (1, 2, 4, 8, 16):
            kernel = np.zeros(2 * spacing + 1)
            kernel[[0, -1]], kernel[spacing] = 0.25, 0.5
            for axis in (0, 1):
                image = ndimage.convolve1d(image, kernel, axis, mode="nearest")
        return image

    expected = restored - low(restored.astype(float)) + low(given.astype(float))
    np.testing.assert_allclose(fixed, expected.clip(0, 1), atol=1e-5)


def test_none_changes_nothing_and_an_unknown_name_is_refused():
    restored, given = photos(8, 8, np.uint8)
    np.testing.assert_array_equal(fix_color(restored.copy(), given, "none"), restored)
    with pytest.raises(UserError, match="wavelet"):
        fix_color(restored, given, "wavelets")
