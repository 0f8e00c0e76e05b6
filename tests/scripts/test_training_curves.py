from pathlib import Path

import pytest
from torch.utils.tensorboard import SummaryWriter

from restorevar.errors import UserError
from tests.conftest import load_module

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script():
    return load_module(ROOT / "scripts" / "training_curves.py")


def write_events(folder: Path, losses: dict[int, float]) -> Path:
    with SummaryWriter(str(folder)) as writer:
        for step, value in losses.items():
            writer.add_scalar("train/loss", value, step)
    return folder


def test_scalars_of_two_runs(script, tmp_path):
    runs = [write_events(tmp_path / name, {0: 2.0, 5: value}) for name, value in (("one", 1.0), ("two", 0.5))]
    rows, hours = script.read_curves(runs)
    assert rows == [
        (run, "train/loss", *point) for run, end in (("one", 1.0), ("two", 0.5)) for point in ((0, 2.0), (5, end))
    ]
    assert set(hours) == {"one", "two"}


def test_runs_of_one_name_are_not_mixed(script, tmp_path):
    runs = [write_events(tmp_path / parent / "detail", {0: 1.0}) for parent in ("a", "b")]
    with pytest.raises(UserError, match=r"a/detail and .*b/detail have one name"):
        script.read_curves(runs)


@pytest.mark.parametrize("begun", [False, True])
def test_a_run_without_scalars(script, tmp_path, begun):
    folder = tmp_path / "run"
    if begun:
        write_events(folder, {})
        assert list(folder.glob("events.out.tfevents.*"))
    with pytest.raises(UserError, match="run holds no TensorBoard events with scalars"):
        script.read_curves([folder])
