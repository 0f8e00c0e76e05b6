import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from restorevar import RestoreVAR
from restorevar.errors import UserError
from restorevar.models import RefinerConfig, RestoreVARConfig, TransformerConfig
from tests.models.reference import relative
from tests.models.small import CONVOLUTION_REFINER, DETAIL, TRANSFORMER, photos, small_model


def test_paper_size() -> None:
    with torch.device("meta"):
        model = RestoreVAR(RestoreVARConfig(transformer=TransformerConfig(), refiner=RefinerConfig()))
    assert model.transformer is not None
    assert model.refiner is not None

    def count(part: torch.nn.Module) -> int:
        return sum(parameter.numel() for parameter in part.parameters())

    assert count(model.tokenizer) == 108_948_355
    assert count(model.transformer) + count(model.refiner) == 296_953_713
    assert round(count(model.refiner) / 1e6, 2) == 22.97
    assert model.image_size == (512, 512)
    assert model.transformer.config.drop_path_rate == pytest.approx(0.1 * 16 / 24)


@pytest.mark.parametrize("refiner", [None, CONVOLUTION_REFINER])
def test_generation(refiner: RefinerConfig | None) -> None:
    model = small_model(refiner=refiner)
    found = model.generate(photos(model))
    assert found.image.shape == (2, 3, 24, 24)
    assert found.image.dtype == torch.float32
    assert 0 <= found.image.min() <= found.image.max() <= 1
    assert found.tokens.shape == (2, 50)
    assert found.hidden.shape == (2, 50, 32)
    assert found.latent.shape == found.refined_latent.shape == (2, 8, 6, 6)
    assert torch.equal(found.latent, found.refined_latent) == (refiner is None)
    assert not found.image.requires_grad


def test_first_scales_by_the_mean() -> None:
    changed = dataclasses.replace(TRANSFORMER, mean_scales=2)
    model, likeliest = small_model(transformer=changed), small_model(transformer=TRANSFORMER)
    degraded = photos(model)
    found = model.generate(degraded)
    assert not torch.equal(found.tokens, likeliest.generate(degraded).tokens)
    assert model.transformer is not None
    quantizer, logits = model.tokenizer.quantizer, model.transformer.logits(found.hidden)
    split = model.scales.span(1).stop
    means = logits.softmax(-1) @ quantizer.codebook.weight
    nearest = torch.cdist(means, quantizer.codebook.weight.expand(2, -1, -1)).argmin(-1)
    assert torch.equal(found.tokens, torch.cat([nearest[:, :split], logits.argmax(-1)[:, split:]], dim=1))
    entries = quantizer.codebook(found.tokens)
    entries[:, :split] = means[:, :split]
    spans = [(scale, model.scales.span(scale)) for scale in range(len(model.scales))]
    latent = sum(quantizer.contribution_of(entries[:, span], scale, model.scales) for scale, span in spans)
    assert relative(found.latent, latent) < 1e-5


def test_photos_do_not_depend_on_their_neighbours() -> None:
    model = small_model()
    both = model.generate(photos(model)).image
    assert relative(model.generate(photos(model)[1:]).image, both[1:]) < 1e-5


def test_teacher_forcing_takes_the_condition_from_the_degraded_photo() -> None:
    model = small_model()
    clean, degraded = photos(model, seed=1), photos(model, seed=2)
    logits = model.teacher_forced(clean, degraded)
    assert logits.requires_grad
    tokenizer = model.tokenizer
    with torch.no_grad():
        tokens = tokenizer.quantizer.quantize(tokenizer.encode(clean), model.scales).tokens
        teacher_input = tokenizer.quantizer.teacher_input(tokens, model.scales)
        assert model.transformer is not None
        expected = model.transformer(teacher_input, tokenizer.encode_features(degraded))[0]
    assert relative(logits.detach(), expected) < 1e-5


class TestPrecision:
    @pytest.mark.parametrize("refiner", ["attention", "convolution"])
    def test_bfloat16_keeps_an_island_of_float32(self, refiner: str) -> None:
        config = RefinerConfig(kind=refiner, width=32, heads=2, mlp_width=32, depth=1)  # type: ignore[arg-type]
        model = small_model(refiner=config, detail=DETAIL)
        plain = model.generate(photos(model))
        assert model.set_precision(torch.bfloat16) is model
        kept = {name for name, parameter in model.named_parameters() if parameter.dtype == torch.float32}
        assert {"tokenizer.quantizer.codebook.weight", "tokenizer.quant_conv.weight", "transformer.head.weight"} <= kept
        assert {"transformer.blocks.0.attention.scale.log_scale", "tokenizer.quantizer.phi.3.bias"} <= kept
        assert not any(name.startswith(("tokenizer.encoder", "refiner", "detail")) for name in kept)
        assert model.dtype == torch.bfloat16
        assert model.transformer is not None
        assert model.transformer.rotary.dtype == torch.float32
        found = model.generate(photos(model))
        assert found.latent.dtype == found.image.dtype == torch.float32
        for tensor in (found.image, found.hidden, found.refined_latent):
            assert torch.isfinite(tensor).all()
        first = model.scales.span(0)  # later scales follow other tokens where rounding moved an argmax
        assert relative(found.hidden[:, first].float(), plain.hidden[:, first]) < 0.05
        assert (found.image - plain.image).abs().mean() < 0.1

    def test_float32_again(self) -> None:
        model = small_model().set_precision(torch.bfloat16).set_precision(torch.float32)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        kernels = [parameter for parameter in model.tokenizer.parameters() if parameter.dim() == 4]
        assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)

    def test_huge_inputs_stay_finite(self) -> None:
        model = small_model().set_precision(torch.bfloat16)
        assert torch.isfinite(model.generate(photos(model) * 1e4).image).all()

    def test_float16_is_refused(self) -> None:
        with pytest.raises(UserError, match=r"float16 .*; expected float32 or bfloat16"):
            small_model().set_precision(torch.float16)

    def test_autocast_keeps_head_and_codebook_in_float32(self) -> None:
        model = small_model()
        with torch.autocast("cpu", torch.bfloat16):
            logits = model.teacher_forced(photos(model), photos(model))
            found = model.generate(photos(model))
        assert logits.dtype == found.latent.dtype == torch.float32
        assert torch.isfinite(logits).all()


class TestScales:
    @given(st.lists(st.tuples(st.integers(1, 8), st.integers(1, 8)), min_size=4, max_size=4))
    @settings(max_examples=15, deadline=None)
    def test_any_schedule_of_as_many_scales(self, sizes: list[tuple[int, int]]) -> None:
        heights, widths = zip(*sizes, strict=True)
        schedule = list(zip(sorted(heights), sorted(widths), strict=True))
        model = small_model().set_scales(schedule)
        height, width = schedule[-1]
        assert model.image_size == (4 * height, 4 * width)
        found = model.generate(photos(model))
        assert found.image.shape == (2, 3, 4 * height, 4 * width)
        assert torch.isfinite(found.image).all()
        assert found.tokens.shape == (2, sum(h * w for h, w in schedule))

    def test_its_own_schedule_changes_nothing(self) -> None:
        model, other = small_model(), small_model()
        other.set_scales([1, 2, 3, 6])
        assert torch.equal(other.generate(photos(model)).image, model.generate(photos(model)).image)

    def test_tables_do_not_hang_on_the_schedule_before(self) -> None:
        model, direct = small_model(refiner=None), small_model(refiner=None, scales=(1, 2, (4, 5), (5, 7)))
        model.set_scales([1, 2, (4, 5), (5, 7)])
        assert torch.equal(model.generate(photos(model)).image, direct.generate(photos(direct)).image)

    def test_another_number_of_scales_is_refused(self) -> None:
        with pytest.raises(UserError, match="3 scales given; this model has 4"):
            small_model().set_scales([1, 2, 6])


class TestErrors:
    def test_wrong_size(self) -> None:
        model = small_model()
        with pytest.raises(UserError, match=r"\(1, 3, 16, 24\); expected \(B, 3, 24, 24\).*model\.restore"):
            model.generate(torch.zeros(1, 3, 16, 24))
        with pytest.raises(UserError, match=r"expected \(B, 3, 24, 24\)"):
            model.generate(torch.zeros(3, 24, 24))

    def test_tokenizer_only(self) -> None:
        model = small_model(transformer=None, refiner=None)
        with pytest.raises(UserError, match="holds a tokenizer only"):
            model.generate(photos(model))
        with pytest.raises(UserError, match="holds a tokenizer only"):
            model.teacher_forced(photos(model), photos(model))
