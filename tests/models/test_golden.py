"""Every recorded tensor of the published model, through the public API."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from restorevar import RestoreVAR
from tests.golden.seeded import golden, tiny_tokenizer, tiny_transformer
from tests.models.reference import relative


@pytest.fixture(scope="module")
def model() -> RestoreVAR:
    return RestoreVAR.from_published(
        tokenizer=tiny_tokenizer(), transformer=tiny_transformer(), refiner_heads=3, scales=(1, 2, 3, 4, 6, 8)
    )


@pytest.fixture(scope="module")
def computed(model: RestoreVAR) -> dict[str, Tensor]:
    recorded, tokenizer = golden(), model.tokenizer
    with torch.no_grad():
        generation = model.generate(recorded["degraded"])
        latent = tokenizer.encode(recorded["clean"])
        quantization = tokenizer.quantizer.quantize(latent, model.scales)
        sums = tokenizer.quantizer.running_sums(quantization.tokens, model.scales)
        logits = model.teacher_forced(recorded["clean"], recorded["degraded"])
        return {
            "cond_latent": tokenizer.encode_features(recorded["degraded"]),
            "clean_latent": latent,
            "clean_tokens": quantization.tokens,
            "clean_fhat_first": sums[0],
            "clean_fhat_last": sums[-1],
            "teacher_input": tokenizer.quantizer.teacher_input(quantization.tokens, model.scales),
            "vq_loss": quantization.loss[None],
            "vq_fhat_st": quantization.straight_through,
            "decoded_continuous": tokenizer.decode(latent),
            "decoded_discrete": tokenizer.decode(sums[-1]),
            "logits": logits,
            "ce_loss": F.cross_entropy(logits.flatten(0, 1), quantization.tokens.flatten())[None],
            "tokens": generation.tokens,
            "hidden": generation.hidden,
            "refined_latent": generation.refined_latent,
            "restored": generation.image,
        }


def test_nothing_recorded_is_left_out(computed: dict[str, Tensor]) -> None:
    assert set(computed) | {"degraded", "clean"} == set(golden())


@pytest.mark.parametrize("name", sorted(set(golden()) - {"degraded", "clean", "tokens", "clean_tokens"}))
def test_tensor(computed: dict[str, Tensor], name: str) -> None:
    expected = golden()[name]
    assert computed[name].shape == expected.shape
    assert relative(computed[name], expected) < 1e-5


@pytest.mark.parametrize("name", ["tokens", "clean_tokens"])
def test_tokens(computed: dict[str, Tensor], name: str) -> None:
    assert torch.equal(computed[name], golden()[name])


@pytest.mark.gpu
def test_on_an_accelerator(model: RestoreVAR) -> None:
    recorded = golden()
    model.cuda()
    generation = model.generate(recorded["degraded"].cuda())
    same = (generation.tokens.cpu() == recorded["tokens"]).all(1)
    logits = model.teacher_forced(recorded["clean"], recorded["degraded"]).cpu()
    model.cpu()
    assert relative(logits, recorded["logits"]) < 1e-3
    assert same.any()  # a token on the edge may fall the other way in one photo
    assert relative(generation.image.cpu()[same], recorded["restored"][same]) < 1e-3
