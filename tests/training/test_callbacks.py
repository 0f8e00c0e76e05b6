"""Callbacks in real runs: leaving on a signal, NaN, the summary, the batch over all devices, what is logged."""

import logging
import os
import re
import signal
from types import SimpleNamespace

import lightning as L
import pytest
import tiny
import torch

from restorevar.callbacks import (
    Acceleration,
    NanGuard,
    Preflight,
    RequeueOnSignal,
    TotalBatch,
    TrainingMonitor,
    TrainingProgress,
    preflight,
)
from restorevar.callbacks.preflight import saved_bytes
from restorevar.callbacks.progress import Rate, duration
from restorevar.callbacks.requeue import Preempted, leave
from restorevar.errors import UserError
from restorevar.models.corruption import SelfCorrection


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("callbacks")
    tiny.make_data(folder)
    tiny.make_models(folder)
    return folder


class SignalAt(L.Callback):
    def __init__(self, step, number):
        self.step, self.number = step, number

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_saves_and_leaves_and_the_run_goes_on(folder, number):
    before = signal.getsignal(number)
    whole = tiny.fit(folder, "decoder", "signal-whole", max_steps=5)
    run = f"signal-{number}"
    with pytest.raises(Preempted) as caught:
        tiny.fit(folder, "decoder", run, max_steps=5, callbacks=[SignalAt(2, number), RequeueOnSignal()])
    assert caught.value.signal_number == number
    assert signal.getsignal(number) == before
    rest = tiny.fit(folder, "decoder", f"{run}-rest", max_steps=5, resume=run)
    assert rest["losses"] == whole["losses"][3:]
    assert all(torch.equal(value, rest["weights"][name]) for name, value in whole["weights"].items())


def test_a_trial_leaves_signals_alone():
    """It has nothing to save, and the folder's checkpoint may be a real run's."""
    before = [signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGTERM)]
    callback = RequeueOnSignal()
    callback.on_train_start(SimpleNamespace(fast_dev_run=1), None)
    assert [signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGTERM)] == before


def test_only_usr1_is_queued_again_and_by_the_first_process_alone(tmp_path, monkeypatch):
    asked = []
    answer = SimpleNamespace(returncode=0, stderr="")
    monkeypatch.setattr("subprocess.run", lambda command, **_: asked.append(command) or answer)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    monkeypatch.setenv("SLURM_PROCID", "1")
    assert leave(Preempted(signal.SIGUSR1, tmp_path)) == 0
    assert leave(Preempted(signal.SIGTERM, tmp_path)) == 128 + signal.SIGTERM
    assert asked == []
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert leave(Preempted(signal.SIGUSR1, tmp_path)) == 0
    answer.returncode = 1
    assert leave(Preempted(signal.SIGUSR1, tmp_path)) == 128 + signal.SIGUSR1
    assert asked == [["scontrol", "requeue", "7"]] * 2

    def missing(*_, **__):
        raise FileNotFoundError(2, "No such file or directory", "scontrol")

    monkeypatch.setattr("subprocess.run", missing)
    assert leave(Preempted(signal.SIGUSR1, tmp_path)) == 128 + signal.SIGUSR1
    monkeypatch.delenv("SLURM_JOB_ID")
    assert leave(Preempted(signal.SIGUSR1, tmp_path)) == 128 + signal.SIGUSR1


class Spoil(L.Callback):
    """Makes the loss NaN from a step on."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 2:
            batch["clean"][0, 0, 0, 0] = float("nan")


def test_nan_names_stage_step_and_files_and_is_never_saved(folder):
    with pytest.raises(UserError, match=r"TokenizerModule .* after step 3 of epoch 0 .*\d{3}\.png, .*\d{3}\.png"):
        tiny.fit(folder, "decoder", "nan", max_steps=5, every_n_steps=1, callbacks=[Spoil(), NanGuard()])
    newest = torch.load(folder / "nan" / "checkpoints" / "last.ckpt", weights_only=True)
    assert newest["global_step"] == 2
    assert all(torch.isfinite(value).all() for value in newest["state_dict"].values() if value.is_floating_point())


def test_losses_are_looked_at_over_epochs_that_are_shorter_than_the_interval(monkeypatch):
    looked = []
    trainer = SimpleNamespace(
        world_size=2, global_step=0, current_epoch=0, global_rank=0,
        strategy=SimpleNamespace(reduce_boolean_decision=lambda bad, all: looked.append(bad) or bad),
    )  # fmt: skip
    guard, module = NanGuard(5), SimpleNamespace(device=torch.device("cpu"))
    for count in range(4):
        guard.on_train_batch_end(trainer, module, {"loss": torch.tensor(1.0)}, {"path": ["a.png"]}, count % 3)
    with pytest.raises(UserError, match=r"not a number .* for the batch c\.png"):
        guard.on_train_batch_end(trainer, module, {"loss": torch.tensor(float("nan"))}, {"path": ["c.png"]}, 1)
    assert looked == [True]  # after the fifth batch, which is the second of an epoch of three
    guard.on_train_batch_end(trainer, module, {"loss": torch.tensor(float("inf"))}, {"path": ["c.png"]}, 0)
    with pytest.raises(UserError, match="not a number"):
        guard.on_train_end(trainer, module)


def test_summary_before_the_first_step_and_the_time_after_some(folder, caplog):
    with caplog.at_level(logging.INFO, logger="restorevar"):
        tiny.fit(folder, "transformer", "preflight", max_steps=4, accumulate=2, callbacks=[Preflight(3)])
    text = caplog.text
    assert re.search(r"trained +transformer 0\.\d+ M; frozen 0\.\d+ M parameters", text)
    assert re.search(r"batch +8 = 1 x 4 x 2 accumulated; highest learning rate 0\.001", text)
    assert re.search(r"steps +4 in all, 3 an epoch", text)
    assert "samples   24 an epoch: low_light 24" in text
    assert re.search(r"memory +about \d+\.\d+ GiB", text)
    assert re.search(r"time: .* an epoch, .* for the run", text)


@pytest.mark.parametrize("native", [True, False])
def test_emulated_bfloat16_is_warned_of(native, folder, caplog, monkeypatch):
    monkeypatch.setattr(preflight, "computes_bfloat16", lambda device: native)
    with caplog.at_level(logging.INFO, logger="restorevar"):
        tiny.fit(folder, "transformer", f"bf16_{native}", max_steps=1, precision="bf16-mixed", callbacks=[Preflight()])
        tiny.fit(folder, "transformer", f"float32_{native}", max_steps=1, callbacks=[Preflight()])
    warnings = [line for line in caplog.text.splitlines() if "bfloat16 is emulated" in line]
    assert len(warnings) == (0 if native else 1)
    assert all(line.endswith("add --trainer.precision 32-true") for line in warnings)


def test_activations_that_cannot_be_counted_are_not_counted_as_none(folder, caplog):
    with caplog.at_level(logging.INFO, logger="restorevar"):
        tiny.fit(folder, "detail", "uncounted", max_steps=1, callbacks=[Preflight()])
        tiny.fit(folder, "transformer", "counted", max_steps=1, callbacks=[Preflight()])
    fourth, second = (line for line in caplog.text.splitlines() if line.startswith("  memory"))
    assert re.search(r"training state [\d.]+, encoder [\d.]+; activations not counted\)", fourth)
    assert re.search(r"training state [\d.]+, activations [\d.]+\)", second)


def test_a_crop_of_another_size_stops_before_the_first_step(folder, monkeypatch):
    monkeypatch.setattr(tiny, "SIDE", 20)
    with pytest.raises(UserError, match=r"data\.image_size is 20 x 20, but the model's own size is 16 x 16"):
        tiny.fit(folder, "transformer", "size", callbacks=[Preflight()])


def test_saved_bytes_are_those_that_autograd_keeps():
    network = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    # the first layer keeps its input, ReLU its output, which is the second layer's input as well
    assert saved_bytes(network, (3, 8)) == 4 * 3 * (8 + 16)


def test_layers_that_are_to_be_compiled_are_estimated_as_they_are_written():
    network = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    network[0].compile()
    assert saved_bytes(network, (3, 8)) == 4 * 3 * (8 + 16)


def test_accumulation_follows_the_total_batch(folder):
    trainer = SimpleNamespace(datamodule=SimpleNamespace(batch_size=6), world_size=2, accumulate_grad_batches=1)
    TotalBatch(48).setup(trainer, None, "fit")
    assert trainer.accumulate_grad_batches == 4
    trainer.world_size = 8
    with pytest.raises(UserError, match=r"accumulate_grad_batches is 4.*needs 1"):
        TotalBatch(48).setup(trainer, None, "fit")
    trainer.world_size = 16
    with pytest.raises(UserError, match=r"16 processes x 6 a batch = 96 does not divide it; .*one of 1, 3"):
        TotalBatch(48).setup(trainer, None, "fit")
    trainer.world_size = 5
    with pytest.raises(UserError, match="use fewer devices"):
        TotalBatch(48).setup(trainer, None, "fit")


class Logged(L.Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.names = set(trainer.callback_metrics)
        self.norm = trainer.callback_metrics["train/gradient_norm"]


def test_monitor_logs_norm_rate_speed_and_memory(folder):
    logged = Logged()
    result = tiny.fit(folder, "refiner", "monitor", max_steps=2, callbacks=[TrainingMonitor(), logged])
    assert {"train/learning_rate", "train/images_per_second", "train/peak_memory_gib"} <= logged.names
    first = torch.cat([gradient.flatten() for gradient in result["gradients"].values()]).norm()
    assert 0 < float(logged.norm) < 10 * float(first)


@pytest.mark.parametrize("stage", ["decoder", "transformer", "refiner"])
def test_activation_checkpointing_changes_nothing(folder, stage):
    settings = {"max_steps": 2, "drop_path": 0.3}
    plain = tiny.fit(folder, stage, "plain", **settings)
    spared = tiny.fit(folder, stage, "spared", callbacks=[Acceleration(activation_checkpointing=True)], **settings)
    assert spared["losses"] == plain["losses"]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["decoder", "transformer", "refiner"])
def test_compilation_changes_rounding_only(folder, stage):
    plain = tiny.fit(folder, stage, "plain", max_steps=3)
    compiled = tiny.fit(folder, stage, "compiled", max_steps=3, callbacks=[Acceleration(compile=True)])
    assert compiled["losses"] == pytest.approx(plain["losses"], rel=1e-4)


def test_training_on_own_mistakes_changes_the_loss_and_off_is_off(folder):
    plain = tiny.fit(folder, "transformer", "plain", max_steps=2)
    off = tiny.fit(folder, "transformer", "off", max_steps=2, options={"self_correction": SelfCorrection(0.0)})
    on = tiny.fit(folder, "transformer", "on", max_steps=2, options={"self_correction": SelfCorrection(1.0, 1.0, 4)})
    assert off["losses"] == plain["losses"]
    assert on["losses"] != plain["losses"]


def test_rate_leaves_pauses_out_of_the_speed_but_not_out_of_the_time_left():
    rate = Rate(window=10)
    for now in (0.0, 1.0, 2.0):
        rate.batch_end(now)
    rate.pause()
    for now in (12.0, 13.0):
        rate.batch_end(now)
    assert rate.lately == pytest.approx(1.0)
    assert rate.seconds_for(4, 13.0) == pytest.approx(4 * 13 / 4)


def test_durations_are_readable():
    assert [duration(s) for s in (7, 600, 11100, 400000)] == ["7 s", "10 min", "3 h 05 min", "4 d 15 h"]


def test_without_a_terminal_progress_is_lines_in_the_log(folder, caplog, monkeypatch):
    monkeypatch.setattr(tiny.L, "Trainer", lambda **options: L_TRAINER(**options | {"enable_progress_bar": True}))
    with caplog.at_level(logging.INFO, logger="restorevar"):
        tiny.fit(folder, "decoder", "progress", max_steps=3, callbacks=[TrainingProgress(log_minutes=0.0)])
    assert re.search(r"epoch 0, step 3 of 3: loss \d\.\d+, .* images/s, .* left", caplog.text)


L_TRAINER = L.Trainer
