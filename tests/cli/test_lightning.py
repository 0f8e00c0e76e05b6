import signal
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Callback

from restorevar import RestoreVAR
from restorevar.cli import main
from restorevar.cli.lightning import read_config
from restorevar.modules import TransformerModule
from tests.cli.tiny_pipeline import write_pipeline

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(scope="module")
def words(tmp_path_factory, tiny_photos, tiny_folders):
    folder = tmp_path_factory.mktemp("configs")
    write_pipeline(folder, tiny_photos)
    files = ["--config", str(folder / "common.yaml"), "--config", str(folder / "transformer.yaml")]
    return [*files, f"--model.initial_model={tiny_folders['tokenizer']}"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """A run that should have been refused must not write into the repository."""
    monkeypatch.chdir(tmp_path)


def refused(capsys, arguments):
    assert main(["fit", *arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("(see: restorevar") or len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"trainer": {"max_stepss": 2}}, "unknown setting 'trainer.max_stepss' - did you mean 'trainer.max_steps'?"),
        ({"modle": {"class_path": "x"}}, "did you mean 'model'?"),
        ({"data": {"batch_sizee": 2}}, "did you mean 'data.batch_size'?"),
        (
            {
                "model": {
                    "class_path": "restorevar.modules.TransformerModule",
                    "init_args": {"transformr": {"depth": 2}},
                }
            },
            "did you mean 'transformer'?",
        ),
        (
            {
                "model": {
                    "class_path": "restorevar.modules.TransformerModule",
                    "init_args": {"transformer": {"dephh": 2}},
                }
            },
            "unknown setting 'dephh' - did you mean 'depth'?",
        ),
        (
            {
                "model": {
                    "class_path": "restorevar.modules.TransformerModule",
                    "init_args": {"transformer": {"depth": "x"}},
                }
            },
            "depth: got 'x'; expected int",
        ),
        (
            {"model": {"class_path": "restorevar.modules.TransfomerModule"}},
            "'restorevar.modules' has no 'TransfomerModule' - did you mean 'restorevar.modules.TransformerModule'?",
        ),
    ],
)
def test_a_wrong_key_or_value_is_one_line_with_the_nearest_right_one(content, message, tmp_path, capsys, words):
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(content))
    assert message in refused(capsys, [*words, "--config", str(tmp_path / "wrong.yaml")])


def test_a_wrong_option_of_the_model(words, capsys):
    assert "did you mean 'scale_weighting'?" in refused(capsys, [*words, "--model.init_args.scale_weightin=tokens"])


def test_a_missing_file_names_the_nearest(tmp_path, capsys):
    (tmp_path / "stage1.yaml").write_text("{}")
    message = refused(capsys, ["--config", str(tmp_path / "stage11.yaml")])
    assert message == f"error: no file '{tmp_path / 'stage11.yaml'}' - did you mean '{tmp_path / 'stage1.yaml'}'?"


def test_nothing_given(capsys):
    assert refused(capsys, []) == "error: missing: --model; give it in a file with --config"


@pytest.mark.parametrize(
    ("verb", "config", "found", "needed"),
    [
        ("fit", "test.yaml", "RestorationModule, which does test and predict", "training_step"),
        ("validate", "test.yaml", "RestorationModule, which does test and predict", "validation_step"),
        ("test", "stage2.yaml", "TransformerModule, which does fit and validate", "test_step"),
        ("predict", "stage2.yaml", "TransformerModule, which does fit and validate", "predict_step"),
    ],
)
def test_a_module_that_cannot_do_what_is_asked(verb, config, found, needed, capsys):
    assert main([verb, "--config", str(CONFIGS / config)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"error: model.class_path is {found}; `restorevar {verb}` needs a module with {needed}")
    assert (CONFIGS.parent / line.rpartition(" ")[2]).is_file()  # the configuration that it recommends


def test_broken_yaml(tmp_path, capsys):
    (tmp_path / "broken.yaml").write_text("model: {class_path: x")
    assert "while parsing a flow mapping" in refused(capsys, ["--config", str(tmp_path / "broken.yaml")])


def test_set_up_errors_come_through_as_they_are(words, tmp_path, capsys):
    options = [*words, f"--trainer.default_root_dir={tmp_path}", "--data.image_size=64"]
    assert main(["fit", *options]) == 2
    text = capsys.readouterr().err
    assert "32" in text
    assert "64" in text
    assert "image_size" in text
    assert "Traceback" not in text


def test_a_later_file_and_the_command_line_win(words, tmp_path):
    (tmp_path / "later.yaml").write_text("trainer: {max_steps: 7}\n")
    assert read_config(["fit", *words])["trainer"]["max_steps"] == 4
    assert read_config(["fit", *words, "--config", str(tmp_path / "later.yaml")])["trainer"]["max_steps"] == 7
    assert read_config(["fit", *words, "--trainer.max_steps=9"])["trainer"]["max_steps"] == 9


def test_fit_resumes_where_it_says_and_flags_win_over_the_checkpoint(words, tmp_path):
    run = [*words, f"--trainer.default_root_dir={tmp_path}", "--trainer.limit_val_batches=0"]
    assert main(["fit", *run, "--trainer.max_steps=2"]) == 0
    options = ["--trainer.max_steps=3", "--model.init_args.label_smoothing=0.1", "--ckpt_path=last"]
    options += ["--model.init_args.optimizer.init_args.lr=2e-5", "--model.init_args.optimizer.init_args.weight_decay=0"]
    options += ["--model.init_args.reference_batch=null", "--model.init_args.schedule=ConstantSchedule"]
    assert main(["fit", *run, *options]) == 0
    saved = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)
    assert saved["global_step"] == 3
    for group in saved["optimizer_states"][0]["param_groups"]:
        assert group["lr"] == group["initial_lr"] == pytest.approx(2e-5 * group["lr_multiplier"])
        assert group["weight_decay"] == 0
    assert saved["lr_schedulers"][0]["base_lrs"] == [g["lr"] for g in saved["optimizer_states"][0]["param_groups"]]
    written = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert written["model"]["init_args"]["label_smoothing"] == 0.1
    assert (tmp_path / "model/model.safetensors").is_file()
    assert len(list(tmp_path.glob("version_*"))) == 0


def test_a_run_is_not_begun_anew_over_another_one(words, tmp_path, capsys):
    run = [*words, f"--trainer.default_root_dir={tmp_path}", "--trainer.limit_val_batches=0"]
    assert main(["fit", *run, "--trainer.max_steps=2"]) == 0
    settings = (tmp_path / "config.yaml").read_bytes()
    capsys.readouterr()
    message = refused(capsys, [*run, "--trainer.max_steps=1"])
    assert message == (
        f"error: {tmp_path}/checkpoints holds a run already; add --ckpt_path last to go on with it, or give another"
        " trainer.default_root_dir"
    )
    assert (tmp_path / "config.yaml").read_bytes() == settings
    # a folder of shards, and one that was being replaced when the run was killed, which `last` finds
    (tmp_path / "checkpoints/last.ckpt").rename(tmp_path / "kept")
    (tmp_path / "checkpoints/last-previous.ckpt").mkdir()
    assert "holds a run already" in refused(capsys, run)
    (tmp_path / "checkpoints/last-previous.ckpt").rmdir()
    # to go on from another checkpoint is no fresh start
    (tmp_path / "checkpoints/last.ckpt").write_bytes(b"another")
    assert main(["fit", *run, "--trainer.max_steps=3", f"--ckpt_path={tmp_path}/kept"]) == 0
    assert torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 3


class TermInValidation(Callback):
    """SIGTERM while nothing is trained."""

    number = signal.SIGTERM

    def on_validation_start(self, trainer, pl_module):
        signal.raise_signal(self.number)


def test_a_signal_outside_of_training_is_no_success(words, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    run = [*words, f"--trainer.default_root_dir={tmp_path}", "--trainer.max_steps=1"]
    stop = f"--trainer.callbacks+={__name__}.TermInValidation"
    assert main(["fit", *run, stop, "--trainer.num_sanity_val_steps=1"]) == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_during_the_last_validation_is_not_forgotten(words, tmp_path, monkeypatch, number):
    monkeypatch.setattr(TermInValidation, "number", number)
    run = [*words, f"--trainer.default_root_dir={tmp_path}", "--trainer.max_steps=2", "--trainer.val_check_interval=2"]
    assert main(["fit", *run, f"--trainer.callbacks+={__name__}.TermInValidation"]) == 128 + number
    assert (tmp_path / "model/config.json").is_file()  # it was trained to its end


def test_after_a_run_signals_do_again_what_they_did(words, tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
    run = [*words, f"--trainer.default_root_dir={tmp_path}", "--trainer.limit_val_batches=0", "--trainer.max_steps=1"]
    assert main(["fit", *run]) == 0
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)] == before


class StopAfterThree(Callback):
    """As `Timer` does, which `max_time` is."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.should_stop = trainer.global_step >= 3


class StopAfterValidation(Callback):
    """As `EarlyStopping` does."""

    def on_validation_end(self, trainer, pl_module):
        trainer.should_stop = trainer.global_step >= 4


@pytest.mark.parametrize(("stop", "steps"), [("StopAfterThree", 3), ("StopAfterValidation", 4)])
def test_a_run_that_is_stopped_early_can_go_on(stop, steps, words, tmp_path):
    run = [*words, "--trainer.val_check_interval=2", "--trainer.limit_val_batches=1"]
    whole, part = (f"--trainer.default_root_dir={tmp_path / name}" for name in ("whole", "part"))
    assert main(["fit", *run, whole, "--trainer.max_steps=6"]) == 0
    assert main(["fit", *run, part, "--trainer.max_steps=6", f"--trainer.callbacks+={__name__}.{stop}"]) == 0
    saved = torch.load(tmp_path / "part/checkpoints/last.ckpt", weights_only=True)
    assert saved["global_step"] == steps
    assert main(["fit", *run, part, "--trainer.max_steps=6", "--ckpt_path=last"]) == 0
    weights = [(tmp_path / name / "model/model.safetensors").read_bytes() for name in ("whole", "part")]
    assert weights[0] == weights[1]


def test_a_checkpoint_that_does_not_fit_is_one_line_and_changes_nothing(words, tiny_folders, tmp_path, capsys):
    run = [*words, f"--trainer.default_root_dir={tmp_path}", "--trainer.limit_val_batches=0"]
    assert main(["fit", *run, "--trainer.max_steps=1"]) == 0
    settings = (tmp_path / "config.yaml").read_bytes()
    more = [*run, "--trainer.max_steps=2", "--ckpt_path=last"]
    capsys.readouterr()
    wider = read_config(["fit", *words])["model"]["init_args"]["transformer"]["width"] * 2
    assert main(["fit", *more, f"--model.transformer.width={wider}"]) == 2
    assert "the checkpoint is of a model of other sizes" in capsys.readouterr().err.splitlines()[-1]
    other = ["--model=RefinerModule", f"--model.initial_model={tiny_folders['refiner']}"]
    assert main(["fit", *(word for word in more if "initial_model" not in word), *other]) == 2
    assert "the checkpoint is of TransformerModule" in capsys.readouterr().err.splitlines()[-1]
    assert main(["fit", *run, f"--ckpt_path={tmp_path}/none.ckpt"]) == 1
    assert "none.ckpt" in capsys.readouterr().err.splitlines()[-1]
    assert (tmp_path / "config.yaml").read_bytes() == settings


def test_the_card_says_which_step_was_validated(words, tmp_path):
    run = [*words, f"--trainer.default_root_dir={tmp_path}", "--trainer.val_check_interval=2"]
    assert main(["fit", *run, "--trainer.max_steps=3"]) == 0
    assert "## Validation after step 2" in (tmp_path / "model/README.md").read_text()


def test_validating_leaves_a_runs_curves_and_pictures_alone(words, tmp_path):
    run = [*words, f"--trainer.default_root_dir={tmp_path}", "--trainer.callbacks=restorevar.callbacks.ImageGrids"]
    assert main(["fit", *run, "--trainer.max_steps=2", "--trainer.val_check_interval=2"]) == 0
    kept = {path: path.read_bytes() for path in (*tmp_path.glob("events*"), tmp_path / "pictures/validation.png")}
    again = ["--seed_everything=7", "--data.seed=7", f"--ckpt_path={tmp_path}/checkpoints/last.ckpt"]
    assert main(["validate", *run, *again]) == 0
    assert {
        path: path.read_bytes() for path in (*tmp_path.glob("events*"), tmp_path / "pictures/validation.png")
    } == kept
    assert (tmp_path / "pictures/validate.png").is_file()


def test_set_ups_that_cannot_work_end_in_one_line(words, tmp_path, capsys):
    run = [*words, f"--trainer.default_root_dir={tmp_path}", "--trainer.max_steps=1", "--trainer.limit_val_batches=0"]
    assert "trainer.precision is 64-true; expected 32-true" in refused(capsys, [*run, "--trainer.precision=64-true"])
    assert "wandb" in refused(capsys, [*run, "--trainer.logger=WandbLogger"])
    average = "--trainer.callbacks+=restorevar.callbacks.ExponentialMovingAverage"
    message = refused(capsys, [*run, average, "--trainer.callbacks.decay=2"])
    assert message == "error: ExponentialMovingAverage: decay is 2.0; expected 0 to 1, such as 0.999"
    assert "model.optimizer: Invalid learning rate: -1" in refused(capsys, [*run, "--model.optimizer.lr=-1"])
    assert "export.scales has 2 numbers; expected 3" in refused(capsys, [*run, "--export.scales=[1,2]"])
    assert "total_batch.total is 0; expected 1 or more" in refused(capsys, [*run, "--total_batch.total=0"])
    assert main(["validate", *run[:-2], "--ckpt_path=best"]) == 2
    assert "ckpt_path" in capsys.readouterr().err.splitlines()[-1]


def test_a_trial_in_a_runs_folder_leaves_its_checkpoint_alone(words, tmp_path):
    kept = {"checkpoints/last.ckpt": b"a run's", "checkpoints/.last.x.part.ckpt": b"being saved", "config.yaml": b"its"}
    (tmp_path / "checkpoints").mkdir()
    for name, content in kept.items():
        (tmp_path / name).write_bytes(content)
    run = [*words, f"--trainer.default_root_dir={tmp_path}", "--trainer.limit_val_batches=0"]
    assert main(["fit", *run, "--trainer.fast_dev_run=true"]) == 0
    for name, content in kept.items():
        assert (tmp_path / name).read_bytes() == content, name
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


def test_validate_scores_a_checkpoint(words, tmp_path, capsys):
    run = [*words, f"--trainer.default_root_dir={tmp_path}"]
    assert main(["fit", *run, "--trainer.max_steps=1", "--trainer.limit_val_batches=0"]) == 0
    settings = (tmp_path / "config.yaml").read_bytes()
    assert main(["validate", *run, "--seed_everything=7", f"--ckpt_path={tmp_path}/checkpoints/last.ckpt"]) == 0
    assert "val/psnr_haze" in capsys.readouterr().out
    assert (tmp_path / "config.yaml").read_bytes() == settings
    assert yaml.safe_load((tmp_path / "config_validate.yaml").read_text())["seed_everything"] == 7


def test_a_consolidated_checkpoint_is_what_the_run_exports(words, tmp_path, capsys):
    run = [*words, f"--trainer.default_root_dir={tmp_path}", "--trainer.max_steps=1", "--trainer.limit_val_batches=0"]
    model = RestoreVAR.from_pretrained(read_config(["fit", *words])["model"]["init_args"]["initial_model"])
    larger = [side * 2 if side > 1 else 1 for side in model.scales.to_list()]
    assert main(["fit", *run, "--export.license=MINE", f"--export.scales={larger}"]) == 0
    made = ["consolidate", "--checkpoint", f"{tmp_path}/checkpoints/last.ckpt", "--output"]
    assert main([*made, str(tmp_path / "again")]) == 0
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "model" / name).read_bytes()
    # another checkpoint's model and card are not replaced without being asked, and not kept half
    card = (tmp_path / "model/README.md").read_text()
    assert main([*made, str(tmp_path / "model")]) == 2
    assert "config.json exists already" in capsys.readouterr().err
    assert (tmp_path / "model/README.md").read_text() == card
    assert main([*made, str(tmp_path / "model"), "--overwrite"]) == 0
    assert "last.ckpt`, optimizer step 1 of TransformerModule" in (tmp_path / "model/README.md").read_text()


def test_an_interrupted_run_says_so(words, tmp_path, monkeypatch, capsys):
    def interrupt(self, batch, batch_idx):
        raise KeyboardInterrupt

    monkeypatch.setattr(TransformerModule, "training_step", interrupt)
    assert main(["fit", *words, f"--trainer.default_root_dir={tmp_path}", "--trainer.limit_val_batches=0"]) == 130
    assert capsys.readouterr().err.endswith("interrupted\n")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler  # the next Ctrl-C is heard as well


def test_another_progress_bar_takes_the_place_of_ours(words, tmp_path):
    (tmp_path / "bar.yaml").write_text(
        "trainer: {enable_progress_bar: true, callbacks: [{class_path: lightning.pytorch.callbacks.TQDMProgressBar}]}"
    )
    run = [*words, "--config", str(tmp_path / "bar.yaml"), f"--trainer.default_root_dir={tmp_path}"]
    assert main(["fit", *run, "--trainer.max_steps=1", "--trainer.limit_val_batches=0"]) == 0


def test_a_later_files_list_replaces_the_earlier_one(words, tmp_path):
    overlay = {
        "data": {"val": [{"class_path": "FixedDegradations", "init_args": {"folders": ["mine"]}}]},
        "trainer": {"callbacks": [{"class_path": "restorevar.callbacks.NewestCheckpoint"}]},
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(overlay))
    config = read_config(["fit", *words, "--config", str(tmp_path / "mine.yaml")])
    (source,) = config["data"]["val"]
    assert source["class_path"] == "restorevar.datamodules.FixedDegradations"
    assert source["init_args"]["folders"] == ["mine"]
    assert source["init_args"]["limit"] is None  # common.yaml's source has 1
    assert len(source["init_args"]["kinds"]) > 1
    assert config["trainer"]["callbacks"][0]["init_args"]["every_n_steps"] is None
    # what is no list is merged as before, and + adds
    assert config["data"]["batch_size"] == 2
    assert config["model"]["init_args"]["transformer"]["depth"] == 2
    (tmp_path / "more.yaml").write_text(
        "trainer: {callbacks+: [{class_path: restorevar.callbacks.ImageGrids}]}\n"
        "model: {class_path: restorevar.modules.TransformerModule, init_args: {move_to_scales: [1, 2, 8]}}"
    )
    config = read_config(["fit", *words, "--config", str(tmp_path / "more.yaml")])
    kept, added = config["trainer"]["callbacks"]
    assert kept["init_args"]["every_n_steps"] == 1
    assert added["class_path"].endswith("ImageGrids")
    assert config["model"]["init_args"]["transformer"]["depth"] == 2
