import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from restorevar.models.layers import (
    GlobalContext,
    GroupNorm,
    GroupNormSiLU,
    PointwiseConvolution,
    ResidualBlock,
    Upsample,
)
from restorevar.models.products import by_onednn
from tests.models.reference import relative


def norm(groups: int, channels: int, silu: bool) -> GroupNorm:
    layer = GroupNormSiLU(groups, channels) if silu else GroupNorm(groups, channels)
    torch.nn.init.normal_(layer.weight)
    torch.nn.init.normal_(layer.bias)
    return layer


def plain(layer: GroupNorm, x: torch.Tensor) -> torch.Tensor:
    weight, bias = layer.weight.double(), layer.bias.double()
    y = torch.nn.functional.group_norm(x, layer.num_groups, weight, bias, layer.eps)
    return torch.nn.functional.silu(y) if layer.silu else y


class TestGroupNorm:
    @given(
        batch=st.integers(1, 3),
        groups=st.sampled_from([1, 2, 8]),
        per_group=st.integers(1, 5),
        size=st.tuples(st.integers(2, 9), st.integers(2, 9)),
        mean=st.floats(-20, 20),
        silu=st.booleans(),
    )
    @settings(max_examples=25, deadline=None)
    def test_values_and_gradients(self, batch, groups, per_group, size, mean, silu) -> None:
        torch.manual_seed(0)
        layer = norm(groups, groups * per_group, silu)
        x = (torch.randn(batch, groups * per_group, *size) + mean).contiguous(memory_format=torch.channels_last)
        gradient = torch.randn_like(x)
        reference = x.double().requires_grad_()
        expected = plain(layer, reference)
        (expected_gradient,) = torch.autograd.grad(expected, reference, gradient.double())
        x.requires_grad_()
        found = layer(x)
        assert found.is_contiguous(memory_format=torch.channels_last)
        found.backward(gradient)
        tolerance = 1e-6 * (1 + abs(mean))
        assert relative(found.detach(), expected.detach()) < tolerance
        assert relative(x.grad, expected_gradient) < 20 * tolerance
        assert torch.allclose(
            layer.bias.grad.double(),
            (torch.autograd.grad(plain(layer, reference.detach()), layer.bias, gradient.double())[0]).double(),
            rtol=1e-3,
            atol=1e-3,
        )

    def test_accurate_on_large_maps(self) -> None:
        torch.manual_seed(0)
        layer = norm(4, 16, silu=True)
        x = (torch.randn(1, 16, 384, 384) + 2).contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            assert relative(layer(x), plain(layer, x.double())) < 3e-7  # PyTorch's kernel: several 1e-6

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_overwrites_only_when_asked_to(self, dtype) -> None:
        layer = norm(4, 16, silu=True).to(dtype)
        x = torch.randn(2, 16, 8, 8).to(dtype).contiguous(memory_format=torch.channels_last)
        before = x.clone()
        with torch.no_grad():
            fresh = layer(x)
            assert torch.equal(x, before)
            assert layer(x, overwrite=True).data_ptr() == x.data_ptr()
        assert torch.equal(x, fresh)

    def test_autocast_gradients_stay_in_the_weights_type(self) -> None:
        layer = norm(4, 16, silu=True)
        x = torch.randn(2, 16, 8, 8).contiguous(memory_format=torch.channels_last).bfloat16().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(x)
        y.sum().backward()
        assert y.dtype == x.grad.dtype == torch.bfloat16
        assert layer.weight.grad.dtype == torch.float32


def test_global_context_tells_every_place_of_the_whole() -> None:
    torch.manual_seed(0)
    layer, x = GlobalContext(8, 4), torch.randn(2, 8, 6, 6)
    assert torch.equal(layer(x), x)
    torch.nn.init.normal_(layer.fc2.weight)
    brighter = x.clone()
    brighter[0, :, 0, 0] += 5.0
    changed = (layer(brighter) - layer(x)).detach()
    assert (changed[0, :, 5, 5].abs() > 1e-3).any()
    assert not changed[1].any()
    # a flat photo has a deviation of 0, whose gradient must be finite
    layer(torch.zeros(1, 8, 6, 6, requires_grad=True)).sum().backward()
    assert torch.isfinite(layer.fc1.weight.grad).all()


def test_residual_block_leaves_its_input_alone() -> None:
    block = ResidualBlock(16, 32, 4).to(memory_format=torch.channels_last)
    x = torch.randn(1, 16, 8, 8).contiguous(memory_format=torch.channels_last)
    before = x.clone()
    with_gradient = block(x).detach()
    with torch.no_grad():
        found = block(x)
    assert torch.equal(x, before)
    assert torch.allclose(found, with_gradient, atol=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("layer", [Upsample(24), PointwiseConvolution(24, 40)], ids=["upsample", "pointwise"])
def test_inference_computes_what_training_does(layer, dtype, tolerance, monkeypatch) -> None:
    torch.manual_seed(0)
    layer = layer.to(memory_format=torch.channels_last)
    x = torch.randn(2, 24, 7, 10).contiguous(memory_format=torch.channels_last)
    expected = layer.float()(x).detach()
    standard = []
    original = torch.nn.Conv2d.forward
    monkeypatch.setattr(torch.nn.Conv2d, "forward", lambda *inputs: standard.append(1) or original(*inputs))
    with torch.no_grad():
        found = layer.to(dtype)(x.to(dtype))
        assert bool(standard) != by_onednn(x.to(dtype))  # not every processor computes bfloat16
    assert found.dtype == dtype
    assert found.shape == expected.shape
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert relative(found, expected.double()) < tolerance
