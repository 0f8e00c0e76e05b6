"""FSDP2 on two processes (gloo): the numbers of DDP, resumed on one process, consolidated."""

import shutil

import pytest
import tiny
import torch
from test_distributed import distance, launch

from restorevar import RestoreVAR
from restorevar.callbacks import Preflight
from restorevar.cli import main
from restorevar.errors import UserError

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    tiny.make_data(folder)
    tiny.make_models(folder)
    return folder


@pytest.fixture(scope="module")
def results(folder):
    common = {"stage": "transformer", "devices": 2, "batch_size": 2, "max_steps": 5}
    return launch(
        folder,
        {
            "ddp": common | {"run": "ddp", "strategy": "ddp"},
            "fsdp": common | {"run": "fsdp", "strategy": "fsdp"},
            "half": common | {"run": "half", "strategy": "fsdp", "until": 2, "every_n_steps": 2},
            "refiner": common | {"run": "refiner", "strategy": "fsdp", "stage": "refiner", "max_steps": 2},
        },
    )[0]


def test_losses_and_weights_are_those_of_ddp(results):
    assert len(results["fsdp"]["losses"]) == 5
    assert results["fsdp"]["losses"] == pytest.approx(results["ddp"]["losses"], rel=1e-4)
    weights = {
        name: value.reshape(results["ddp"]["weights"][name].shape) for name, value in results["fsdp"]["weights"].items()
    }
    assert distance(weights, results["ddp"]["weights"]) < 1e-5
    assert results["refiner"]["losses"][1] < results["refiner"]["losses"][0]


def test_resumed_on_one_process(folder, results):
    """Half of the processes, twice the batch: the same remaining samples, the same losses."""
    shards = [path.name for path in (folder / "half" / "checkpoints" / "last.ckpt").glob("*.distcp")]
    assert len(shards) == 2
    rest = launch(
        folder,
        {
            "rest": {
                "stage": "transformer",
                "run": "rest",
                "strategy": "fsdp",
                "batch_size": 4,
                "max_steps": 5,
                "resume": "half",
            }
        },
        processes=1,
    )[0]["rest"]
    assert rest["losses"] == pytest.approx(results["fsdp"]["losses"][2:], rel=1e-4)
    assert distance(rest["weights"], results["fsdp"]["weights"]) < 1e-5


def test_consolidated_weights_are_the_trained_ones(folder, results):
    for run in ("fsdp", "ddp"):
        checkpoint = folder / run / "checkpoints" / "last.ckpt"
        assert main(["consolidate", "--checkpoint", str(checkpoint), "--output", str(folder / f"{run}-model")]) == 0
        model = RestoreVAR.from_pretrained(folder / f"{run}-model")
        trained = results[run]["weights"]
        assert all(
            torch.equal(value.flatten(), trained[f"model.{name}"].flatten())
            for name, value in model.state_dict().items()
        )


def test_a_folder_of_which_a_part_is_missing_is_one_line(folder, results, tmp_path, capsys):
    shutil.copytree(folder / "fsdp/checkpoints/last.ckpt", tmp_path / "part.ckpt")
    next((tmp_path / "part.ckpt").glob("*.distcp")).unlink()
    assert main(["consolidate", "--checkpoint", str(tmp_path / "part.ckpt"), "--output", str(tmp_path / "m")]) == 2
    assert "part.ckpt cannot be read" in capsys.readouterr().err.splitlines()[-1]


def test_a_checkpoint_that_cannot_be_read_is_one_line(tmp_path, capsys):
    assert main(["consolidate", "--checkpoint", str(tmp_path / "none"), "--output", str(tmp_path / "m")]) == 2
    (tmp_path / "broken").mkdir()
    assert main(["consolidate", "--checkpoint", str(tmp_path / "broken"), "--output", str(tmp_path / "m")]) == 2
    torch.save({"state_dict": {}, "object": Preflight()}, tmp_path / "foreign.ckpt")
    assert main(["consolidate", "--checkpoint", str(tmp_path / "foreign.ckpt"), "--output", str(tmp_path / "m")]) == 2
    torch.save([1, 2], tmp_path / "list.ckpt")
    assert main(["consolidate", "--checkpoint", str(tmp_path / "list.ckpt"), "--output", str(tmp_path / "m")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert all(line.startswith("error: ") for line in lines)
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ("decoder", "stage 1 cannot be split"),
        ("detail", "stage 4 cannot be split"),
        ("gate", "stage 5 has nothing to split"),
        ("transformer", "averaged weights"),
    ],
)
def test_what_does_not_go_with_split_weights_stops(stage, message):
    from types import SimpleNamespace

    from restorevar.callbacks import ExponentialMovingAverage
    from restorevar.strategies import ShardedStrategy

    trainer = SimpleNamespace(
        precision="32-true",
        strategy=ShardedStrategy(),
        callbacks=[ExponentialMovingAverage()] if stage == "transformer" else [],
    )
    module = tiny.make_module(tiny.Path("unused"), stage, "adamw")
    with pytest.raises(UserError, match=message):
        Preflight().setup(trainer, module, "fit")


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_on_gpus_losses_are_those_of_ddp(folder, precision):
    """NCCL, all GPUs there are (one will do): stages 2 and 3, saved and resumed."""
    count = torch.cuda.device_count()
    common = {"devices": count, "accelerator": "gpu", "precision": precision, "batch_size": 2, "max_steps": 5}
    runs = {}
    for stage in ("transformer", "refiner"):
        for strategy in ("ddp", "fsdp"):
            name = f"{stage}-{strategy}-{precision}"
            runs[name] = common | {"stage": stage, "run": name, "strategy": strategy}
        half, rest = f"{stage}-half-{precision}", f"{stage}-rest-{precision}"
        sharded = common | {"stage": stage, "strategy": "fsdp"}
        runs[half] = sharded | {"run": half, "until": 2, "every_n_steps": 2}
        runs[rest] = sharded | {"run": rest, "resume": half}
    found = launch(folder, runs, processes=count)[0]
    relative = 1e-4 if precision == "32-true" else 2e-2
    for stage in ("transformer", "refiner"):
        split = found[f"{stage}-fsdp-{precision}"]["losses"]
        assert split == pytest.approx(found[f"{stage}-ddp-{precision}"]["losses"], rel=relative)
        assert found[f"{stage}-rest-{precision}"]["losses"] == pytest.approx(split[2:], rel=relative)
