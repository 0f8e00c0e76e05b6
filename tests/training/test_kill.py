"""Killed at any moment, a run goes on and ends with the checkpoint of an uninterrupted one."""

import multiprocessing
import signal

import pytest
import tiny
import torch

STEPS = 8
# (stage, step, where); one run a stage is killed and restarted again and again
MOMENTS = [
    ("decoder", 1, "before"),
    ("decoder", 2, "half"),
    ("decoder", 4, "unnamed"),
    ("decoder", 6, "gradients"),
    ("decoder", 8, "unsynced"),
    ("scratch", 2, "gradients"),
    ("scratch", 3, "half"),
    ("scratch", 3, "named"),
    ("scratch", 6, "unsynced"),
    ("scratch", 7, "before"),
    ("transformer", 1, "half"),
    ("transformer", 3, "before"),
    ("transformer", 5, "named"),
    ("transformer", 6, "unnamed"),
    ("transformer", 8, "gradients"),
    ("refiner", 2, "unsynced"),
    ("refiner", 4, "gradients"),
    ("refiner", 5, "half"),
    ("refiner", 7, "before"),
    ("refiner", 8, "named"),
]


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_twenty_moments(tmp_path):
    """20 kills over the four trainings, 11 of them inside a save."""
    tiny.make_data(tmp_path)
    tiny.make_models(tmp_path)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tiny"])  # children need not import torch and Lightning again

    def run(*arguments):
        process = context.Process(target=tiny.fit_or_die, args=(tmp_path, *arguments, STEPS))
        process.start()
        process.join(timeout=300)
        return process.exitcode

    for stage in tiny.STAGES:
        assert run(stage, f"{stage}-whole", None, "") == 0
        last = 0
        for _, step, where in (moment for moment in MOMENTS if moment[0] == stage):
            assert run(stage, stage, step, where) == -signal.SIGKILL, (stage, step, where)
            newest = tmp_path / stage / "checkpoints" / "last.ckpt"
            reached = torch.load(newest, weights_only=True)["global_step"] if newest.exists() else 0
            assert reached == (step if where == "named" else step - 1), (stage, step, where)
            assert reached >= last
            last = reached
        assert run(stage, stage, None, "") == 0
        assert not [path for path in (tmp_path / stage / "checkpoints").iterdir() if path.name != "last.ckpt"]
        whole, killed = (
            torch.load(tmp_path / run / "checkpoints" / "last.ckpt", weights_only=True)
            for run in (f"{stage}-whole", stage)
        )
        assert whole["global_step"] == killed["global_step"] == STEPS
        for part in ("current_model_state", "state_dict", "averaging_state", "optimizer_states", "lr_schedulers"):
            expected, found = dict(leaves(whole[part])), dict(leaves(killed[part]))
            assert expected.keys() == found.keys()
            assert not [name for name, value in expected.items() if not same(value, found[name])], (stage, part)


def leaves(value, name=""):
    """(name, value) of everything in nested containers."""
    if isinstance(value, dict | list | tuple):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(inner, f"{name}.{key}")
    else:
        yield name, value


def same(first, second):
    return torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second
