import math

import pytest
import torch

from restorevar import RestoreVAR
from restorevar.models import RestoreVARConfig, TokenizerConfig, TransformerConfig
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
