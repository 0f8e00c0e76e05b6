import importlib.util
from pathlib import Path

PATH = Path(__file__).parents[2] / "benchmarks" / "regression.py"


def load():
    specification = importlib.util.spec_from_file_location("regression", PATH)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_slower_by_a_tenth_fails() -> None:
    regression = load()
    baseline = {"a": 10.0, "b": 10.0, "c": 10.0}
    assert regression.compare({"a": 10.9, "b": 11.1, "c": 1.0}, baseline) == ["b"]
    assert regression.compare({"a": 10.0, "b": 10.0, "d": 1.0}, baseline) == ["c", "d"]
