import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from restorevar.models import RefinerConfig, ScaleSchedule
from restorevar.models.initialization import initialize_refiner
from restorevar.models.refiner import AttentionRefiner, ConvolutionRefiner, Refiner, build_refiner
from tests.models import reference
from tests.models.small import ATTENTION_REFINER, CONVOLUTION_REFINER, randomize

SCALES = ScaleSchedule([1, 2, (3, 4)])
Z, C = 8, 16
SHALLOW = RefinerConfig(kind="convolution", width=32, depth=1, context=4)
BOTH = pytest.mark.parametrize("config", [ATTENTION_REFINER, CONVOLUTION_REFINER], ids=lambda config: config.kind)


def build(config: RefinerConfig, scales: ScaleSchedule = SCALES) -> Refiner:
    refiner = build_refiner(config, Z, C, scales)
    randomize(refiner)
    return refiner.eval()


def inputs(scales: ScaleSchedule = SCALES) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    latent, features = torch.randn(2, 2, Z, *scales.finest, generator=generator)
    return latent, torch.randn(2, scales.tokens, C, generator=generator), features


@torch.no_grad()
def test_attention_refiner_equals_the_definition() -> None:
    refiner = build(ATTENTION_REFINER)
    assert isinstance(refiner, AttentionRefiner)
    latent, hidden, features = inputs()
    width, heads = ATTENTION_REFINER.width, ATTENTION_REFINER.heads

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = []
        for part in range(heads):
            span = slice(part * width // heads, (part + 1) * width // heads)
            scores = query[..., span] @ key[..., span].transpose(1, 2) / math.sqrt(width // heads)
            out.append(scores.softmax(-1) @ value[..., span])
        return torch.cat(out, -1)

    tokens = latent.permute(0, 2, 3, 1).flatten(1, 2)
    x = refiner.norm_latent(tokens) @ refiner.project_latent.weight.T + refiner.latent_position
    memory = refiner.norm_hidden(hidden) @ refiner.project_hidden.weight.T + refiner.hidden_position
    for layer in refiner.layers:
        own, mlp, cross = layer.attention, layer.mlp, layer.cross
        normalized = own.norm(x)
        x = x + own.out(attend(*(normalized @ part.T for part in own.qkv.weight.split(width))))
        x = x + mlp.fc2(F.gelu(mlp.fc1(mlp.norm(x))))
        normalized = cross.norm_hidden(memory)
        key_value = (normalized @ part.T for part in cross.key_value.weight.split(width))
        x = x + cross.out(attend(cross.norm_query(x) @ cross.query.weight.T, *key_value))
    expected = (refiner.norm_out(x) @ refiner.project_out.weight.T + tokens).transpose(1, 2).unflatten(2, SCALES.finest)
    assert reference.relative(refiner(latent, hidden, features), expected) < 1e-6


@pytest.mark.parametrize("config", [ATTENTION_REFINER, CONVOLUTION_REFINER, SHALLOW])
def test_gradients_reach_everything(config: RefinerConfig) -> None:
    refiner = build(config).train()
    refiner(*inputs()).square().mean().backward()
    untouched = [name for name, p in refiner.named_parameters() if p.grad is None or not p.grad.any()]
    assert untouched == []


@torch.no_grad()
def test_convolution_refiner_starts_as_the_identity() -> None:
    refiner = build_refiner(CONVOLUTION_REFINER, Z, C, SCALES)
    initialize_refiner(refiner)
    latent, hidden, features = inputs()
    assert torch.equal(refiner(latent, hidden, features), latent)


@torch.no_grad()
def test_convolution_refiner_takes_the_last_scales_tokens_and_the_condition() -> None:
    refiner = build(CONVOLUTION_REFINER)
    latent, hidden, features = inputs()
    plain = refiner(latent, hidden, features)
    coarse, fine = hidden.clone(), hidden.clone()
    coarse[:, 0] += 1.0
    fine[:, -1] += torch.randn(C)
    assert torch.equal(refiner(latent, coarse, features), plain)
    assert not torch.equal(refiner(latent, fine, features), plain)
    assert not torch.equal(refiner(latent, hidden, -features), plain)
    # a condition of another size is resized
    assert refiner(latent, hidden, features[:, :, :2, :2]).shape == plain.shape


@torch.no_grad()
def test_convolution_refiner_works_in_units_of_the_latent_deviation() -> None:
    refiner = build(CONVOLUTION_REFINER)
    assert isinstance(refiner, ConvolutionRefiner)
    latent, hidden, features = inputs()
    unscaled = refiner(latent, hidden, features)
    deviation = torch.linspace(0.1, 3, Z)
    refiner.latent_deviation.copy_(deviation)
    units = deviation[:, None, None]
    assert reference.relative(refiner(units * latent, hidden, units * features), units * unscaled) < 1e-6


@BOTH
@torch.no_grad()
def test_another_schedule(config: RefinerConfig) -> None:
    refiner, other = build(config), ScaleSchedule([1, (2, 3), 6])
    refiner.set_scales(other)
    assert refiner(*inputs(other)).shape == (2, Z, 6, 6)
    refiner.set_scales(other)  # the same again changes nothing


@torch.no_grad()
def test_positions_are_resized_scale_by_scale() -> None:
    refiner = build(ATTENTION_REFINER)
    assert isinstance(refiner, AttentionRefiner)
    before = refiner.hidden_position.clone()
    refiner.set_scales(ScaleSchedule([1, 3, (3, 4)]))
    after = refiner.hidden_position
    assert torch.equal(after[0], before[0])
    assert torch.equal(after[10:], before[5:])
    grid = before[1:5].T.unflatten(1, (2, 2))[None]
    torch.testing.assert_close(after[1:10], reference.bicubic(grid, (3, 3))[0].flatten(1).T)
    assert after.requires_grad
