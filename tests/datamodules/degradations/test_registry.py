import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from restorevar.datamodules.degradations import KINDS, degrade, get_degradation
from restorevar.datamodules.degradations.rain import rain
from restorevar.errors import UserError

SEEDS = st.integers(0, 2**40)
few = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def difference(first, second) -> np.ndarray:
    return np.abs(first.astype(int) - second)


@pytest.mark.parametrize("kind", KINDS)
@few
@given(height=st.integers(1, 70), width=st.integers(1, 70), severity=st.floats(0, 1), seed=SEEDS)
def test_any_size_keeps_shape_and_type(kind, height, width, severity, seed):
    photo = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    before = photo.copy()
    image, parameters = degrade(photo, kind, severity, seed)
    assert image.shape == photo.shape
    assert image.dtype == np.uint8
    assert (photo == before).all()
    assert json.loads(json.dumps(parameters))["kind"] == kind


@pytest.mark.parametrize("kind", KINDS)
def test_severity_0_is_the_photo_itself(kind, photos):
    for seed, photo in enumerate(photos):
        assert difference(degrade(photo, kind, 0.0, seed)[0], photo).max() <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_more_severity_is_farther_from_the_photo_on_average(kind, photos):
    few = [(photo, seed) for photo in photos[:3] for seed in range(4)]
    errors = [
        np.mean([difference(degrade(photo, kind, severity, seed)[0], photo).mean() for photo, seed in few])
        for severity in (0.05, 0.2, 0.4, 0.6, 0.8, 1.0)
    ]
    assert errors == sorted(errors)
    assert errors[-1] > 2 * errors[1]


@pytest.mark.parametrize("kind", KINDS)
@few
@given(data=st.data(), severity=st.floats(0, 1), seed=SEEDS)
def test_crops_commute(kind, data, severity, seed, photos):
    photo = photos[seed % len(photos)]
    top = data.draw(st.integers(0, photo.shape[0] - 1))
    left = data.draw(st.integers(0, photo.shape[1] - 1))
    height = data.draw(st.integers(1, photo.shape[0] - top))
    width = data.draw(st.integers(1, photo.shape[1] - left))
    whole, _ = degrade(photo, kind, severity, seed)
    crop, _ = degrade(photo, kind, severity, seed, crop=(top, left, height, width))
    assert difference(whole[top : top + height, left : left + width], crop).max() <= 1


@pytest.mark.parametrize("kind", ["haze", "rain", "snow", "mixed"])
def test_crops_commute_with_a_depth_map(kind, motorcycle):
    photo, distance = motorcycle
    whole, _ = degrade(photo, kind, 0.7, 5, depth=distance)
    crop, _ = degrade(photo, kind, 0.7, 5, crop=(101, 203, 90, 77), depth=distance)
    assert difference(whole[101:191, 203:280], crop).max() <= 1


def test_the_same_seed_gives_the_same_photo_in_another_process(photos):
    photo = photos[0]
    program = (
        "import sys, hashlib, numpy as np; from restorevar.datamodules.degradations import KINDS, degrade;"
        "photo = np.frombuffer(sys.stdin.buffer.read(), np.uint8).reshape(200, -1, 3);"
        "[print(hashlib.md5(degrade(photo, kind, 0.6, 11)[0].tobytes()).hexdigest()) for kind in KINDS]"
    )
    other = subprocess.run([sys.executable, "-c", program], input=photo.tobytes(), capture_output=True, check=True)
    here = [hashlib.md5(degrade(photo, kind, 0.6, 11)[0].tobytes()).hexdigest() for kind in KINDS]
    assert other.stdout.decode().split() == here


def test_other_code_paths_give_nearly_the_same_photo(photos):
    """What another processor would run: OpenCV without its fast paths and Intel's library, NumPy with its baseline."""
    photo = photos[0]
    program = (
        "import sys, cv2, numpy as np; from restorevar.datamodules.degradations import KINDS, degrade;"
        "cv2.setUseOptimized(False); assert not np.show_config(mode='dicts')['SIMD Extensions'].get('found');"
        "photo = np.frombuffer(sys.stdin.buffer.read(), np.uint8).reshape(200, -1, 3);"
        "[sys.stdout.buffer.write(degrade(photo, kind, severity, 11)[0].tobytes())"
        " for kind in KINDS for severity in (0.3, 0.9)]"
    )
    dispatched = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])
    environment = os.environ | {"OPENCV_IPP": "disabled", "NPY_DISABLE_CPU_FEATURES": " ".join(dispatched)}
    other = subprocess.run(
        [sys.executable, "-c", program], input=photo.tobytes(), capture_output=True, check=True, env=environment
    )
    pictures = np.frombuffer(other.stdout, np.uint8).reshape(len(KINDS), 2, *photo.shape)
    for kind, pair in zip(KINDS, pictures, strict=True):
        here = np.stack([degrade(photo, kind, severity, 11)[0] for severity in (0.3, 0.9)])
        assert (difference(here, pair) <= 1).mean() >= 0.999


@pytest.mark.parametrize("kind", KINDS)
def test_other_seeds_give_other_photos(kind, photos):
    made = {degrade(photos[1], kind, 0.7, seed)[0].tobytes() for seed in range(5)}
    assert len(made) == 5


def test_a_function_and_an_import_path_do_the_same_as_the_name(photos):
    named, _ = degrade(photos[0], "rain", 0.5, 3)
    assert (degrade(photos[0], rain, 0.5, 3)[0] == named).all()
    assert (degrade(photos[0], "restorevar.datamodules.degradations.rain.rain", 0.5, 3)[0] == named).all()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("fog", "haze, rain"),
        ("no_such_package.fog", r"No module named 'no_such_package'\); run it from .*`PYTHONPATH=\. restorevar"),
        ("restorevar.datamodules.degradations.rain.fog", "fog"),
        ("restorevar.errors.UserError", "expected a function"),
        ("os.getcwd", r"'os\.getcwd' takes \(\); expected a function of a view and a severity"),
        (".fog", "cannot import"),
        ("broken_weather.fog", r"\(NameError: name 'nowhere' is not defined\); correct the path, or mend the module"),
    ],
)
def test_unknown_names_are_explained(name, told, tmp_path, monkeypatch):
    (tmp_path / "broken_weather.py").write_text("fog = nowhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=told):
        get_degradation(name)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"kind": "operator.is_"}, "returned a bool; expected"),
        ({"severity": 1.5}, "severity"),
        ({"severity": float("nan")}, "severity"),
        ({"severity": "much"}, "severity"),
        ({"seed": -1}, "seed"),
        ({"seed": 0.5}, "seed"),
        ({"crop": (0, 0, 11, 5)}, "crop"),
        ({"crop": (-1, 0, 5, 5)}, "crop"),
        ({"crop": (0, 0, 0, 5)}, "crop"),
        ({"depth": np.ones((3, 3))}, "depth"),
        ({"photo": np.zeros((10, 10), np.uint8)}, "uint8"),
        ({"photo": np.zeros((10, 10, 3), np.uint16)}, "uint8"),
        ({"photo": np.zeros((10, 10, 4), np.uint8)}, "uint8"),
        ({"photo": np.zeros((0, 10, 3), np.uint8)}, "uint8"),
    ],
)
def test_wrong_arguments_are_explained(changed, told):
    given = {"photo": np.zeros((10, 10, 3), np.uint8), "kind": "haze", "severity": 0.5, "seed": 0}
    with pytest.raises(UserError, match=told):
        degrade(**{**given, **changed})


IMAGE = np.full((20, 20, 3), 0.5, np.float32)


@pytest.mark.parametrize(
    ("result", "told"),
    [
        (IMAGE, "a ndarray; expected"),
        ((IMAGE.tolist(), {}), r"an image that is a list; expected an array of \(20, 20, 3\)"),
        (
            (np.zeros((28, 28, 3), np.float32), {}),
            r"an image of float32 \(28, 28, 3\); expected float32 \(20, 20, 3\), the size of",
        ),
        ((IMAGE[..., 0], {}), r"an image of float32 \(20, 20\); expected"),
        ((np.full((20, 20, 3), 128, np.uint8), {}), r"an image of uint8 \(20, 20, 3\); expected float32"),
        (
            (np.where(IMAGE.cumsum().reshape(IMAGE.shape) == 0.5, np.nan, IMAGE), {}),
            "an image with values that are not finite",
        ),
    ],
)
def test_what_a_function_of_ones_own_returns_is_checked(result, told):
    def dust(view, severity):
        return result

    photo = np.zeros((40, 40, 3), np.uint8)
    with pytest.raises(UserError, match=f"degradation 'dust' returned {told}"):
        degrade(photo, dust, 0.5, 0, crop=(5, 5, 20, 20))


def test_any_floating_image_of_the_windows_size_is_taken():
    image, used = degrade(np.zeros((20, 20, 3), np.uint8), lambda *_: (IMAGE.astype(np.float64), {"a": 1}), 0.5, 0)
    assert (image == 128).all()
    assert used["a"] == 1


def test_views_of_arrays_are_taken(photos):
    mirrored = photos[0][:, ::-1]
    assert not mirrored.flags["C_CONTIGUOUS"]
    for kind in KINDS:
        assert (degrade(mirrored, kind, 0.5, 1)[0] == degrade(mirrored.copy(), kind, 0.5, 1)[0]).all()
