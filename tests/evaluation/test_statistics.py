import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from restorevar.evaluation.statistics import bootstrap_mean


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-100, 100), min_size=1, max_size=40))
def test_the_interval_holds_the_mean_and_stays_inside_the_values(values):
    estimate = bootstrap_mean(values)
    assert estimate.mean == pytest.approx(np.mean(values))
    assert estimate.images == len(values)
    assert min(values) - 1e-9 <= estimate.low <= estimate.high <= max(values) + 1e-9
    assert estimate == bootstrap_mean(values)  # the seed is fixed


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        estimate = bootstrap_mean(generator.normal(5, 2, 40).tolist())
        hits += estimate.low <= 5 <= estimate.high
    assert 175 <= hits <= 199


def test_copies_of_a_photo_do_not_narrow_the_interval():
    values = np.random.default_rng(0).normal(0, 1, 12).tolist()
    alone = bootstrap_mean(values)
    copied = bootstrap_mean(values * 5, [index for _ in range(5) for index in range(12)])
    careless = bootstrap_mean(values * 5)
    assert copied.high - copied.low == pytest.approx(alone.high - alone.low, rel=0.1)
    assert careless.high - careless.low < 0.6 * (alone.high - alone.low)


def test_wrong_input():
    with pytest.raises(ValueError, match="no values"):
        bootstrap_mean([])
    with pytest.raises(ValueError, match="2 clusters for 1 values"):
        bootstrap_mean([1.0], ["a", "b"])
