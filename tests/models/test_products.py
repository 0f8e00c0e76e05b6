import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from restorevar.models import products
from restorevar.models.products import Linear, attention, even_slices, linear


@pytest.mark.parametrize("gelu", [None, "none", "tanh"])
@pytest.mark.parametrize("rows", [slice(None), slice(3, 9)])
def test_linear_is_the_same_with_and_without_gradients(gelu, rows) -> None:
    torch.manual_seed(0)
    layer = Linear(32, 48)
    x = torch.randn(2, 12, 32)[:, rows]  # the slice is not contiguous
    expected = layer(x, gelu).detach()
    with torch.no_grad():
        found = layer(x, gelu)
    assert torch.allclose(found, expected, atol=2e-6)


def test_linear_takes_transposed_weights() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(5, 8), torch.randn(8, 6).T
    with torch.no_grad():
        assert torch.allclose(linear(x, weight), x @ weight.T, atol=1e-5)


@pytest.mark.parametrize("scale", [None, 1.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("block", [40, 500])  # parts of one head, and two of three heads
def test_attention_of_strided_parts(scale, dtype, tolerance, block, monkeypatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(products, "_attends_by_onednn", lambda value: True)  # without AVX-512, too
    monkeypatch.setattr(products, "SMALLEST_HEAD", 0)
    monkeypatch.setattr(products, "SCORE_BLOCK", 40)  # several blocks of queries
    monkeypatch.setattr(products, "SCORE_BLOCK_OF_HEADS", block)
    packed = torch.randn(2, 20, 3 * 24).to(dtype)
    query, key, value = packed.unflatten(2, (3, 3, 8)).permute(2, 0, 3, 1, 4)
    query = query[:, :, :11]
    expected = F.scaled_dot_product_attention(query.float(), key.float(), value.float(), scale=scale)
    with torch.no_grad():
        found = attention(query, key, value, scale=scale)
    assert found.dtype == dtype
    assert found.shape == expected.shape
    assert (found.float() - expected).norm() / expected.norm() < tolerance


@pytest.mark.parametrize(("tokens", "tolerance"), [(3, 4e-3), (400, 6e-3)])  # scores in float32, in bfloat16
@torch.no_grad()
def test_sharp_attention_in_bfloat16(tokens, tolerance, monkeypatch) -> None:
    monkeypatch.setattr(products, "_attends_by_onednn", lambda value: True)
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 2, n, 32, generator=generator).bfloat16() for n in (tokens, 400, 400))
    query = 3 * query
    found = attention(query, key, value, scale=1.0)
    expected = F.scaled_dot_product_attention(query.float(), key.float(), value.float(), scale=1.0)
    assert found.dtype == torch.bfloat16
    # scores merely rounded to bfloat16 would be 2e-2 off
    assert (found.float() - expected).norm() / expected.norm() < tolerance


def test_onednn_is_used_in_cpu_inference_only(monkeypatch) -> None:
    called = []
    original = products._product
    monkeypatch.setattr(products, "_product", lambda *arguments: called.append(1) or original(*arguments))
    layer, x = Linear(4, 4), torch.randn(2, 4)
    layer(x)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    with torch.no_grad(), torch.device("meta"):
        layer.to_empty(device="meta")(torch.empty(2, 4))
    assert not called


def test_attention_in_bfloat16_training_has_the_gradients_of_sdpa() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 3, 20, 16), (2, 3, 28, 16), (2, 3, 28, 16)]
    inputs = [torch.randn(shape, generator=generator).bfloat16() for shape in shapes]
    ours = [value.clone().requires_grad_() for value in inputs]
    exact = [value.float().requires_grad_() for value in inputs]
    found = attention(*ours)
    expected = F.scaled_dot_product_attention(*exact)
    assert torch.allclose(found.float(), expected, atol=2e-2)
    upstream = torch.randn(expected.shape, generator=generator)
    found.backward(upstream.bfloat16())
    expected.backward(upstream)
    for part, reference in zip(ours, exact, strict=True):
        assert (part.grad.float() - reference.grad).norm() < 2e-2 * reference.grad.norm()


@given(count=st.integers(1, 3000), most=st.integers(-1, 3000))
def test_slices_are_even_and_few(count, most) -> None:
    slices = even_slices(count, most)
    lengths = [part.stop - part.start for part in slices]
    assert [place for part in slices for place in range(part.start, part.stop)] == list(range(count))
    assert max(lengths) - min(lengths) <= 1
    assert max(lengths) <= max(most, 1)
    assert len(slices) == -(-count // max(most, 1))
