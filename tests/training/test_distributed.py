"""Two processes (gloo) against one with the doubled batch, for every stage."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch

SCRIPT = Path(tiny.__file__)
pytestmark = pytest.mark.timeout(900)  # ten seconds on an idle machine, minutes on a crowded one


def launch(folder: Path, runs: dict, processes: int = 2, timeout: int = 800) -> list[dict]:
    """Runs fits in processes of their own; returns what each of them found."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONWARNINGS": "ignore"}
    for name in ("LOCAL_RANK", "NODE_RANK", "MASTER_PORT", "WORLD_SIZE", "PL_GLOBAL_SEED"):
        environment.pop(name, None)
    command = [sys.executable, str(SCRIPT), str(folder), json.dumps(runs)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=timeout, cwd=folder, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"result-{rank}.pt", weights_only=True) for rank in range(processes)]


def distance(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Norm of the difference over the norm."""
    assert found.keys() == expected.keys()
    names = [name for name, value in expected.items() if value.is_floating_point()]
    gap = torch.cat([(found[name] - expected[name]).double().flatten() for name in names]).norm()
    return float(gap / torch.cat([expected[name].double().flatten() for name in names]).norm())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    tiny.make_data(folder)
    tiny.make_models(folder)
    return folder


@pytest.fixture(scope="module")
def two(folder):
    """All stages by both optimizers, in one start of two processes."""
    runs = {}
    for stage in tiny.STAGES:
        for optimizer in ("sgd", "adamw"):
            runs[f"{stage} {optimizer}"] = {
                "stage": stage,
                "run": f"two-{stage}-{optimizer}",
                "optimizer": optimizer,
                "devices": 2,
                "strategy": "ddp",
                "batch_size": 4,
                "max_steps": 3,
                "options": {},
            }
    # far enough for k-means and for restarts of dead codes
    runs["codebook"] = runs.pop("scratch adamw") | {"max_steps": 7, "batch_size": 2, "run": "two-codebook"}
    return launch(folder, runs)


@pytest.mark.parametrize("stage", ["decoder", "transformer", "refiner"])
def test_stage_equals_one_process(folder, two, stage):
    first, second = two
    by_sgd, by_adamw = f"{stage} sgd", f"{stage} adamw"
    one = tiny.fit(folder, stage, f"one-{stage}-sgd", optimizer="sgd", batch_size=8)
    if stage == "refiner":
        tokens = first[by_sgd]["tokens"] | second[by_sgd]["tokens"]
        assert tokens.keys() == one["tokens"].keys()
        assert all(torch.equal(tokens[path], one["tokens"][path]) for path in tokens)
    assert sorted(first[by_sgd]["paths"][0] + second[by_sgd]["paths"][0]) == sorted(one["paths"][0])
    assert one["gradients"]
    assert distance(first[by_sgd]["gradients"], one["gradients"]) < 1e-5
    assert distance(first[by_sgd]["weights"], one["weights"]) < 1e-5
    adamw = tiny.fit(folder, stage, f"one-{stage}-adamw", optimizer="adamw", batch_size=8)
    assert first[by_adamw]["losses"] == pytest.approx(adamw["losses"], rel=1e-4)


def test_from_scratch_equals_one_process_before_the_codebook_is_set(folder, two):
    """K-means picks its starting points by place in the pool, which the number of processes changes."""
    one = tiny.fit(folder, "scratch", "one-scratch-sgd", optimizer="sgd", batch_size=8)
    first = two[0]["scratch sgd"]
    assert distance(first["gradients"], one["gradients"]) < 1e-5
    assert first["losses"][:1] == pytest.approx(one["losses"][:1], rel=1e-5)


def test_both_processes_have_the_same_bits(two):
    first, second = two
    for run, result in first.items():
        different = [
            name for name, value in result["weights"].items() if not torch.equal(value, second[run]["weights"][name])
        ]
        assert not different, (run, different[:3])
        assert set(result["paths"][0]).isdisjoint(second[run]["paths"][0]), run


def test_codebook_statistics_are_those_of_both_processes(folder, two):
    """Counts are summed, and dead codes move to the same places on both."""
    for result in two:
        # 7 steps, windows of 3: the counts are those of step 7 alone, over 2 processes x 2 photos x 21 tokens
        assert int(result["codebook"]["weights"]["codebook_use.counts"].sum()) == 2 * 2 * 21
    entries = [result["codebook"]["weights"]["model.tokenizer.quantizer.codebook.weight"] for result in two]
    assert torch.equal(*entries)
    untouched = tiny.fit(folder, "scratch", "start", max_steps=1, batch_size=4)
    assert not torch.equal(entries[0], untouched["weights"]["model.tokenizer.quantizer.codebook.weight"])
