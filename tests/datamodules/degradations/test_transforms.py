import subprocess
import sys

import numpy as np
import pytest

from restorevar.datamodules.degradations import degrade
from restorevar.errors import UserError

PHOTO = np.full((64, 80, 3), 90, np.uint8)


def transform(*args, **kwargs):
    from restorevar.datamodules.degradations.transforms import Degradation

    return Degradation(*args, **kwargs)


def test_composes_with_others_and_repeats_by_seed():
    import albumentations as A

    def made(seed):
        pipeline = A.Compose([transform("rain", severity=(0.4, 0.8)), A.HorizontalFlip(p=0.5)], seed=seed)
        return [pipeline(image=PHOTO)["image"] for _ in range(3)]

    first, again, other = made(1), made(1), made(2)
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert not (first[0] == first[1]).all()
    assert not (first[0] == other[0]).all()
    assert first[0].shape == PHOTO.shape


def test_is_described_by_its_arguments():
    import albumentations as A

    described = A.to_dict(transform("restorevar.datamodules.degradations.snow.snow", severity=(0.1, 0.2)))
    assert A.from_dict(described).severity == (0.1, 0.2)


def test_the_parameters_used_are_saved_as_albumentations_does():
    import albumentations as A

    pipeline = A.Compose([transform("haze", severity=(0.4, 0.8))], seed=1, save_applied_params=True)
    result = pipeline(image=PHOTO)
    [(name, drawn)] = result["applied_transforms"]
    expected, parameters = degrade(PHOTO, "haze", drawn["severity"], drawn["seed"])
    assert name == "Degradation"
    assert drawn["parameters"] == parameters
    assert (result["image"] == expected).all()
    assert pipeline.transforms[0].get_applied_params()["parameters"] == parameters

    never = A.Compose([transform("haze", p=0.0)], save_applied_params=True)
    assert never(image=PHOTO)["applied_transforms"] == []


def test_what_was_drawn_can_be_replayed():
    import albumentations as A

    first = A.ReplayCompose([transform("rain", severity=(0.4, 0.8))])(image=PHOTO)
    assert (A.ReplayCompose.replay(first["replay"], image=PHOTO)["image"] == first["image"]).all()


def test_masks_are_left_alone():
    import albumentations as A

    mask = np.eye(64, 80, dtype=np.uint8)
    assert (A.Compose([transform("haze")])(image=PHOTO, mask=mask)["mask"] == mask).all()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"kind": "fog"}, UserError),
        ({"kind": "rain", "severity": (0.5, 1.5)}, UserError),
        ({"kind": "rain", "severity": (0.8, 0.2)}, UserError),
        ({"kind": "rain", "severety": (0.1, 0.2)}, TypeError),
    ],
)
def test_wrong_arguments_are_errors(arguments, error):
    with pytest.raises(error):
        transform(**arguments)


def test_nothing_else_needs_albumentations():
    program = (
        "import sys, restorevar.datamodules.degradations as d; [d.get_degradation(k) for k in d.KINDS];"
        "print([m for m in ('albumentations', 'torch', 'lightning', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
