import os
import time
from collections.abc import Callable

import pytest

from restorevar.benchmarking.process import CallsElsewhere
from restorevar.errors import UserError


def build(place: str, mistake: str) -> dict[str, Callable[[], None]]:
    if mistake:
        raise UserError(mistake)

    def note() -> None:
        with open(place, "a", encoding="utf-8") as file:
            file.write(f"{os.getpid()} {os.environ.get('THP_MEM_ALLOC_ENABLE')}\n")

    def fail() -> None:
        raise ValueError("no such luck")

    return {"note": note, "sleep": lambda: time.sleep(0.2), "fail": fail, "die": lambda: os._exit(1)}


def test_calls_run_in_one_other_process_with_its_own_memory_settings(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "1")  # as the command line sets it
    place = tmp_path / "notes"
    with CallsElsewhere(build, str(place), "") as elsewhere:
        calls = elsewhere.calls()
        calls["note"]()
        calls["note"]()
        began = time.perf_counter()
        calls["sleep"]()
        assert time.perf_counter() - began >= 0.2
        process = elsewhere.process
    first, second = place.read_text().splitlines()
    assert first == second == f"{process.pid} None"
    assert process.pid != os.getpid()
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "1"
    assert not process.is_alive()


def test_mistakes_and_faults_arrive() -> None:
    with pytest.raises(UserError, match="install the extra"):
        CallsElsewhere(build, "", "install the extra")
    with CallsElsewhere(build, "", "") as elsewhere, pytest.raises(RuntimeError, match="no such luck"):
        elsewhere.calls()["fail"]()
    with CallsElsewhere(build, "", "") as elsewhere:
        for _ in range(2):
            with pytest.raises(RuntimeError, match="ended with 1"):
                elsewhere.calls()["die"]()
