import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from restorevar.errors import UserError
from restorevar.models import RestoreVAR, ScaleSchedule
from restorevar.modules import TransformerModule
from restorevar.modules.transformer import token_weights
from tests.conftest import TRANSFORMER
from tests.modules.stages import changed, fit, make_batch, snapshot


@pytest.fixture
def module(tiny_folders):
    module = TransformerModule(initial_model=str(tiny_folders["transformer"]))
    module.configure_model()
    return module


@pytest.mark.parametrize(
    ("weighting", "sums"), [("tokens", [1.0, 4.0, 16.0]), ("inverse_side", [1.0, 2.0, 4.0]), ("scales", [1.0] * 3)]
)
def test_weights_of_scales(weighting, sums):
    schedule = ScaleSchedule((1, 2, 4))
    weights = token_weights(schedule, weighting)
    assert weights.mean() == pytest.approx(1.0)
    found = torch.stack([weights[schedule.span(scale)].sum() for scale in range(3)])
    assert torch.allclose(found / found[0], torch.tensor(sums))


def test_the_loss_is_the_cross_entropy_of_the_models_own_logits(module):
    batch = make_batch()
    model = module.model
    logits = model.teacher_forced(batch["clean"], batch["degraded"])
    tokens = model.tokenizer.quantizer.quantize(model.tokenizer.encode(batch["clean"]), model.scales).tokens
    expected = F.cross_entropy(logits.flatten(0, 1), tokens.flatten())
    loss, _, found = module._shared_step(*module.encode_pair(batch))
    assert torch.equal(found, tokens)
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)


def test_an_untrained_model_guesses(tiny_folders):
    module = TransformerModule(initial_model=str(tiny_folders["tokenizer"]), transformer=TRANSFORMER)
    module.configure_model()
    loss, _, _ = module._shared_step(*module.encode_pair(make_batch()))
    assert float(loss) == pytest.approx(math.log(16), rel=0.05)


def test_gains_of_0_from_scratch_are_warned_of(tiny_folders, caplog):
    for folder, gain, warned in (("tokenizer", 1.0, False), ("transformer", 0.0, False), ("tokenizer", 0.0, True)):
        sizes = dataclasses.replace(TRANSFORMER, gain_init=gain) if folder == "tokenizer" else None
        TransformerModule(initial_model=str(tiny_folders[folder]), transformer=sizes).configure_model()
        assert ("starves the condition" in caplog.text) is warned


def test_only_the_transformer_learns(module, tiny_photos, tmp_path):
    before = snapshot(module.model)
    fit(module, tiny_photos, tmp_path)
    names = changed(before, module.model)
    assert names
    assert all(name.startswith("transformer.") for name in names)


def test_it_learns_a_batch_by_heart(module):
    batch = make_batch(size=2)
    module.train()
    optimizer = torch.optim.AdamW(module.model.transformer.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        loss, _, _ = module._shared_step(*module.encode_pair(batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.5 * losses[0]


def test_validation_is_by_roll_out(module, tiny_photos, tmp_path):
    trainer = fit(module, tiny_photos, tmp_path, steps=2, limit_val_batches=1.0, val_check_interval=2)
    logged = trainer.callback_metrics
    for name in ("val/psnr", "val/ssim", "val/gain", "val/psnr_haze", "val/gain_low_light", "val/accuracy_scale_3"):
        assert name in logged, name
    assert "val/psnr_rain" not in logged  # no such photo among them
    # scored on what `generate` makes, not on teacher-forced logits
    scored = []
    data = trainer.datamodule.val_dataloader()
    for batch in data:
        image = module.model.generate(batch["degraded"]).image
        error = (image - (batch["clean"] + 1) / 2).square().mean((1, 2, 3))
        scored += (-10 * error.log10()).tolist()
    mean = sum(scored) / len(scored)
    assert float(logged["val/psnr"]) == pytest.approx(mean, abs=0.02)


def test_a_start_as_a_copy_is_for_new_transformers_with_a_local_condition(tiny_folders):
    config = dataclasses.replace(TRANSFORMER, width=32, local_condition=True)
    module = TransformerModule(initial_model=str(tiny_folders["tokenizer"]), transformer=config, copy_start=True)
    module.configure_model()
    assert float(module.model.transformer.block_sequence[0].mlp.fc2.weight.detach().abs().sum()) == 0.0
    going_on = TransformerModule(initial_model=str(tiny_folders["transformer"]), copy_start=True)
    going_on.configure_model()
    assert float(going_on.model.transformer.block_sequence[0].mlp.fc2.weight.detach().abs().sum()) > 0.0
    without = TransformerModule(initial_model=str(tiny_folders["tokenizer"]), transformer=TRANSFORMER, copy_start=True)
    with pytest.raises(UserError, match="local_condition; set it to true"):
        without.configure_model()


def test_a_tokenizer_alone_needs_sizes(tiny_folders):
    module = TransformerModule(initial_model=str(tiny_folders["tokenizer"]))
    with pytest.raises(UserError, match=r"no transformer and model\.transformer gives no sizes"):
        module.configure_model()


def test_the_stage_before_is_needed():
    with pytest.raises(UserError, match=r"model\.initial_model"):
        TransformerModule().configure_model()


def test_checkpoints_hold_the_whole_model(module, tiny_photos, tmp_path):
    trainer = fit(module, tiny_photos, tmp_path, steps=1)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    saved = torch.load(tmp_path / "one.ckpt", weights_only=True)["state_dict"]
    assert {name.removeprefix("model.") for name in saved} == set(RestoreVAR(module.model.config).state_dict())
