import logging

import pytest
import torch

from restorevar.errors import UserError
from restorevar.models import DetailConfig, RestoreVAR, TransformerConfig
from restorevar.modules import DetailModule, RefinerModule, TransformerModule
from restorevar.modules.base import grow, load_initial, sample_shares, scale_accuracy
from restorevar.optimization import ConstantSchedule
from tests.conftest import REFINER, TRANSFORMER
from tests.modules.stages import fit, make_batch


class TestGrow:
    def test_old_parts_keep_their_weights(self, tiny_folders):
        model = RestoreVAR.from_pretrained(tiny_folders["tokenizer"])
        grown = grow(model, "transformer", TRANSFORMER)
        assert grown.transformer is not None
        for name, value in model.state_dict().items():
            assert torch.equal(grown.state_dict()[name], value)

    def test_the_same_sizes_go_on_with_the_weights(self, tiny_folders):
        model = RestoreVAR.from_pretrained(tiny_folders["refiner"])
        assert grow(model, "transformer", TRANSFORMER) is model
        assert grow(model, "refiner", REFINER) is model
        assert grow(model, "refiner", None) is model

    def test_a_part_that_is_nowhere_is_asked_for(self, tiny_folders):
        model = RestoreVAR.from_pretrained(tiny_folders["refiner"])
        with pytest.raises(UserError, match=r"no detail and model\.detail gives no sizes"):
            grow(model, "detail", None)

    def test_other_sizes_are_refused_by_name(self, tiny_folders):
        model = RestoreVAR.from_pretrained(tiny_folders["refiner"])
        with pytest.raises(UserError, match="depth 2 against 3"):
            grow(model, "transformer", TransformerConfig(depth=3, width=16, heads=2, gain_init=1.0, class_count=1))


class TestLoadInitial:
    def test_nothing_given(self):
        with pytest.raises(UserError, match=r"stage 2 starts from a trained model.*model\.initial_model"):
            load_initial(None, 2)

    def test_a_runs_folder_is_not_its_model_folder(self, tiny_folders, tmp_path):
        RestoreVAR.from_pretrained(tiny_folders["tokenizer"]).save_pretrained(tmp_path / "run" / "model")
        with pytest.raises(UserError, match="expected the model folder in it"):
            load_initial(str(tmp_path / "run"), 2)

    def test_a_folder_that_is_not_there(self):
        with pytest.raises(UserError, match=r"no model '\./nowhere'"):
            load_initial("./nowhere", 2)


def test_frozen_parts_stay_in_evaluation_mode_whatever_happens(tiny_folders):
    module = RefinerModule(initial_model=str(tiny_folders["refiner"]))
    module.configure_model()
    for _ in range(2):
        module.train()
        assert module.model.refiner.training
        assert not module.model.tokenizer.training
        assert not any(part.training for part in module.model.transformer.modules())
        module.eval()
        assert not module.model.refiner.training
    frozen = [*module.model.tokenizer.parameters(), *module.model.transformer.parameters()]
    assert not any(parameter.requires_grad for parameter in frozen)
    assert all(parameter.requires_grad for parameter in module.model.refiner.parameters())


def test_building_twice_keeps_the_model(tiny_folders):
    module = RefinerModule(initial_model=str(tiny_folders["refiner"]))
    module.configure_model()
    model = module.model
    module.configure_model()
    assert module.model is model


def test_a_model_moves_to_another_schedule(tiny_folders):
    module = RefinerModule(str(tiny_folders["refiner"]), move_to_scales=(1, 3, 8))
    module.configure_model()
    assert module.model.image_size == (64, 64)
    assert module.model.scales.to_list() == [1, 3, 8]


def test_photos_of_another_size_are_refused(tiny_folders):
    module = TransformerModule(initial_model=str(tiny_folders["transformer"]))
    module.configure_model()
    with pytest.raises(UserError, match=r"64 x 64 pixels; this model's own size is 32 x 32.*data\.image_size"):
        module.check_batch(make_batch(side=64))


def test_choices_hang_on_the_sample_and_the_step_alone():
    batch = make_batch(size=8)
    whole = sample_shares(batch, 5, "salt")
    parts = [
        sample_shares({**batch, "path": batch["path"][rank::2], "kind": batch["kind"][rank::2]}, 5, "salt")
        for rank in range(2)
    ]
    assert torch.equal(torch.stack(parts, 1).flatten(), whole)
    assert not torch.equal(whole, sample_shares(batch, 6, "salt"))
    assert not torch.equal(whole, sample_shares(batch, 5, "pepper"))


def test_shares_are_uniform():
    batch = {"path": [f"{index}.png" for index in range(4000)], "kind": ["haze"] * 4000}
    shares = sample_shares(batch, 0, "x")
    assert float(shares.min()) >= 0
    assert float(shares.max()) < 1
    assert float((shares < 0.3).float().mean()) == pytest.approx(0.3, abs=0.03)


def test_accuracy_per_scale(tiny_folders):
    scales = RestoreVAR.from_pretrained(tiny_folders["tokenizer"]).scales
    tokens = torch.arange(2 * scales.tokens).view(2, -1) % 16
    logits = torch.nn.functional.one_hot(tokens, 16).float()
    logits[:, scales.span(1)] = logits[:, scales.span(1)].roll(1, -1)
    assert scale_accuracy(logits, tokens, scales).tolist() == [1.0, 0.0, 1.0]


@pytest.mark.parametrize(("device", "dtype"), [("mps", torch.float32), ("cpu", torch.float64)])
def test_scores_are_summed_as_exactly_as_the_device_can(tiny_folders, monkeypatch, device, dtype):
    module = RefinerModule(initial_model=str(tiny_folders["refiner"]))
    monkeypatch.setattr(RefinerModule, "device", torch.device(device))
    zeros, tensor = torch.zeros, torch.tensor

    def on_cpu(function):
        def make(*arguments, device=None, **options):
            if device is not None and device.type == "mps":
                assert options["dtype"] != torch.float64  # as MPS would
            return function(*arguments, **options)

        return make

    monkeypatch.setattr(torch, "zeros", on_cpu(zeros))
    monkeypatch.setattr(torch, "tensor", on_cpu(tensor))
    module.on_validation_epoch_start()
    batch = make_batch()
    module.score((batch["clean"] + 1) / 2, batch)
    assert module._scores.dtype == dtype
    assert float(module._scores[:, -1].sum()) == 4


def test_the_learning_rate_follows_the_batch(tiny_folders, tiny_photos, tmp_path):
    module = RefinerModule(
        initial_model=str(tiny_folders["refiner"]),
        optimizer=lambda groups: torch.optim.AdamW(groups, lr=0.64),
        schedule=ConstantSchedule(),
        reference_batch=256,
    )
    trainer = fit(module, tiny_photos, tmp_path, steps=1, accumulate_grad_batches=2)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.64 * 8 / 256)  # batch 4, accumulated twice
    assert module.total_steps == 1


class TestEncoderPrecision:
    def test_float32_whatever_the_trainer_says(self, tiny_folders):
        module = RefinerModule(initial_model=str(tiny_folders["refiner"]))
        module.configure_model()
        expected = module.encode_pair(make_batch())
        with torch.autocast("cpu", torch.bfloat16):
            found = module.encode_pair(make_batch())
        assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))

    def test_bfloat16_convolutions_with_float32_from_quant_conv_on(self, tiny_folders):
        module = RefinerModule(initial_model=str(tiny_folders["refiner"]), encoder_bfloat16=True)
        module.configure_model()
        batch, tokenizer = make_batch(), module.model.tokenizer
        condition, latent = module.encode_pair(batch)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            features = tokenizer.encode_features(batch["clean"].contiguous(memory_format=torch.channels_last))
        assert features.dtype == torch.bfloat16
        with torch.no_grad():
            assert torch.equal(latent, tokenizer.to_latent(features))
            assert not torch.equal(latent, tokenizer.encode(batch["clean"]))
        assert condition.dtype == latent.dtype == torch.float32

    def test_the_share_of_changed_tokens(self, tiny_folders):
        module = RefinerModule(initial_model=str(tiny_folders["refiner"]), encoder_bfloat16=True)
        module.configure_model()
        batch = make_batch(size=32)
        quantizer, scales = module.model.tokenizer.quantizer, module.model.scales
        # entries as close to each other as the photos are, so that rounding decides between some of them
        latents = module.encode_pair(batch)[1].movedim(1, -1).flatten(0, -2)
        quantizer.codebook.weight.data.copy_(latents[:: len(latents) // 16])
        mine = quantizer.quantize(module.encode_pair(batch)[1], scales).tokens
        module.encoder_bfloat16 = False
        exact = quantizer.quantize(module.encode_pair(batch)[1], scales).tokens
        share = float(module.changed_tokens(batch))
        assert 0 < share < 0.2
        assert share == pytest.approx(float((mine != exact).float().mean()))

    @pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
    @pytest.mark.parametrize("stage", [2, 3, 4])
    def test_every_stage_trains_and_says_what_changes(
        self, stage, precision, tiny_folders, tiny_photos, tmp_path, caplog
    ):
        settings = {"initial_model": str(tiny_folders["refiner"]), "encoder_bfloat16": True}
        if stage == 4:
            module = DetailModule(detail=DetailConfig(width=8, blocks=1), **settings)
        else:
            module = {2: TransformerModule, 3: RefinerModule}[stage](**settings)
        with caplog.at_level(logging.INFO, "restorevar"):
            trainer = fit(
                module, tiny_photos, tmp_path, steps=2, limit_val_batches=1, val_check_interval=2, precision=precision
            )
        said = [record.getMessage() for record in caplog.records if "of the clean tokens" in record.getMessage()]
        assert len(said) == 1
        assert 0 <= float(trainer.callback_metrics["val/tokens_changed_by_bfloat16"]) < 0.5

    def test_nothing_is_said_without_it(self, tiny_folders, tiny_photos, tmp_path):
        module = RefinerModule(initial_model=str(tiny_folders["refiner"]))
        trainer = fit(module, tiny_photos, tmp_path, steps=1, limit_val_batches=1, val_check_interval=1)
        assert "val/tokens_changed_by_bfloat16" not in trainer.callback_metrics
