import dataclasses

import pytest
import torch

from restorevar.models import TokenizerConfig
from restorevar.models.tokenizer import Tokenizer
from tests.models.small import TOKENIZER, randomize

VARIANTS = {
    "paper's form": TOKENIZER,
    "no attention": dataclasses.replace(TOKENIZER, attention=False),
    "one level": dataclasses.replace(TOKENIZER, channel_multipliers=(2,)),
    "folded stem": dataclasses.replace(TOKENIZER, stem_patch=4, channel_multipliers=(1, 2)),
    "32 times smaller": dataclasses.replace(TOKENIZER, stem_patch=2, channel_multipliers=(1, 1, 1, 2, 2)),
}


def build(config: TokenizerConfig) -> Tokenizer:
    tokenizer = Tokenizer(config)
    randomize(tokenizer)
    return tokenizer.eval()


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_shapes_of_every_variant(name: str) -> None:
    config = VARIANTS[name]
    tokenizer, f = build(config), config.downsampling
    image = torch.rand(2, 3, 2 * f, 3 * f) * 2 - 1
    blocks, *pyramid = tokenizer.encoder.pyramid(image)
    assert blocks.shape[1] == 3 * config.stem_patch**2
    sides = [(2 * f // (config.stem_patch * 2**level), config.level_channels[level]) for level in range(len(pyramid))]
    assert [(part.shape[2], part.shape[1]) for part in pyramid] == sides
    latent = tokenizer.encode(image)
    assert latent.shape == (2, config.latent_channels, 2, 3)
    assert tokenizer.decode(latent).shape == image.shape


def test_downsampling() -> None:
    assert [config.downsampling for config in VARIANTS.values()] == [4, 4, 1, 8, 32]


@torch.no_grad()
def test_condition_is_taken_before_quant_conv() -> None:
    tokenizer, image = build(TOKENIZER), torch.rand(1, 3, 16, 16)
    features = tokenizer.encode_features(image)
    torch.testing.assert_close(tokenizer.quant_conv(features), tokenizer.encode(image))
    assert not torch.allclose(features, tokenizer.encode(image))


@torch.no_grad()
def test_clamp() -> None:
    tokenizer = build(TOKENIZER)
    latent = 20 * torch.randn(1, TOKENIZER.latent_channels, 4, 4)
    free = tokenizer.decode(latent, clamp=False)
    assert free.abs().max() > 1
    assert torch.equal(tokenizer.decode(latent), free.clamp(-1, 1))


def test_gradients_reach_everything() -> None:
    tokenizer = build(TOKENIZER).train()
    from restorevar.models import ScaleSchedule

    image = torch.rand(2, 3, 24, 24) * 2 - 1
    found = tokenizer.quantizer.quantize(tokenizer.encode(image), ScaleSchedule([1, 2, 3, 6]))
    (tokenizer.decode(found.straight_through, clamp=False).square().mean() + found.loss).backward()
    untouched = [name for name, p in tokenizer.named_parameters() if p.grad is None or not p.grad.any()]
    assert untouched == []
    # only codes that were used are moved
    assert tokenizer.quantizer.codebook.weight.grad is not None
    moved = tokenizer.quantizer.codebook.weight.grad.any(1)
    assert set(moved.nonzero().flatten().tolist()) == set(found.tokens.unique().tolist())


@torch.no_grad()
def test_fuse_is_called_at_each_level_coarsest_first() -> None:
    tokenizer, seen = build(TOKENIZER), []

    def fuse(level: int, features: torch.Tensor) -> torch.Tensor:
        seen.append((level, features.shape[2]))
        return features

    latent = torch.randn(1, TOKENIZER.latent_channels, 4, 4)
    fused = tokenizer.decode(latent, fuse=fuse)
    assert seen == [(2, 4), (1, 8), (0, 16)]
    assert torch.equal(fused, tokenizer.decode(latent))
