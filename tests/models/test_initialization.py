import math

import pytest
import torch

from restorevar import RestoreVAR
from restorevar.models import RestoreVARConfig, TokenizerConfig, TransformerConfig
from restorevar.models.initialization import initialize_as_copy, low_cosines
from tests.models.small import photos, small_config, small_model


def build(**changes: object) -> RestoreVAR:
    torch.manual_seed(0)
    transformer = TransformerConfig(depth=8, width=192, heads=4, **changes)  # type: ignore[arg-type]
    return RestoreVAR(RestoreVARConfig((1, 2, 4), TokenizerConfig(base_channels=32), transformer=transformer))


def test_spread_of_the_weights() -> None:
    transformer = build().transformer
    assert transformer is not None
    std, block = math.sqrt(1 / (3 * 192)), transformer.block_sequence[3]
    # truncated at 2, the normal's spread shrinks a little only if the cut is near: here it is not
    assert block.attention.qkv.weight.std().item() == pytest.approx(std, rel=0.05)
    assert block.attention.out.weight.std().item() == pytest.approx(std / 4, rel=0.05)
    assert block.mlp.fc2.weight.std().item() == pytest.approx(std / 4, rel=0.05)
    assert block.cross.out.weight.std().item() == pytest.approx(std, rel=0.05)
    assert transformer.head.weight.std().item() == pytest.approx(0.02 * std, rel=0.05)
    assert transformer.condition_level_embed.std().item() == pytest.approx(std, rel=0.2)
    biases = [p for name, p in transformer.named_parameters() if name.endswith("bias")]
    assert not any(bias.any() for bias in biases)
    assert torch.allclose(block.cross.scale.log_scale.exp(), torch.tensor(4.0))
    assert torch.allclose(block.attention.scale.log_scale.exp(), torch.tensor(4.0))


@pytest.mark.parametrize("gain", [0.0, 1.0])
def test_gains(gain: float) -> None:
    transformer = build(gain_init=gain).transformer
    assert transformer is not None
    gains = [transformer.global_gain, *(block.cross.gain for block in transformer.block_sequence)]
    assert all(value.item() == gain for value in gains)


def test_refiner_positions() -> None:
    refiner = RestoreVAR(small_config()).refiner
    assert refiner is not None
    assert refiner.state_dict()["hidden_position"].std().item() == pytest.approx(0.02, rel=0.2)


def test_additive_phi_starts_as_the_identity() -> None:
    config = TokenizerConfig(base_channels=32, phi_identity=1.0, phi_convolution=0.5)
    quantizer = RestoreVAR(RestoreVARConfig((1, 2), config)).tokenizer.quantizer
    h = torch.randn(1, 32, 2, 2)
    with torch.no_grad():
        assert torch.equal(quantizer.spread(h, 1, RestoreVARConfig((1, 2)).schedule), h)


def test_an_untrained_model_runs() -> None:
    model = RestoreVAR(small_config()).eval()
    assert torch.isfinite(model.generate(photos(model)).image).all()


def test_same_seed_same_weights() -> None:
    first, second = build(), build()
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(small_model(0).tokenizer.quant_conv.weight, small_model(1).tokenizer.quant_conv.weight)


class TestLinearPath:
    def tokenizer(self, **changes):
        sizes = {"base_channels": 16, "channel_multipliers": (1, 2), "stem_patch": 4, "latent_channels": 16}
        config = TokenizerConfig(
            **sizes, vocabulary_size=16, norm_groups=4, attention=False, linear_path=True, **changes
        )
        return RestoreVAR(RestoreVARConfig(scales=(1, 2, 4), tokenizer=config)).tokenizer.eval()

    def test_cosines_are_orthonormal_and_start_with_the_mean(self):
        patterns = low_cosines(8, 16).flatten(1)
        assert torch.allclose(patterns @ patterns.T, torch.eye(16), atol=1e-5)
        assert torch.allclose(patterns[0], patterns[0, :1].expand(192))
        full = low_cosines(4, 48).flatten(1)
        assert torch.allclose(full.T @ full, torch.eye(48), atol=1e-5)

    def test_an_untrained_tokenizer_shows_a_fair_picture(self):
        generator = torch.Generator().manual_seed(0)
        coarse = torch.rand(2, 3, 5, 5, generator=generator) * 2 - 1
        photo = torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bicubic").clamp(-1, 1)
        tokenizer = self.tokenizer()
        with torch.no_grad():
            error = (tokenizer.decode(tokenizer.encode(photo)) - photo).square().mean() / 4
        assert -10 * float(error.log10()) > 23

    def test_the_networks_beside_it_learn(self):
        tokenizer = self.tokenizer().train()
        photo = torch.rand(2, 3, 32, 32) * 2 - 1
        (tokenizer.decode(tokenizer.encode(photo), clamp=False) - photo).square().mean().backward()
        for part in (tokenizer.encoder.conv_out, tokenizer.decoder.conv_out, tokenizer.encoder.linear):
            assert part.weight.grad.abs().sum() > 0

    def test_bfloat16_keeps_brightness(self):
        tokenizer = self.tokenizer()
        photo = torch.full((1, 3, 32, 32), 0.7123)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            decoded = tokenizer.decode(tokenizer.encode(photo).float()).float()
        assert float((decoded - photo).abs().max()) < 6e-3


class TestStartAsCopy:
    def model(self, **changes):
        torch.manual_seed(0)
        sizes = {"base_channels": 16, "channel_multipliers": (1, 2), "stem_patch": 4, "latent_channels": 8}
        sizes |= {"vocabulary_size": 64, "norm_groups": 4, "attention": False, "linear_path": True, "phi_identity": 1.0}
        transformer = TransformerConfig(
            **({"depth": 2, "width": 64, "heads": 2, "gain_init": 1.0, "local_condition": True} | changes)
        )
        model = RestoreVAR(RestoreVARConfig((1, 2, 4, 8), TokenizerConfig(**sizes), transformer=transformer)).eval()
        codebook = model.tokenizer.quantizer.codebook.weight
        torch.nn.init.normal_(codebook, std=0.3, generator=torch.Generator().manual_seed(1))
        return model

    def test_the_roll_out_copies_the_degraded_photo(self):
        model = self.model()
        initialize_as_copy(model.tokenizer, model.transformer)
        generator = torch.Generator().manual_seed(2)
        coarse = torch.rand(3, 3, 6, 6, generator=generator) * 2 - 1
        photo = torch.nn.functional.interpolate(coarse, size=(64, 64), mode="bicubic").clamp(-1, 1)
        with torch.no_grad():
            target = model.tokenizer.quantizer.quantize(model.tokenizer.encode(photo), model.scales)
            generated = model.generate(photo)
        assert (generated.tokens == target.tokens).float().mean() > 0.7
        own, copied = target.latent - model.tokenizer.encode(photo), generated.latent - target.latent
        assert copied.square().mean() < own.square().mean()

    def test_every_part_still_learns(self):
        model = self.model()
        initialize_as_copy(model.tokenizer, model.transformer)
        clean, degraded = torch.rand(2, 2, 3, 64, 64) * 2 - 1
        model.transformer.train()
        model.teacher_forced(clean, degraded).square().mean().backward()
        block = model.transformer.block_sequence[0]
        for layer in (block.attention.out, block.mlp.fc2, block.cross.out, model.transformer.global_embed):
            assert layer.weight.grad.abs().sum() > 0

    @pytest.mark.parametrize("changes", [{"local_condition": False}, {"width": 8}])
    def test_what_it_needs(self, changes):
        model = self.model(**changes)
        with pytest.raises(ValueError, match="local condition"):
            initialize_as_copy(model.tokenizer, model.transformer)
