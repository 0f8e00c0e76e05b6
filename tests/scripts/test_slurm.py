"""The SLURM scripts with a stand-in for sbatch, and the numbers of GPUs that documents name."""

import functools
import os
import re
import shlex
import subprocess
from types import SimpleNamespace

import pytest

from restorevar.callbacks import TotalBatch
from restorevar.cli.lightning import read_config
from tests.test_documents import ROOT, command_lines

SCRIPTS = ROOT / "scripts" / "slurm"
STAGE = "scripts/slurm/stage.sbatch"


@pytest.fixture
def submit(tmp_path, monkeypatch):
    """Runs pipeline.sh; returns the words that sbatch got for each stage."""
    (tmp_path / "sbatch").write_text(
        "#!/bin/bash\n"
        f"number=$(($(cat {tmp_path}/count 2>/dev/null || echo 0) + 1))\n"
        f"echo $number > {tmp_path}/count\n"
        f'printf "%s\\0" "$@" > {tmp_path}/job-$number\n'
        'echo "10$number;cluster"\n'
    )
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    def run(*words):
        (tmp_path / "count").unlink(missing_ok=True)
        subprocess.run([SCRIPTS / "pipeline.sh", *words], check=True, capture_output=True, cwd=tmp_path)
        return [(tmp_path / f"job-{stage}").read_text().split("\0")[:-1] for stage in (1, 2, 3)]

    return run


def test_each_stage_waits_for_the_one_before(submit):
    jobs = submit("--nodes=2", "--partition=long", "--", "--data.root", "/my data")
    for stage, words in enumerate(jobs, 1):
        place = words.index(STAGE)
        assert {"--parsable", "--nodes=2", "--partition=long"} <= set(words[:place])
        assert words[place + 1 :] == [str(stage), "--data.root", "/my data"]
    assert not any(word.startswith("--dependency") for word in jobs[0])
    assert "--dependency=afterok:101" in jobs[1]
    assert "--dependency=afterok:102" in jobs[2]
    assert [words[words.index(STAGE) + 1 :] for words in submit("--nodes=1")] == [["1"], ["2"], ["3"]]


@pytest.mark.parametrize("weights", [["--model.initial_weights", "var d16.pth"], ["--model.initial_weights=d16.pth"]])
def test_words_with_a_stages_name_go_to_that_stage(submit, weights):
    named = [weights[0].replace("--", "--transformer."), *weights[1:]]
    more = ["--tokenizer.trainer.max_epochs", "3", "--refiner.data.num_workers=2", "--data.batch_size", "1"]
    jobs = submit("--", "--data.root", "/data", *named, *more)
    first, second, third = (words[words.index(STAGE) + 2 :] for words in jobs)
    assert first == ["--data.root", "/data", "--trainer.max_epochs", "3", "--data.batch_size", "1"]
    assert second == ["--data.root", "/data", *weights, "--data.batch_size", "1"]
    assert third == ["--data.root", "/data", "--data.num_workers=2", "--data.batch_size", "1"]


def examples():
    """Words of every call of the scripts in documents and in the scripts' own comments."""
    yield from command_lines()
    for script in SCRIPTS.iterdir():
        comments = "\n".join(re.findall(r"^#( .*)$", script.read_text(), re.MULTILINE)).replace("\\\n", " ")
        for line in comments.splitlines():
            if line.startswith("   ") and "[" not in line:
                yield script, shlex.split(line)


EXAMPLES = [
    pytest.param(words, id=f"{path.name}: {' '.join(words)[:60]}")
    for path, words in examples()
    if STAGE in words or "scripts/slurm/pipeline.sh" in words
]


def value_of(words, name, default):
    """Value of an option that is written with = or without."""
    for place, word in enumerate(words):
        if word.partition("=")[0] == name:
            return word.partition("=")[2] or words[place + 1]
    return default


@functools.cache
def batches(stage):
    """The batch of one process and that of all as the stage's file has them."""
    config = read_config(["fit", "--config", str(ROOT / "configs" / f"stage{stage}.yaml")])
    return config["data"]["batch_size"], config["total_batch"]["total"]


def check_total(stage, processes, batch_size=None):
    """TotalBatch's own rule."""
    own, total = batches(int(stage))
    trainer = SimpleNamespace(
        datamodule=SimpleNamespace(batch_size=batch_size or own), world_size=processes, accumulate_grad_batches=1
    )
    TotalBatch(total).setup(trainer, None, "fit")


@pytest.mark.parametrize("words", EXAMPLES)
def test_numbers_of_gpus_in_the_documents_divide_the_total_batch(words):
    directives = re.findall(r"^#SBATCH (.*)$", (ROOT / STAGE).read_text(), re.MULTILINE)
    nodes, tasks, gpus = (
        int(value_of(words, name, value_of(directives, name, None)))
        for name in ("--nodes", "--ntasks-per-node", "--gpus-per-node")
    )
    assert tasks == gpus
    batch_size = int(value_of(words, "--data.batch_size", 0))
    for stage in [words[words.index(STAGE) + 1]] if STAGE in words else (1, 2, 3):
        check_total(stage, nodes * tasks, batch_size)


def test_there_are_examples():
    assert len(EXAMPLES) >= 6


def test_what_the_page_on_several_processes_says():
    text = " ".join((ROOT / "docs" / "distributed.md").read_text().split())
    assert "run on 1, 2, 4 or 8 GPUs; on 16 with `--data.batch_size 1`, and stages 2 and 3 on 48 with that" in text
    for stage in (1, 2, 3):
        for processes in (1, 2, 4, 8):
            check_total(stage, processes)
        check_total(stage, 16, 1)
    for stage in (2, 3):
        check_total(stage, 48, 1)
