import sys

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from restorevar.errors import UserError
from restorevar.evaluation.baselines import CLASSICAL, fit_kernel, oracle_deconvolution, run_command
from restorevar.evaluation.published import PUBLISHED, PUBLISHED_DATASETS
from tests.evaluation.photos import photo


def psnr(image, clean) -> float:
    return 10 * np.log10(255**2 / np.mean((image.astype(np.float64) - clean) ** 2))


def degraded(kind: str, clean: np.ndarray) -> np.ndarray:
    """Simple models of each kind, strong enough for a classical method to help."""
    image = clean.astype(np.float64)
    generator = np.random.default_rng(0)
    if kind == "haze":
        image = image * 0.45 + 225 * 0.55
    elif kind == "low_light":
        image = 255 * (image / 255) ** 3
    elif kind == "motion_blur":
        image = cv2.GaussianBlur(image, (0, 0), 2.5)  # the methods are tuned to about 2
    else:
        image[generator.random(image.shape[:2]) < 0.03] = 255
    return image.round().astype(np.uint8)


@pytest.mark.parametrize("method", CLASSICAL, ids=lambda method: method.name)
def test_each_method_keeps_the_shape_and_helps_on_the_kind_it_is_for(method):
    clean = photo("coffee.png", 160, 201)
    for kind in method.kinds:
        given = degraded(kind, clean)
        restored = method(given)
        assert restored.shape == given.shape
        assert restored.dtype == np.uint8
        # the tuned bilateral filter is careful: it must not do harm, the others must do good
        assert psnr(restored, clean) > psnr(given, clean) + (-0.1 if method.name == "bilateral" else 0.2)


@settings(max_examples=12, deadline=None)
@given(st.integers(12, 40), st.integers(12, 40), st.integers(0, 255))
def test_flat_and_small_photos_do_not_break_any_method(height, width, value):
    flat = np.full((height, width, 3), value, np.uint8)
    for method in CLASSICAL:
        assert method(flat).shape == flat.shape
    assert np.abs(oracle_deconvolution(flat, flat).astype(int) - value).max() <= 1


def test_every_kind_of_the_paper_has_a_blind_method():
    assert {kind for method in CLASSICAL for kind in method.kinds} == set(PUBLISHED_DATASETS.values())
    assert all(method.role == "blind" for method in CLASSICAL)


def test_the_fitted_kernel_is_the_true_one_and_the_oracle_uses_it():
    clean = photo("chelsea.png", 240, 260)
    kernel = np.zeros((15, 15))
    cv2.line(kernel, (2, 4), (12, 9), 1.0)
    kernel /= kernel.sum()
    blurred = cv2.filter2D(clean.astype(np.float64), -1, kernel[::-1, ::-1], borderType=cv2.BORDER_REFLECT)
    blurred = blurred.round().astype(np.uint8)
    fitted = fit_kernel(blurred, clean)
    assert fitted.sum() == pytest.approx(1)
    center = fitted.shape[0] // 2
    window = fitted[center - 7 : center + 8, center - 7 : center + 8]
    assert (window * kernel).sum() / np.sqrt((fitted**2).sum() * (kernel**2).sum()) > 0.95
    assert psnr(oracle_deconvolution(blurred, clean), clean) > psnr(blurred, clean) + 2


def test_a_command_is_run_with_the_two_folders(tmp_path):
    given, output = tmp_path / "with space", tmp_path / "out"
    given.mkdir()
    output.mkdir()
    (given / "a.png").write_bytes(b"1")
    code = "import sys, shutil, pathlib; [shutil.copy(f, sys.argv[2]) for f in pathlib.Path(sys.argv[1]).iterdir()]"
    run_command(f"{sys.executable} -c '{code}' {{input}} {{output}}", given, output)
    assert (output / "a.png").read_bytes() == b"1"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("rival --in somewhere", "expected one with {input} and {output}"),
        ("no-such-program-here {input} {output}", "cannot be started: no-such-program-here"),
        (
            f"{sys.executable} -c 'raise SystemExit(\"out of luck\")' {{input}} {{output}}",
            "exit code 1: out of luck",
        ),
    ],
)
def test_a_command_that_fails_is_an_error_that_says_so(command, words, tmp_path):
    with pytest.raises(UserError) as error:
        run_command(command, tmp_path, tmp_path)
    assert words in str(error.value)


def test_published_rows_are_complete_and_name_their_source():
    assert all(set(row.scores) == set(PUBLISHED_DATASETS) and "2505.18047" in row.source for row in PUBLISHED)
    ours = next(row for row in PUBLISHED if row.method.startswith("RestoreVAR"))
    assert ours.scores["GoPro"] == (23.96, 0.737, 0.167)
