import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from restorevar.models import ScaleSchedule, TransformerConfig
from restorevar.models.transformer import AttentionScale, DropPath, ScaleTransformer
from tests.models import reference
from tests.models.small import TRANSFORMER, photos, randomize, small_model
from tests.models.test_scales import schedules

Z, V = 8, 24


def build(schedule: ScaleSchedule, config: TransformerConfig = TRANSFORMER, seed: int = 0) -> ScaleTransformer:
    transformer = ScaleTransformer(config, Z, V, schedule)
    randomize(transformer, seed)
    return transformer.eval()


def inputs(schedule: ScaleSchedule, seed: int = 0, size: tuple[int, int] | None = None) -> tuple[Tensor, Tensor]:
    """Random teacher input and degraded features."""
    generator = torch.Generator().manual_seed(seed)
    teacher_input = torch.randn(2, schedule.tokens - schedule.lengths[0], Z, generator=generator)
    return teacher_input, torch.randn(2, Z, *(size or schedule.finest), generator=generator)


@given(schedules(largest=5), st.integers(0, 1000), st.booleans())
@settings(max_examples=20, deadline=None)
@torch.no_grad()
def test_teacher_forcing_equals_the_definition(schedule: ScaleSchedule, seed: int, local: bool) -> None:
    """With a dense mask, complex rotation and explicit softmax."""
    config = TransformerConfig(depth=2, width=16, heads=2, class_count=3, gain_init=1.0, local_condition=local)
    transformer = build(schedule, config, seed)
    logits, hidden = transformer(*inputs(schedule, seed))
    expected_logits, expected_hidden = reference.transformer(transformer, *inputs(schedule, seed))
    assert logits.dtype == torch.float32
    assert reference.relative(hidden, expected_hidden) < 1e-5
    assert reference.relative(logits, expected_logits) < 1e-5


@torch.no_grad()
def test_a_token_sees_its_own_scale_and_coarser_ones() -> None:
    schedule = ScaleSchedule([1, 2, 3])
    transformer = build(schedule)
    teacher_input, features = inputs(schedule)
    plain = transformer(teacher_input, features)[0]
    changed = teacher_input.clone()
    changed[:, schedule.starts[2] - 1 + 4] += 1.0  # one token of the last scale
    moved = (transformer(changed, features)[0] - plain).abs().amax((0, 2)) > 1e-6
    assert moved[schedule.span(2)].all()
    assert not moved[: schedule.starts[2]].any()


@given(schedules(largest=5), st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
@torch.no_grad()
def test_cached_roll_out_equals_recomputation(schedule: ScaleSchedule, seed: int) -> None:
    """The plain formulas over all inputs at once, without a cache, give what each step of the roll-out gave."""
    model = small_model(seed, scales=tuple(schedule), refiner=None)
    assert model.transformer is not None
    features = torch.randn(2, Z, *schedule.finest, generator=torch.Generator().manual_seed(seed))
    found = model.roll_out(features)
    sums = reference.running_sums(model.tokenizer.quantizer, found.tokens, schedule)
    logits, hidden = reference.transformer(model.transformer, reference.teacher_input(sums, schedule), features)
    assert reference.relative(found.hidden, hidden) < 1e-5
    assert reference.relative(found.latent, sums[-1]) < 1e-5
    chosen = logits.gather(2, found.tokens[..., None])[..., 0]
    assert (logits.amax(2) - chosen).max() < 1e-4  # argmax at each scale, up to ties


@torch.no_grad()
def test_teacher_forced_logits_on_its_own_tokens_are_the_roll_outs() -> None:
    model = small_model()
    assert model.transformer is not None
    features = model.tokenizer.encode_features(photos(model))
    roll_out = model.roll_out(features)
    teacher_input = model.tokenizer.quantizer.teacher_input(roll_out.tokens, model.scales)
    logits, hidden = model.transformer(teacher_input, features)
    assert reference.relative(logits, model.transformer.logits(roll_out.hidden)) < 1e-5
    assert reference.relative(hidden, roll_out.hidden) < 1e-5
    assert torch.equal(logits.argmax(-1), roll_out.tokens)
    torch.testing.assert_close(
        model.tokenizer.quantizer.latent_from_tokens(roll_out.tokens, model.scales), roll_out.latent
    )


@torch.no_grad()
def test_condition_keys_and_values_are_computed_once() -> None:
    model = small_model()
    assert model.transformer is not None
    calls = []
    for block in model.transformer.block_sequence:
        block.cross.key_value.register_forward_hook(lambda *_: calls.append(1))
    model.generate(photos(model))
    assert len(calls) == len(model.transformer.blocks)


@pytest.mark.parametrize("part", ["attention", "cross"])
def test_attention_scale_stops_at_100(part: str) -> None:
    schedule = ScaleSchedule([1, 2])
    transformer = build(schedule)
    scales = [getattr(block, part).scale.log_scale for block in transformer.block_sequence]

    def logits(log_scale: float) -> Tensor:
        with torch.no_grad():
            for scale in scales:
                scale.fill_(log_scale)
            return transformer(*inputs(schedule))[0]

    assert torch.equal(logits(math.log(100) + 3), logits(math.log(100)))
    assert not torch.equal(logits(math.log(99)), logits(math.log(100)))


def test_queries_have_the_length_of_the_scale_and_keys_one() -> None:
    schedule = ScaleSchedule([1, 2])
    table = build(schedule).rotary
    scale, x = AttentionScale(heads=2), torch.randn(3, 2, 5, 16)
    torch.testing.assert_close(scale.query(x, table).norm(dim=-1), torch.full((3, 2, 5), 4.0))
    torch.testing.assert_close(scale.key(x, table).norm(dim=-1), torch.ones(3, 2, 5))


@given(st.tuples(st.integers(1, 9), st.integers(1, 9)))
@settings(max_examples=10, deadline=None)
@torch.no_grad()
def test_condition_of_another_size_is_resized(size: tuple[int, int]) -> None:
    schedule = ScaleSchedule([1, 3, (4, 5)])
    transformer = build(schedule)
    teacher_input, features = inputs(schedule, size=size)
    expected = transformer(teacher_input, reference.bicubic(features, schedule.finest))[0]
    assert reference.relative(transformer(teacher_input, features)[0], expected) < 1e-5


class TestDropPath:
    def test_is_off_in_evaluation(self) -> None:
        schedule = ScaleSchedule([1, 2])
        config = TransformerConfig(depth=3, width=16, heads=2, class_count=3, gain_init=1.0, drop_path=0.6)
        transformer = build(schedule, config)
        first, second = transformer(*inputs(schedule))[0], transformer(*inputs(schedule))[0]
        assert torch.equal(first, second)
        transformer.train()
        assert not torch.equal(transformer(*inputs(schedule))[0], first)

    def test_rises_linearly_to_the_published_rate(self) -> None:
        config = TransformerConfig(depth=5, width=16, heads=2)
        rates = [block.drop_path.rate for block in build(ScaleSchedule([1]), config).block_sequence]
        assert rates == pytest.approx([0.1 * 5 / 24 * index / 4 for index in range(5)])

    def test_draws_for_each_residual_and_each_sample(self) -> None:
        schedule = ScaleSchedule([1, 2])
        config = TransformerConfig(depth=2, width=16, heads=2, class_count=3, gain_init=1.0, drop_path=0.5)
        transformer = build(schedule, config).train()
        drawn = []
        transformer.block_sequence[1].drop_path.register_forward_hook(
            lambda module, given, result: drawn.append((result / given[0])[:, 0, 0] != 0)
        )
        teacher_input, features = inputs(schedule)
        torch.manual_seed(0)
        transformer(teacher_input[:1].expand(200, -1, -1), features[:1].expand(200, -1, -1, -1))
        kept = torch.stack(drawn).float()
        assert kept.shape == (3, 200)  # attention, MLP, cross-attention
        # 2 x 10^-5 chance of a mean off by more than 0.15, were the draws fair and independent
        assert (kept.mean(1) - 0.5).abs().max() < 0.15
        assert torch.corrcoef(kept).fill_diagonal_(0).abs().max() < 0.3

    def test_keeps_the_mean(self) -> None:
        torch.manual_seed(0)
        dropped = DropPath(0.25).train()(torch.ones(4000, 1, 1))
        assert dropped.unique().tolist() == pytest.approx([0.0, 4 / 3])
        assert dropped.mean() == pytest.approx(1.0, abs=0.05)


def test_gradients_reach_everything_that_is_trained() -> None:
    schedule = ScaleSchedule([1, 2, 3])
    for local in (False, True):
        config = TransformerConfig(depth=2, width=16, heads=2, class_count=3, gain_init=1.0, local_condition=local)
        transformer = build(schedule, config).train()
        transformer(*inputs(schedule))[0].square().mean().backward()
        untouched = [name for name, p in transformer.named_parameters() if p.grad is None or not p.grad.any()]
        assert untouched == []


def test_gains_of_zero_starve_the_condition() -> None:
    """Why training from scratch starts the gains at 1."""
    schedule = ScaleSchedule([1, 2])
    transformer = ScaleTransformer(TransformerConfig(depth=1, width=16, heads=2, class_count=3), Z, V, schedule)
    transformer(*inputs(schedule))[0].square().mean().backward()
    gradient = transformer.block_sequence[0].cross.query.weight.grad
    assert gradient is not None
    assert not gradient.any()
    assert transformer.block_sequence[0].cross.gain.grad is not None


def test_gradient_checkpointing_changes_no_gradient() -> None:
    schedule = ScaleSchedule([1, 2, 3])
    gradients = []
    for checkpointing in (False, True):
        transformer = build(schedule).train()
        transformer.gradient_checkpointing = checkpointing
        torch.manual_seed(0)  # the same paths are dropped, when recomputed too
        transformer(*inputs(schedule))[0].square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in transformer.parameters() if p.grad is not None]))
    torch.testing.assert_close(gradients[0], gradients[1])


@torch.no_grad()
def test_another_schedule_gets_its_own_tables() -> None:
    schedule, other = ScaleSchedule([1, 2, 3]), ScaleSchedule([1, (2, 3), (4, 6)])
    transformer, direct = build(schedule), build(other)
    transformer.set_scales(other)
    assert torch.equal(transformer(*inputs(other))[0], direct(*inputs(other))[0])
    assert set(transformer.state_dict()) == set(direct.state_dict())
    assert "rotary" not in transformer.state_dict()
    with pytest.raises(ValueError, match="4 scales given"):
        transformer.set_scales(ScaleSchedule([1, 2, 3, 4]))
