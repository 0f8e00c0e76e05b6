import numpy as np
import pytest

from restorevar.datamodules.degradations import View, Window
from restorevar.datamodules.degradations.light import display_to_linear, linear_to_display, to_uint8, uint8_to_display

PHOTO = np.random.default_rng(0).integers(0, 256, (150, 230, 3), dtype=np.uint8)


def view(top=0, left=0, height=150, width=230, seed=0):
    return View(PHOTO, Window(top, left, height, width), seed)


def test_light_there_and_back():
    levels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    display = uint8_to_display(levels)
    assert (to_uint8(linear_to_display(display_to_linear(display))) == levels).all()
    assert display_to_linear(np.full((1, 1, 3), 0.5, np.float32))[0, 0, 0] == pytest.approx(0.2140, abs=1e-4)


def test_pixels_beyond_the_border_are_mirrored():
    expected = np.pad(PHOTO, ((9, 9), (9, 9), (0, 0)), "reflect")
    assert (to_uint8(view().display(9)) == expected).all()
    corner = view(0, 200, 30, 30).display(9)
    assert (to_uint8(corner) == expected[:48, 200:248]).all()


def test_noise_is_normal_and_of_the_whole_photo():
    noise = view().noise("a")
    assert noise.shape == (150, 230, 3)
    assert abs(noise.mean()) < 0.01
    assert noise.std() == pytest.approx(1, abs=0.01)
    assert abs(np.corrcoef(noise[:, 1:].ravel(), noise[:, :-1].ravel())[0, 1]) < 0.01
    assert (view(33, 44, 55, 66).noise("a", 7) == view(26, 37, 69, 80).noise("a")).all()
    assert abs(np.corrcoef(noise.ravel(), view().noise("b").ravel())[0, 1]) < 0.01
    assert abs(np.corrcoef(noise.ravel(), view(seed=1).noise("a").ravel())[0, 1]) < 0.01


def test_coarse_fields_line_up():
    whole = view()
    rows, columns = whole.coarse_size
    slope = np.add.outer(np.arange(rows), np.arange(columns)).astype(np.float32)
    field = whole.sample(slope)
    assert field.shape == (150, 230)
    inner = field[10:-10, 10:-10]
    assert np.diff(inner, axis=0) == pytest.approx(1 / whole.step, abs=1e-4)
    assert view(31, 57, 40, 50).sample(slope) == pytest.approx(field[31:71, 57:107], abs=1e-5)


def test_streams_do_not_depend_on_the_window():
    assert view().random("x").random() == view(5, 5, 9, 9).random("x").random()
    assert view().random("x").random() != view().random("y").random()
