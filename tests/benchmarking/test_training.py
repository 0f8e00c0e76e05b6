from argparse import Namespace

import pytest

from restorevar.benchmarking.cost import counting
from tests.benchmarking.scripts import load_script
from tests.models.small import photos, small_config, small_model

training = load_script("training")


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """Rows of a small model's stage in a precision; every step takes a second, so that utilisation is operations."""
    monkeypatch.setitem(training.SIZES, "test", small_config())
    monkeypatch.setattr(training, "seconds", lambda step, device: 1.0)
    monkeypatch.setattr(training, "matrix_rate", lambda device, precision: 1.0)

    def measure(stage: int, precision: str) -> dict[str, dict[str, float]]:
        options = Namespace(device="cpu", precision=precision, batch=2, steps=1)
        return training.measure("test", stage, options, str(tmp_path))

    return measure


def test_kept_memory_is_that_of_the_precision(measured) -> None:
    single, half = (measured(2, precision)[training.OURS]["memory_gib"] for precision in ("float32", "bfloat16"))
    assert 0 < half < single


def test_all_of_a_step_is_among_its_operations(measured, tmp_path) -> None:
    # the roll-out and the frozen encoder, which oneDNN does by itself on a CPU, as well
    model = small_model()
    _, loss = training.losses(model, 3, photos(model), photos(model), training.OURS, str(tmp_path))
    with counting() as forward:
        loss()
    assert measured(3, "float32")[training.OURS]["utilisation"] > forward.get_total_flops()
