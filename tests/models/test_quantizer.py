import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from restorevar.models import ScaleSchedule, TokenizerConfig
from restorevar.models.quantizer import MultiScaleQuantizer, area_resize, bicubic_resize
from tests.models import reference
from tests.models.test_scales import schedules

CHANNELS = 6


def quantizer(seed: int, dtype: torch.dtype = torch.float32, codes: int = 20) -> MultiScaleQuantizer:
    torch.manual_seed(seed)
    return MultiScaleQuantizer(TokenizerConfig(latent_channels=CHANNELS, vocabulary_size=codes)).to(dtype).eval()


def latent(schedule: ScaleSchedule, seed: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, CHANNELS, *schedule.finest, generator=torch.Generator().manual_seed(seed))


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_resizing_is_what_it_says(height: int, width: int, new_height: int, new_width: int) -> None:
    x, size = torch.randn(1, 2, height, width), (new_height, new_width)
    torch.testing.assert_close(area_resize(x, size), reference.area(x, size), atol=1e-5, rtol=0)
    torch.testing.assert_close(bicubic_resize(x, size), reference.bicubic(x, size), atol=1e-5, rtol=0)


@given(schedules(), st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
@torch.no_grad()
def test_equals_the_definition(schedule: ScaleSchedule, seed: int) -> None:
    module, x = quantizer(seed), latent(schedule, seed)
    found = module.quantize(x, schedule)
    sums = reference.running_sums(module, found.tokens, schedule)
    # not equality of tokens: rounding decides between codes that are equally near
    assert reference.excess(module, x, found.tokens, schedule).max() < 1e-4
    assert reference.relative(found.latent, sums[-1]) < 1e-5
    losses = [1.25 * F.mse_loss(running, x) for running in sums]
    torch.testing.assert_close(found.loss, torch.stack(losses).mean())
    expected = reference.teacher_input(sums, schedule)
    torch.testing.assert_close(module.teacher_input(found.tokens, schedule), expected, atol=1e-5, rtol=1e-4)


@given(schedules(), st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
@torch.no_grad()
def test_tokens_give_the_latent_that_quantizing_gave(schedule: ScaleSchedule, seed: int) -> None:
    module = quantizer(seed)
    found = module.quantize(latent(schedule, seed), schedule)
    torch.testing.assert_close(module.latent_from_tokens(found.tokens, schedule), found.latent)


@given(st.lists(st.sampled_from([2, 3]), min_size=1, max_size=3), st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
@torch.no_grad()
def test_tokens_to_latent_to_tokens(ratios: list[int], seed: int) -> None:
    """Exact where the codebook is a hierarchy: each scale's codes are orthogonal and far below the scale before."""
    sides = [1]
    for ratio in ratios:
        sides.append(sides[-1] * ratio)
    schedule = ScaleSchedule(sides)
    module = quantizer(seed, codes=CHANNELS * len(sides))
    module.phi_identity, module.phi_convolution = 1.0, 0.0
    levels = [100.0**-level * torch.eye(CHANNELS) for level in range(len(sides))]
    module.codebook.weight.copy_(torch.cat(levels))
    drawn = torch.randint(CHANNELS, (2, schedule.tokens), generator=torch.Generator().manual_seed(seed))
    tokens = drawn + CHANNELS * torch.from_numpy(schedule.scale_of_token)
    assert torch.equal(module.quantize(module.latent_from_tokens(tokens, schedule), schedule).tokens, tokens)


def test_straight_through_carries_the_gradient() -> None:
    schedule = ScaleSchedule([1, 2, 4])
    module, x = quantizer(0), latent(schedule, 0).requires_grad_()
    found = module.quantize(x, schedule)
    assert torch.allclose(found.straight_through, found.latent, atol=1e-6)
    weight = torch.randn_like(x)
    (gradient,) = torch.autograd.grad((found.straight_through * weight).sum(), x, retain_graph=True)
    assert torch.equal(gradient, weight)
    found.loss.backward()
    assert module.codebook.weight.grad is not None
    assert module.codebook.weight.grad.norm() > 0
    assert x.grad is not None
    # 0.25 mse(f_hat_k, x), K scales: the loss pulls x towards the running sums
    sums = reference.running_sums(module, found.tokens, schedule)
    expected = sum(2 * 0.25 * (x - running) / x.numel() for running in sums) / len(sums)
    torch.testing.assert_close(x.grad, expected, atol=1e-7, rtol=1e-4)


def test_works_in_float32_under_autocast() -> None:
    schedule = ScaleSchedule([1, 2, 4])
    module, x = quantizer(0), latent(schedule, 0)
    plain = module.quantize(x, schedule)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = module.quantize(x, schedule)
    assert torch.equal(mixed.tokens, plain.tokens)
    assert mixed.latent.dtype == torch.float32
    assert torch.equal(mixed.latent, plain.latent)


def test_stops_at_a_scale_when_asked() -> None:
    schedule = ScaleSchedule([1, 2, 4])
    module, x = quantizer(0), latent(schedule, 0)
    found, whole = module.quantize(x, schedule, last_scale=1), module.quantize(x, schedule)
    assert torch.equal(found.tokens, whole.tokens[:, :5])
    assert [len(part) for part in found.residuals] == [2, 8]
    assert not torch.equal(found.latent, whole.latent)


@pytest.mark.parametrize("identity", [0.5, 1.0])
def test_phi(identity: float) -> None:
    config = TokenizerConfig(latent_channels=CHANNELS, vocabulary_size=4, phi_identity=identity, phi_convolution=0.5)
    module, schedule = MultiScaleQuantizer(config), ScaleSchedule([2])
    h = torch.randn(1, CHANNELS, 2, 2)
    conv = module.phi[0](h)
    torch.testing.assert_close(module.spread(h, 0, schedule), identity * h + 0.5 * conv)


def test_the_mean_is_not_the_likeliest() -> None:
    layer = quantizer(0, codes=4)
    with torch.no_grad():
        layer.codebook.weight.copy_(torch.tensor([0.0, 0.7, 1.0, 1.3])[:, None].expand(-1, CHANNELS))
        # 40 % for one entry, 60 % for three that lie together: the mean is 0.6
        logits = torch.tensor([0.4, 0.2, 0.2, 0.2]).log().expand(2, 3, 4)
        torch.testing.assert_close(layer.mean_entries(logits), torch.full((2, 3, CHANNELS), 0.6))
        certain = torch.full((1, 1, 4), -1e9).index_fill(2, torch.tensor([3]), 0.0)
        assert torch.equal(layer.mean_entries(certain)[0, 0], layer.codebook.weight[3])


@torch.no_grad()
def test_nearest_entries_are_found_in_float32_under_autocast() -> None:
    model = MultiScaleQuantizer(TokenizerConfig(latent_channels=CHANNELS, vocabulary_size=4096)).eval()
    vectors = torch.randn(500, CHANNELS, generator=torch.Generator().manual_seed(0))
    expected = model.nearest(vectors)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.nearest(vectors), expected)
