import dataclasses
import logging

import pytest
import torch

from restorevar.callbacks import NewestCheckpoint
from restorevar.errors import UserError
from restorevar.models import DetailConfig, GateConfig, RestoreVAR
from restorevar.models.gate import STATISTICS_COUNT, Correction, PhotoGate
from restorevar.modules import DetailModule, GateModule
from restorevar.modules.gate import blend_error, blend_loss, error_terms
from restorevar.optimization import ConstantSchedule
from tests.modules.stages import changed, fit, make_batch, snapshot

GATE = GateConfig(hidden=4)


def make_module(tiny_folders, **settings) -> GateModule:
    module = GateModule(initial_model=str(tiny_folders["refiner"]), gate=GATE, **settings)
    module.configure_model()
    return module


def test_the_error_of_a_blend_follows_from_fifteen_numbers():
    degraded, filtered, clean = (torch.rand(4, 3, 16, 16, dtype=torch.float64) for _ in range(3))
    drawn = torch.rand(4, 1), torch.randn(4, 3), torch.randn(4, 1)
    correction = Correction(*(value.double() for value in drawn))
    gate = PhotoGate(dataclasses.replace(GATE, filter_radius=0))
    expected = (gate.blend(filtered, degraded, correction, 1.0) - clean).square().mean((1, 2, 3))
    torch.testing.assert_close(blend_error(error_terms(degraded, filtered, clean), correction), expected)


def test_what_makes_a_photo_worse_counts_more():
    torch.manual_seed(0)
    clean = torch.rand(2, 3, 16, 16)
    noise = 0.1 * torch.randn(clean.shape)
    # the first photo becomes better, the second worse
    degraded, filtered = clean + noise * torch.tensor([1.0, 0.5]).view(2, 1, 1, 1), clean + noise.flip(3) * 0.7
    gate = PhotoGate(GATE).eval()
    torch.nn.init.constant_(gate.fc2.bias, -50.0)
    torch.nn.init.zeros_(gate.fc2.bias[1:])
    rows = torch.cat([error_terms(degraded, filtered, clean), torch.zeros(2, STATISTICS_COUNT)], dim=1)
    before, after = (10 * (photos - clean).square().mean((1, 2, 3)).log10() for photos in (degraded, filtered))
    for harm in (0.0, 0.3):
        expected = after.mean() + harm * (after - before)[1] / 2
        torch.testing.assert_close(blend_loss(gate, rows, 0.0, harm), expected, rtol=1e-4, atol=1e-4)


def test_the_gate_alone_learns_to_keep_what_an_untrained_model_would_spoil(tiny_folders, tiny_photos, tmp_path):
    module = make_module(tiny_folders, optimizer=lambda groups: torch.optim.AdamW(groups, 0.05))
    before, degraded = snapshot(module.model), make_batch()["degraded"]
    plain = module.model.eval().generate(degraded, fidelity=0.0).image
    trainer = fit(module, tiny_photos, tmp_path, steps=25, limit_val_batches=1.0, val_check_interval=25)
    assert all(name.startswith("gate.") for name in changed(before, module.model))
    assert torch.equal(module.model.eval().generate(degraded, fidelity=0.0).image, plain)
    logged = trainer.callback_metrics
    assert float(logged["val/psnr"]) > float(logged["val/psnr_ungated"]) + 1
    assert len(module._memory) == 100


def test_a_resumed_run_remembers(tiny_folders, tiny_photos, tmp_path):
    def make_optimizer(groups):
        return torch.optim.SGD(groups, 0.01)

    def run(name, steps, resume=None):
        torch.manual_seed(0)  # the same new gate
        module = make_module(tiny_folders, optimizer=make_optimizer, schedule=ConstantSchedule())
        newest = NewestCheckpoint(every_n_steps=2, folder=str(tmp_path / name))
        fit(module, tiny_photos, tmp_path, steps, [newest], resume, enable_checkpointing=True)
        return module

    whole = run("whole", 4)
    run("half", 2)
    resumed = run("half", 4, tmp_path / "half" / "last.ckpt")
    assert torch.equal(resumed._memory, whole._memory)
    left, right = resumed.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_one_photo_at_a_time(tiny_folders, tiny_photos, tmp_path):
    module = make_module(tiny_folders)
    module.train()
    module.log = lambda *arguments, **settings: None
    module.all_gather = lambda tensor: tensor
    assert torch.isfinite(module.training_step(make_batch(size=1), 0)["loss"])


def test_two_processes_remember_what_one_would_and_in_its_order(tiny_folders):
    module = make_module(tiny_folders)
    module.train()
    module.log = lambda *arguments, **settings: None
    module.all_gather = lambda tensor: tensor
    module.training_step(make_batch(size=4), 0)
    alone, module._memory = module._memory, torch.empty(0)
    # samples are dealt out in turn: 0 and 2 to this process, 1 and 3 to the other
    module.all_gather = lambda tensor: torch.stack([alone[0::2], alone[1::2]])
    module.training_step(make_batch(size=2), 0)
    assert torch.equal(module._memory, alone)


def test_other_stages_leave_the_gate_out_and_say_so(tiny_folders, tmp_path, caplog):
    make_module(tiny_folders).model.save_pretrained(tmp_path / "gated")
    assert RestoreVAR.from_pretrained(tmp_path / "gated").gate is not None
    module = DetailModule(initial_model=str(tmp_path / "gated"), detail=DetailConfig(width=16, blocks=1))
    with caplog.at_level(logging.INFO):
        module.configure_model()
    assert module.model.gate is None
    assert module.model.config.gate is None
    assert "the gate of" in caplog.text
    again = GateModule(initial_model=str(tmp_path / "gated"))
    again.configure_model()
    assert again.model.gate is not None


def test_without_sizes_or_transformer(tiny_folders):
    with pytest.raises(UserError, match=r"no gate and model\.gate gives no sizes"):
        GateModule(initial_model=str(tiny_folders["refiner"])).configure_model()
    with pytest.raises(UserError, match="holds a tokenizer only"):
        GateModule(initial_model=str(tiny_folders["tokenizer"]), gate=GATE).configure_model()
