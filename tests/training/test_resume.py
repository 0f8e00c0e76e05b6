"""A stopped and resumed run ends with the bits of an uninterrupted one."""

import pytest
import tiny
import torch

from restorevar.callbacks import ExponentialMovingAverage

# An epoch has 6 batches. From scratch, the first 2 of 8 steps have no quantization, and codes restart at 3 and 6. The
# slow test of kills goes through many more moments.
MOMENTS = {"decoder": (6,), "scratch": (1, 3), "transformer": (2,), "refiner": (5,)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    tiny.make_data(folder)
    tiny.make_models(folder)
    return folder


@pytest.mark.parametrize("stage", tiny.STAGES)
def test_any_moment_exact(folder, stage):
    settings = {"max_steps": 8, "drop_path": 0.3}
    whole = tiny.fit(folder, stage, f"{stage}-whole", callbacks=[ExponentialMovingAverage(decay=0.9)], **settings)
    for moment in MOMENTS[stage]:
        part = f"{stage}-{moment}"
        first = tiny.fit(
            folder,
            stage,
            part,
            until=moment,
            every_n_steps=moment,
            callbacks=[ExponentialMovingAverage(decay=0.9)],
            **settings,
        )
        rest = tiny.fit(
            folder, stage, f"{part}-rest", resume=part, callbacks=[ExponentialMovingAverage(decay=0.9)], **settings
        )
        assert first["paths"] + rest["paths"] == whole["paths"], moment
        assert first["losses"] + rest["losses"] == whole["losses"], moment
        different = [name for name, value in whole["weights"].items() if not torch.equal(value, rest["weights"][name])]
        assert not different, (moment, different[:3])


@pytest.mark.parametrize("end", [{"max_steps": 18}, {"max_epochs": 3}])
def test_resumed_twice_the_first_time_at_the_end_of_an_epoch(folder, end):
    """Lightning alone loses count of the epoch in between where epochs bound the run."""
    name = next(iter(end))
    whole = tiny.fit(folder, "decoder", f"{name}-whole", **end)
    first = tiny.fit(folder, "decoder", f"{name}-1", until=6, every_n_steps=6, **end)
    second = tiny.fit(folder, "decoder", f"{name}-2", resume=f"{name}-1", until=9, every_n_steps=9, **end)
    third = tiny.fit(folder, "decoder", f"{name}-3", resume=f"{name}-2", **end)
    assert first["paths"] + second["paths"] + third["paths"] == whole["paths"]
    assert len(whole["paths"]) == 18
    assert all(torch.equal(value, third["weights"][key]) for key, value in whole["weights"].items())


def test_accumulated_batches_exact(folder):
    settings = {"max_steps": 5, "accumulate": 2, "batch_size": 2}
    whole = tiny.fit(folder, "transformer", "accumulated-whole", **settings)
    first = tiny.fit(folder, "transformer", "accumulated", until=2, every_n_steps=1, **settings)
    rest = tiny.fit(folder, "transformer", "accumulated-rest", resume="accumulated", **settings)
    assert len(whole["losses"]) == 10
    assert first["losses"] + rest["losses"] == whole["losses"]
    assert all(torch.equal(value, rest["weights"][name]) for name, value in whole["weights"].items())


def test_drop_path_differs_between_steps_and_epochs(folder):
    """Seeding every batch must not give every batch the same draws."""
    settings = {"max_steps": 4, "drop_path": 0.5, "optimizer": "sgd", "batch_size": 12}  # 2 epochs
    dropped = tiny.fit(folder, "transformer", "dropped", **settings)
    kept = tiny.fit(folder, "transformer", "kept", **(settings | {"drop_path": 0.0}))
    gaps = [round(a - b, 6) for a, b in zip(dropped["losses"], kept["losses"], strict=True)]
    assert len(set(gaps)) == 4


def test_fewer_samples_a_batch_continue_with_the_remaining_ones(folder):
    """Another number of samples a step: the rest of the epoch is the same samples in the same order."""
    whole = tiny.fit(folder, "decoder", "order-whole", max_steps=6)
    tiny.fit(folder, "decoder", "order", until=2, every_n_steps=2, max_steps=6)
    rest = tiny.fit(folder, "decoder", "order-rest", resume="order", max_steps=10, batch_size=2)
    expected = [path for paths in whole["paths"][2:] for path in paths]
    assert [path for paths in rest["paths"] for path in paths] == expected
