from tests.benchmarking.scripts import load_script


def test_what_fails_is_told_by_kind() -> None:
    regression = load_script("regression")
    baseline = {"a": 10.0, "b": 10.0, "c": 10.0}
    assert regression.compare({"a": 10.9, "b": 11.1, "c": 1.0}, baseline) == {"slower by more than 10%": ["b"]}
    changed = {"in the baseline only": ["c"], "not in the baseline": ["d"]}
    assert regression.compare({"a": 10.0, "b": 10.0, "d": 1.0}, baseline) == changed
    assert regression.compare(baseline, baseline) == {}
