import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from restorevar.datamodules.sampler import EpochSampler, Task, stratified_order
from restorevar.errors import UserError


def equal_tasks(*counts: int) -> list[Task]:
    share = 1 / len(counts)
    return [Task(f"task {i}", share, (i,), (count,), (count,)) for i, count in enumerate(counts)]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(0.05, 1.0), min_size=1, max_size=8), st.integers(1, 400), st.integers(0, 99))
def test_every_prefix_has_each_share_to_within_one_sample(weights, length, seed):
    shares = np.array(weights) / sum(weights)
    order = stratified_order(shares.tolist(), length, np.random.default_rng(seed))
    drawn = np.cumsum(order[:, None] == np.arange(len(shares)), axis=0)
    due = shares * np.arange(1, length + 1)[:, None]
    bound = 1 - 1 / (2 * len(shares) - 2) if len(shares) > 1 else 0
    assert np.abs(drawn - due).max() <= bound + 1e-6


def test_five_tasks_of_very_different_size_are_equal_to_within_one_sample():
    counts = (10, 100, 1000, 50, 5000)
    sampler = EpochSampler(equal_tasks(*counts), sum(counts), batch_size=1, seed=3)
    draws = sampler.order(0)
    assert len(draws) == sum(counts)
    drawn = np.bincount(draws[:, 0], minlength=5)
    assert drawn.max() - drawn.min() <= 1
    for pool, count in enumerate(counts):
        records = draws[draws[:, 0] == pool, 1]
        times = np.bincount(records, minlength=count)
        # passes: no record is seen twice before all have been seen once
        assert times.max() - times.min() <= 1
        if count == 10:
            first, second = records[:10].tolist(), records[10:20].tolist()
            assert sorted(first) == sorted(second) == list(range(10))
            assert first != second, "passes are not reshuffled"


def test_a_large_task_goes_on_in_the_next_epoch():
    sampler = EpochSampler(equal_tasks(30, 90), 120, batch_size=1, seed=0)
    first, second = (order[order[:, 0] == 1, 1] for order in (sampler.order(0), sampler.order(1)))
    assert len(first) == 60
    assert len(set(first) | set(second[:30])) == 90


def test_order_is_a_function_of_seed_and_epoch():
    make = [EpochSampler(equal_tasks(7, 9), 16, 1, seed) for seed in (1, 1, 2)]
    assert np.array_equal(make[0].order(4), make[1].order(4))
    assert not np.array_equal(make[0].order(4), make[0].order(5))
    assert not np.array_equal(make[0].order(4), make[2].order(4))


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(20, 90))
def test_processes_split_the_epoch_without_overlap(world_size, batch_size, length):
    samplers = [
        EpochSampler(equal_tasks(length), length, batch_size, 0, rank, world_size) for rank in range(world_size)
    ]
    parts = [list(sampler) for sampler in samplers]
    assert {len(part) for part in parts} == {len(samplers[0])}
    positions = [draw.position for part in parts for draw in part]
    whole_batches = length // (batch_size * world_size) * batch_size * world_size
    assert sorted(positions) == list(range(whole_batches))
    assert len({(draw.pool, draw.record) for part in parts for draw in part}) == whole_batches


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 5))
def test_any_number_of_processes_carries_on_from_a_position(before, after, batches):
    length, size = 67, 2
    first = [EpochSampler(equal_tasks(length), length, size, 0, rank, before) for rank in range(before)]
    batches = min(batches, first[0].batches)
    done = [draw for sampler in first for draw in itertools.islice(sampler, batches * size)]
    second = [EpochSampler(equal_tasks(length), length, size, 0, rank, after) for rank in range(after)]
    for sampler in second:
        sampler.start = len(done)
    rest = [draw for sampler in second for draw in sampler]
    assert sorted(draw.position for draw in done + rest) == list(range(len(done) + len(rest)))
    assert length - len(done) - len(rest) < after * size
    everything = {draw.position: draw for draw in EpochSampler(equal_tasks(length), length, 1, 0)}
    assert all(everything[draw.position] == draw for draw in done + rest)


def test_an_epoch_shorter_than_a_step_is_an_error():
    with pytest.raises(UserError, match=r"5 samples, fewer than the 8.*batch_size"):
        EpochSampler(equal_tasks(5), 5, batch_size=4, seed=0, world_size=2)
