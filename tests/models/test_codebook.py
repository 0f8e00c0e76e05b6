import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from restorevar.models import RestoreVAR, RestoreVARConfig, ScaleSchedule, TokenizerConfig
from restorevar.models.codebook import (
    CodebookUse,
    continuous_residuals,
    initialize_codebook,
    kmeans,
    perplexity,
    restart_codes,
    token_counts,
)

SCALES = (1, 2, 4)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def tokenizer(**changes):
    sizes = {
        "base_channels": 8,
        "channel_multipliers": (1, 2),
        "latent_channels": 4,
        "vocabulary_size": 32,
        "norm_groups": 4,
    }
    torch.manual_seed(0)
    config = RestoreVARConfig(scales=SCALES, tokenizer=TokenizerConfig(**(sizes | {"attention": False} | changes)))
    return RestoreVAR(config).tokenizer


def test_kmeans_finds_clusters():
    centers = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    points = (centers[:, None] + 0.1 * torch.randn(4, 50, 2, generator=seeded())).flatten(0, 1)
    start = points[[0, 60, 120, 180]]
    found = kmeans(points, 4, 10, seeded(), start)
    assert torch.cdist(centers, found).amin(1).max() < 0.1


def test_kmeans_leaves_no_cluster_empty_while_there_are_points():
    points = torch.randn(500, 3, generator=seeded())
    start = torch.full((20, 3), 1e4)
    start[0] = 0
    found = kmeans(points, 20, 5, seeded(), start)
    nearest = torch.cdist(points, found).argmin(1)
    assert len(nearest.unique()) == 20


@given(st.integers(1, 40), st.integers(1, 30))
def test_kmeans_of_any_counts(points, clusters):
    found = kmeans(torch.randn(points, 2, generator=seeded(points)), clusters, 2, seeded())
    assert found.shape == (clusters, 2)
    assert torch.isfinite(found).all()


def test_perplexity():
    counts = torch.tensor([[5, 5, 5, 5], [7, 0, 0, 0], [0, 0, 0, 0], [3, 3, 0, 0]])
    assert perplexity(counts).tolist() == pytest.approx([4.0, 1.0, 0.0, 2.0])


class OnMps(torch.Tensor):
    """A tensor that says it is on Apple's GPU, where float64 raises."""

    device = torch.device("mps")


class NoFloat64(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        assert not isinstance(result, torch.Tensor) or result.dtype != torch.float64, function
        return result


def test_perplexity_needs_no_float64_on_mps():
    counts = torch.tensor([[5, 5, 5, 5], [7, 0, 0, 0], [0, 0, 0, 0], [3, 3, 0, 0]])
    with NoFloat64():
        found = perplexity(counts.as_subclass(OnMps))
    assert found.tolist() == pytest.approx([4.0, 1.0, 0.0, 2.0])
    with pytest.raises(AssertionError), NoFloat64():  # elsewhere nothing is lost
        perplexity(counts)


def test_counts_of_all_and_of_the_first_scales():
    scales = ScaleSchedule(SCALES)
    tokens = torch.randint(0, 8, (3, scales.tokens), generator=seeded())
    counts = token_counts(tokens, scales, 8)
    assert counts.sum(1).tolist() == [3, 12, 48]
    assert torch.equal(counts[2], torch.bincount(tokens[:, 5:].flatten(), minlength=8))
    assert token_counts(tokens[:, :5], scales, 8).sum(1).tolist() == [3, 12, 0]


def test_use_tells_the_dead_from_the_rare():
    use = CodebookUse(2, 4)
    use.update(torch.tensor([[100, 10, 0, 0], [100, 0, 1, 0]]))
    assert use.dead(0.01).tolist() == [False, False, False, True]
    assert use.dead(0.1).tolist() == [False, False, True, True]
    assert "counts" in use.state_dict()
    use.reset()
    assert int(use.counts.sum()) == 0


def test_exact_lookups_leave_nothing_behind():
    quantizer = tokenizer(phi_identity=1.0, phi_convolution=0.0).quantizer
    scales = ScaleSchedule(SCALES)
    latent = torch.randn(5, 4, 4, 4, generator=seeded())
    residuals = continuous_residuals(quantizer, latent, scales)
    assert residuals.shape == (5 * scales.tokens, 4)
    # the first scale looks up the mean of each photo; nothing is quantized away on the way to the last
    assert torch.allclose(residuals[:5], latent.mean((2, 3)), atol=1e-6)
    assert residuals[-5 * 16 :].square().mean() < latent.square().mean()


def test_kmeans_beats_a_random_codebook():
    part = tokenizer(phi_identity=1.0)
    scales = ScaleSchedule(SCALES)
    latent = torch.randn(40, 4, 4, 4, generator=seeded())
    torch.nn.init.normal_(part.quantizer.codebook.weight, generator=seeded(1))

    def error():
        return float((part.quantizer.quantize(latent, scales).latent - latent).square().mean())

    before = error()
    initialize_codebook(part.quantizer, latent, scales, seeded())
    assert error() < 0.7 * before
    tokens = part.quantizer.quantize(latent, scales).tokens
    assert float(perplexity(token_counts(tokens, scales, 32).sum(0))) > 16


def test_restarted_entries_are_current_residuals():
    codebook = torch.nn.Embedding(6, 3)
    before = codebook.weight.detach().clone()
    candidates = torch.randn(10, 3, generator=seeded()) + 50
    dead = torch.tensor([True, False, False, True, False, False])
    assert restart_codes(codebook, dead, candidates, seeded()) == 2
    assert torch.equal(codebook.weight[~dead], before[~dead])
    for row in codebook.weight[dead]:
        assert (row == candidates).all(1).any()
    assert restart_codes(codebook, torch.zeros(6, dtype=torch.bool), candidates, seeded()) == 0
