import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from restorevar.models import RestoreVAR, RestoreVARConfig
from restorevar.models.corruption import SelfCorrection, requantize, sample_top_k
from tests.conftest import SCALES, TOKENIZER


def quantizer_and_latent():
    torch.manual_seed(0)
    model = RestoreVAR(RestoreVARConfig(scales=SCALES, tokenizer=TOKENIZER))
    quantizer = model.tokenizer.quantizer
    torch.nn.init.normal_(quantizer.codebook.weight)
    return quantizer, torch.randn(3, TOKENIZER.latent_channels, *model.scales.finest), model.scales


def test_nothing_replaced_is_plain_quantization():
    quantizer, latent, scales = quantizer_and_latent()
    tokens = quantizer.quantize(latent, scales).tokens
    nothing = torch.zeros_like(tokens, dtype=torch.bool)
    inputs, targets = requantize(quantizer, latent, torch.zeros_like(tokens), nothing, scales)
    assert torch.equal(inputs, tokens)
    assert torch.equal(targets, tokens)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.05, 1.0))
def test_targets_answer_to_the_sum_of_the_inputs(seed, share):
    quantizer, latent, scales = quantizer_and_latent()
    generator = torch.Generator().manual_seed(seed)
    samples = torch.randint(TOKENIZER.vocabulary_size, (3, scales.tokens), generator=generator)
    replaced = torch.rand(3, scales.tokens, generator=generator) < share
    inputs, targets = requantize(quantizer, latent, samples, replaced, scales)
    assert torch.equal(inputs[replaced], samples[replaced])
    assert torch.equal(inputs[~replaced], targets[~replaced])
    # the last scale's targets: the nearest entries to what the inputs of the scales before leave missing
    sums = quantizer.running_sums(inputs, scales)
    missing = (latent - sums[-2]).flatten(2).transpose(1, 2).flatten(0, 1)
    last = scales.span(len(scales) - 1)
    distances = torch.cdist(missing.double(), quantizer.codebook.weight.double())
    chosen = distances.gather(1, targets[:, last].reshape(-1, 1)).squeeze(1)
    assert torch.allclose(chosen, distances.min(1).values, atol=1e-4)


def test_mended_targets_come_closer_than_the_old_ones():
    """The point of it: finer scales make up for a wrong coarse token."""
    quantizer, latent, scales = quantizer_and_latent()
    torch.nn.init.normal_(quantizer.codebook.weight, std=0.5)
    tokens = quantizer.quantize(latent, scales).tokens
    wrong = torch.zeros_like(tokens, dtype=torch.bool)
    wrong[:, 0] = True
    samples = (tokens + 1) % TOKENIZER.vocabulary_size
    inputs, _ = requantize(quantizer, latent, samples, wrong, scales)
    old = torch.where(wrong, samples, tokens)
    mended = (quantizer.latent_from_tokens(inputs, scales) - latent).square().mean()
    assert mended < (quantizer.latent_from_tokens(old, scales) - latent).square().mean()


def test_samples_are_among_the_most_likely():
    torch.manual_seed(0)
    logits = torch.randn(2, 50, 30)
    drawn = sample_top_k(logits, 3)
    assert (logits.topk(3).indices == drawn[..., None]).any(-1).all()
    assert (drawn != logits.argmax(-1)).any()
    assert torch.equal(sample_top_k(logits, 1), logits.argmax(-1))


def test_shares_are_kept():
    torch.manual_seed(0)
    replaced = SelfCorrection(image_share=0.3, token_share=0.2).draw(4000, 50, torch.device("cpu"))
    touched = replaced.any(1).float().mean()
    assert 0.22 < touched < 0.3
    assert replaced.float().mean(1).max() < 0.45
    assert abs(replaced.float().mean() - 0.3 * 0.1) < 0.004
