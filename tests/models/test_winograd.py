import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from restorevar.models import winograd
from restorevar.models.detail import PlainResidual
from restorevar.models.layers import Convolution, ResidualBlock
from restorevar.models.products import by_onednn
from restorevar.models.winograd import saves_time, winograd_convolution
from tests.models.reference import relative


def inputs(batch: int, channels: int, filters: int, height: int, width: int) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    x = torch.randn(batch, channels, height, width).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(filters, channels, 3, 3) / (9 * channels) ** 0.5
    return x, weight.contiguous(memory_format=torch.channels_last), torch.randn(filters)


@given(
    batch=st.integers(1, 2),
    channels=st.integers(1, 9),
    filters=st.integers(1, 9),
    groups=st.integers(1, 5),
    width=st.integers(1, 9),
    biased=st.booleans(),
    single=st.booleans(),
    block=st.sampled_from([1, 3000, 1 << 24]),
)
@settings(max_examples=60, deadline=None)
def test_equals_a_direct_convolution(batch, channels, filters, groups, width, biased, single, block) -> None:
    dtype, tolerance = (torch.float32, 3e-6) if single else (torch.bfloat16, 3e-2)
    x, weight, bias = (tensor.to(dtype) for tensor in inputs(batch, channels, filters, 4 * groups, width))
    if not biased:
        bias = torch.zeros_like(bias)
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(winograd, "BLOCK", block)
        found = winograd_convolution(x, weight, bias if biased else None)
    expected = torch.nn.functional.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    assert found.dtype == dtype
    assert found.shape == expected.shape
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert relative(found, expected) < tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 9e-3)])
def test_accuracy_of_large_ones(dtype, tolerance) -> None:
    x, weight, _ = (tensor.to(dtype) for tensor in inputs(1, 128, 128, 32, 32))
    expected = torch.nn.functional.conv2d(x.double(), weight.double(), padding=1)
    with torch.no_grad():
        assert relative(winograd_convolution(x, weight), expected) < tolerance  # points 1 and 2: 1.2e-2 in bfloat16


def test_memory_is_bounded_by_blocks(monkeypatch) -> None:
    x, weight, bias = inputs(1, 8, 8, 40, 16)
    direct, sizes = torch.nn.functional.conv2d, []
    monkeypatch.setattr(
        "torch.nn.functional.conv2d", lambda x, *rest, **more: sizes.append(x.nbytes) or direct(x, *rest, **more)
    )
    monkeypatch.setattr(winograd, "BLOCK", 4 * 6 * x[:, :, 0].nbytes)
    with torch.no_grad():
        winograd_convolution(x, weight, bias)
    assert len(sizes) == 6 * 3  # ten groups of rows: 3, 3 and 4
    assert max(sizes) * 6 <= winograd.BLOCK


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    monkeypatch.setattr(
        "restorevar.models.layers.winograd_convolution", lambda *given: calls.append(1) or winograd_convolution(*given)
    )
    return calls


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layer_uses_it_in_inference_alone(dtype, monkeypatch) -> None:
    layer = Convolution(128, 128).to(dtype=dtype, memory_format=torch.channels_last)
    x = inputs(1, 128, 128, 128, 128)[0].to(dtype)
    calls = counted(monkeypatch)
    expected = layer(x).detach()
    assert not calls
    with torch.no_grad():
        found = layer(x)
        assert bool(calls) == by_onednn(x)  # not every processor computes bfloat16
        assert relative(found, expected.double()) < (3e-6 if dtype == torch.float32 else 1.2e-2)
        calls.clear()
        layer(x.contiguous())
        layer(x[:, :, :126].contiguous(memory_format=torch.channels_last))
        with torch.autocast("cpu", torch.bfloat16):
            layer(x)
    assert not calls


@pytest.mark.parametrize("block", [ResidualBlock(128, 128, 8), PlainResidual(128)], ids=["residual", "plain"])
def test_blocks_use_it_twice(block, monkeypatch) -> None:
    calls = counted(monkeypatch)
    with torch.no_grad():
        x = inputs(1, 128, 1, 128, 128)[0]
        block.to(memory_format=torch.channels_last)(x)
        assert len(calls) == 2 * by_onednn(x)


def test_small_ones_stay_direct() -> None:
    def pays(channels: int, filters: int, side: int, dtype: torch.dtype) -> bool:
        x = torch.empty(1, channels, side, side, dtype=dtype, device="meta")
        return saves_time(x, torch.empty(filters, channels, 3, 3, device="meta"))

    assert pays(160, 160, 512, torch.bfloat16)
    assert pays(640, 640, 32, torch.float32)
    assert not pays(640, 640, 32, torch.bfloat16)  # the kernels' transform takes what is saved
    assert not pays(96, 96, 64, torch.float32)
    assert not pays(32, 32, 512, torch.float32)
    assert not pays(160, 3, 512, torch.float32)
