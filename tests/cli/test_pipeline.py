import itertools
import os
import shutil
import signal
import sys
import threading
import time

import pytest
import torch
import yaml

from restorevar.cli import main
from restorevar.cli.lightning import read_config
from restorevar.cli.pipeline import (
    OF_EVERY_STEP,
    _comparable,
    _is_how,
    needs_own_process,
    pipeline,
    read_pipeline,
    run_and_forward_signals,
)
from restorevar.errors import UserError
from restorevar.models import RestoreVAR
from restorevar.modules import RefinerModule
from tests.cli.tiny_pipeline import write_pipeline


@pytest.fixture(scope="module")
def files(tmp_path_factory, tiny_photos):
    return write_pipeline(tmp_path_factory.mktemp("configs"), tiny_photos)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, files):
    output = tmp_path_factory.mktemp("runs")
    assert main(["pipeline", "--config", str(files), "--output", str(output)]) == 0
    return output


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the finished run, to be changed."""
    return shutil.copytree(finished, tmp_path / "run")


def test_every_stage_leaves_its_folder(finished):
    for stage in ("tokenizer", "transformer", "refiner"):
        for file in ("model/config.json", "model/model.safetensors", "model/README.md", "config.yaml", "inputs.json"):
            assert (finished / stage / file).is_file(), (stage, file)
    model = RestoreVAR.from_pretrained(finished / "refiner" / "model")
    image = model.generate(torch.zeros(1, 3, 32, 32)).image
    assert image.shape == (1, 3, 32, 32)


def test_each_stage_starts_from_the_one_before(finished):
    models = [
        RestoreVAR.from_pretrained(finished / stage / "model") for stage in ("tokenizer", "transformer", "refiner")
    ]
    for before, after in itertools.pairwise(models):
        for name, value in before.state_dict().items():
            assert torch.equal(after.state_dict()[name], value), name


def test_finished_stages_are_skipped(run, files, capsys):
    weights = run / "refiner/model/model.safetensors"
    before = weights.stat().st_mtime_ns
    assert main(["pipeline", "--config", str(files), "--output", str(run)]) == 0
    assert capsys.readouterr().err.count("finished before, skipped") == 3
    assert weights.stat().st_mtime_ns == before


def test_a_changed_stage_and_those_after_it_are_made_anew(run, files, capsys):
    options = ["--transformer.data.batch_size=3"]
    assert main(["pipeline", "--config", str(files), "--output", str(run), *options]) == 0
    text = capsys.readouterr().err
    assert "stage 1 of 3, tokenizer: finished before, skipped" in text
    assert "transformer: made anew, as data.batch_size changed" in text
    assert "refiner: made anew, as the stage before changed" in text
    assert (run / "transformer.before1/model/config.json").is_file()  # nothing is deleted
    assert yaml.safe_load((run / "transformer/config.yaml").read_text())["data"]["batch_size"] == 3
    assert yaml.safe_load((run / "refiner/config.yaml").read_text())["data"]["batch_size"] == 2


def test_a_longer_run_goes_on_from_the_last_checkpoint(run, files, capsys):
    options = ["--refiner.trainer.max_steps=6", "--refiner.trainer.val_check_interval=6"]
    assert main(["pipeline", "--config", str(files), "--output", str(run), *options]) == 0
    assert "refiner: resumed from its last checkpoint" in capsys.readouterr().err
    assert "optimizer steps: 6" in (run / "refiner/model/README.md").read_text()


def test_damaged_weights_are_made_again(run, files, capsys):
    weights = run / "refiner/model/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert main(["pipeline", "--config", str(files), "--output", str(run)]) == 0
    assert "skipped" not in capsys.readouterr().err.split("stage 3 of 3")[1]
    RestoreVAR.from_pretrained(run / "refiner/model")


def test_an_interrupted_stage_ends_like_an_uninterrupted_one(run, finished, files, monkeypatch, capsys):
    shutil.rmtree(run / "refiner")
    step = RefinerModule.training_step

    def fail(self, batch, batch_idx):
        if self.global_step == 2:
            raise RuntimeError("the power went out")
        return step(self, batch, batch_idx)

    monkeypatch.setattr(RefinerModule, "training_step", fail)
    with pytest.raises(RuntimeError, match="the power went out"):
        main(["pipeline", "--config", str(files), "--output", str(run)])
    assert not (run / "refiner/model").exists()
    monkeypatch.undo()
    assert main(["pipeline", "--config", str(files), "--output", str(run)]) == 0
    assert "refiner: resumed from its last checkpoint" in capsys.readouterr().err
    expected = RestoreVAR.from_pretrained(finished / "refiner/model").state_dict()
    for name, value in RestoreVAR.from_pretrained(run / "refiner/model").state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_a_run_of_unknown_settings_is_set_aside(run, files, capsys):
    (run / "refiner/inputs.json").unlink()
    assert main(["pipeline", "--config", str(files), "--output", str(run)]) == 0
    assert "a run of unknown settings" in capsys.readouterr().err
    assert (run / "refiner.before1").is_dir()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--refiner.data.batch_siz=3"], "unknown setting '--data.batch_siz' - did you mean '--data.batch_size'?"),
        (["--trainer.max_stps", "3"], "did you mean '--trainer.max_steps'?"),
        (["--overlay", "nowhere.yaml"], "nowhere.yaml"),
        (["--refinr.trainer.max_steps=3"], "'--refinr.trainer.max_steps' - did you mean '--refiner.trainer.max_steps'"),
        (["--tranier.max_steps", "3"], "did you mean '--trainer.max_steps'?"),
        (["--refiner.export.folder=x"], "stage 'refiner' sets export.folder"),
        (["--trainer.fast_dev_run=true"], "stage 'tokenizer' sets trainer.fast_dev_run"),
        (["--transformer.trainer.default_root_dir=x"], "stage 'transformer' sets trainer.default_root_dir"),
    ],
)
def test_wrong_settings_of_any_stage_stop_before_the_first(options, message, files, tmp_path, capsys):
    assert main(["pipeline", "--config", str(files), "--output", str(tmp_path / "new"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_refused_start_leaves_nothing_behind(run, files, tmp_path, capsys):
    words = ["pipeline", "--config", str(files), "--output"]
    assert main([*words, str(tmp_path / "new"), "--data.image_size=40"]) == 2
    assert "data.image_size is 40 x 40, but the model's own size is 32 x 32" in capsys.readouterr().err
    assert not (tmp_path / "new/tokenizer").exists()
    # a later stage's folder, and the run that was there before has its name again
    shutil.rmtree(run / "refiner")
    assert main([*words, str(run), "--refiner.data.image_size=40"]) == 2
    assert not (run / "refiner").exists()
    before = {path: path.stat().st_mtime_ns for path in (run / "transformer").rglob("*") if path.is_file()}
    assert main([*words, str(run), "--transformer.data.image_size=40"]) == 2
    assert sorted(path.name for path in run.iterdir()) == ["tokenizer", "transformer"]
    assert {path: path.stat().st_mtime_ns for path in (run / "transformer").rglob("*") if path.is_file()} == before
    (run / "transformer/inputs.json").unlink()  # of unknown settings
    assert main([*words, str(run), "--transformer.data.image_size=40"]) == 2
    assert sorted(path.name for path in run.iterdir()) == ["tokenizer", "transformer"]
    assert (run / "transformer/model/config.json").is_file()
    assert not (run / "transformer/inputs.json").exists()


def test_settings_that_change_nothing_that_is_learned(run, files, capsys):
    options = ["--refiner.data.num_workers=1", "--refiner.data.cache_megabytes=9", "--refiner.data.pin_memory=false"]
    assert main(["pipeline", "--config", str(files), "--output", str(run), *options]) == 0
    assert "refiner: resumed from its last checkpoint" in capsys.readouterr().err
    assert not list(run.glob("*.before*"))


def test_how_and_what(files):
    folder = files.parent
    config = read_config(["fit", "--config", str(folder / "common.yaml"), "--config", str(folder / "refiner.yaml")])
    names = _comparable(config)
    how = ["num_workers", "cache_megabytes", "pin_memory", "skip_broken", "val", "val_batch_size", "test", "predict"]
    record = {"finished": False, "settings": names}
    assert {name for name in names if name.startswith("data.") and _is_how(name, record, names)} == {
        f"data.{name}" for name in how
    }
    assert {name.partition(".")[0] for name in names if _is_how(name, record, names)} == {
        "data", "trainer", "export", "acceleration",
    }  # fmt: skip
    assert not any(
        _is_how(name, record, names) for name in ("data.test_share", "data.num_workers_of", "trainers.x", "data")
    )
    # where accumulation makes up for another batch
    assert _is_how("data.batch_size", {"finished": False, "settings": names | {"total_batch.total": 8}}, names)
    # an interrupted run may go on in another precision; what is finished was computed in the one that it says
    assert set(OF_EVERY_STEP) <= names.keys()
    assert all(_is_how(name, record, names) for name in OF_EVERY_STEP)
    assert not any(_is_how(name, {"finished": True, "settings": names}, names) for name in OF_EVERY_STEP)
    # of a finished stage: more steps are a longer run, fewer another one, and so are other averages
    done, steps, callbacks = {"finished": True, "settings": names}, "trainer.max_steps", "trainer.callbacks"
    assert [_is_how(steps, done, names | {steps: value}) for value in (3, 5, -1)] == [False, True, True]
    averages = [{"class_path": "restorevar.callbacks.ExponentialMovingAverage", "init_args": {"decay": 0.5}}]
    assert not _is_how(callbacks, done, names | {callbacks: [*names[callbacks], *averages]})
    assert _is_how(callbacks, done, names | {callbacks: [*names[callbacks], {"class_path": "ImageGrids"}]})


def test_a_finished_stage_is_made_anew_with_another_clip_value(run, files, capsys):
    options = ["--refiner.trainer.gradient_clip_val=0.25"]
    assert main(["pipeline", "--config", str(files), "--output", str(run), *options]) == 0
    assert "refiner: made anew, as trainer.gradient_clip_val changed" in capsys.readouterr().err
    assert (run / "refiner.before1/model/config.json").is_file()


def test_a_run_set_aside_comes_back_if_the_new_one_does_not_begin(run, files, monkeypatch, capsys):
    kept = (run / "refiner/model/model.safetensors").read_bytes()

    def fail(self):
        raise RuntimeError("no optimizer today")

    monkeypatch.setattr(RefinerModule, "configure_optimizers", fail)
    with pytest.raises(RuntimeError, match="no optimizer today"):
        main(["pipeline", "--config", str(files), "--output", str(run), "--refiner.data.seed=5"])
    assert "the run before is there again" in capsys.readouterr().err
    assert (run / "refiner/model/model.safetensors").read_bytes() == kept
    assert not list(run.glob("*.before*"))


def test_a_stage_that_goes_wrong_in_its_first_steps_stays(run, files, monkeypatch, capsys):
    def fail(self, batch, batch_idx):
        raise UserError("photo.png cannot be read")

    monkeypatch.setattr(RefinerModule, "training_step", fail)
    shutil.rmtree(run / "refiner")
    assert main(["pipeline", "--config", str(files), "--output", str(run)]) == 2
    assert (run / "refiner/config.yaml").is_file()
    monkeypatch.undo()
    assert main(["pipeline", "--config", str(files), "--output", str(run)]) == 0
    assert "refiner: begun again" in capsys.readouterr().err


def test_signals_reach_a_stage_in_a_process_of_its_own(tmp_path):
    child = (
        "import pathlib, signal, sys, time\n"
        "def leave(number, frame): sys.exit(70 + number)\n"
        "signal.signal(signal.SIGUSR1, leave)\n"
        f"pathlib.Path({str(tmp_path / 'ready')!r}).touch()\n"
        "time.sleep(60)"
    )

    def send_when_ready():
        while not (tmp_path / "ready").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.getsignal(signal.SIGUSR1)
    threading.Thread(target=send_when_ready, daemon=True).start()
    assert run_and_forward_signals([sys.executable, "-c", child]) == 70 + signal.SIGUSR1
    assert signal.getsignal(signal.SIGUSR1) == before
    assert run_and_forward_signals([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]) == 128 + 9


def test_several_tasks_of_srun_are_refused(files, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    assert main(["pipeline", "--config", str(files), "--output", str(tmp_path / "new")]) == 2
    assert "srun started several pipelines at once" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_stage_that_did_nothing_yet_is_not_kept(run, files, capsys):
    for name in ("model", "checkpoints"):
        shutil.rmtree(run / "refiner" / name)
    assert main(["pipeline", "--config", str(files), "--output", str(run), "--refiner.data.batch_size=3"]) == 0
    assert "refiner: begun again" in capsys.readouterr().err
    assert sorted(path.name for path in run.iterdir()) == ["refiner", "tokenizer", "transformer"]
    assert len(list((run / "refiner").glob("events.*"))) == 1


class TestPipelineFile:
    def read(self, tmp_path, text):
        (tmp_path / "p.yaml").write_text(text)
        (tmp_path / "a.yaml").write_text("{}")
        return read_pipeline(tmp_path / "p.yaml")

    def test_one_file_or_several(self, tmp_path):
        stages, output = self.read(
            tmp_path, "output: runs\nstages:\n- {name: x, config: a.yaml}\n- {name: y, config: [a.yaml, a.yaml]}"
        )
        assert [(stage.name, len(stage.configs)) for stage in stages] == [("x", 1), ("y", 2)]
        assert str(output) == "runs"

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("stages: [", "cannot be read as YAML"),
            ("- a", "is not a pipeline file"),
            ("stages: []", "is not a pipeline file"),
            ("stags: []\nstages: [{name: x, config: a.yaml}]", "unknown setting 'stags' - did you mean 'stages'"),
            ("stages: [{name: x, confg: a.yaml}]", "expected `name` and `config`"),
            ("stages: [{name: x, config: b.yaml}]", "which does not exist"),
            ("stages: [{name: x, config: a.yaml}, {name: x, config: a.yaml}]", "the same name"),
        ],
    )
    def test_mistakes_are_explained(self, text, message, tmp_path):
        with pytest.raises(UserError, match=message):
            self.read(tmp_path, text)

    def test_no_output_folder(self, tmp_path):
        self.read(tmp_path, "stages: [{name: x, config: a.yaml}]")
        with pytest.raises(UserError, match="--output"):
            pipeline(tmp_path / "p.yaml")


@pytest.mark.parametrize(
    ("trainer", "own"),
    [
        ({"devices": 1}, False),
        ({"devices": "1", "accelerator": "gpu"}, False),
        ({"devices": "auto", "accelerator": "cpu"}, False),
        ({"devices": 2, "accelerator": "cpu"}, True),
        ({"devices": [0, 1]}, True),
        ({"devices": "0,1"}, True),
        ({"devices": 1, "num_nodes": 2}, True),
    ],
)
def test_several_processes_get_one_of_their_own(trainer, own):
    assert needs_own_process(trainer) is own
