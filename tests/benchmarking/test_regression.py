from tests.benchmarking.scripts import load_script


def test_slower_by_a_tenth_fails() -> None:
    regression = load_script("regression")
    baseline = {"a": 10.0, "b": 10.0, "c": 10.0}
    assert regression.compare({"a": 10.9, "b": 11.1, "c": 1.0}, baseline) == ["b"]
    assert regression.compare({"a": 10.0, "b": 10.0, "d": 1.0}, baseline) == ["c", "d"]
