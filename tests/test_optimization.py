import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from restorevar.errors import UserError
from restorevar.models import RefinerConfig, RestoreVAR, RestoreVARConfig
from restorevar.optimization import (
    ConstantSchedule,
    CosineSchedule,
    RecipeSchedule,
    apply_schedule,
    parameter_groups,
)
from tests.conftest import SCALES, TOKENIZER, TRANSFORMER


def recipe(step, steps, warmup):
    """The formula of the published recipe, written down a second time."""
    if step < warmup:
        return 1.0
    u = (step - warmup) / (steps - 1 - warmup)
    return 1.0 if u < 0.05 else 0.01 + 0.99 * (1 - u) / 0.95


@pytest.mark.parametrize("step", [0, 1, 19, 20, 21, 25, 29, 30, 31, 100, 119, 120, 150, 199])
def test_the_recipe_at_several_steps(step):
    assert RecipeSchedule().multiplier(step, 200, 20) == pytest.approx(recipe(step, 200, 20), abs=1e-12)


def test_the_recipe_has_no_jump_and_ends_at_a_hundredth():
    curve = [RecipeSchedule().multiplier(step, 5000, 100) for step in range(5000)]
    assert curve[0] == 1.0
    assert curve[-1] == pytest.approx(0.01, abs=1e-12)
    steepest = max(abs(a - b) for a, b in itertools.pairwise(curve))
    assert steepest < 1.5 * 0.99 / 0.95 / 4899


@given(st.integers(1, 5000), st.integers(1, 500), st.floats(0, 3), st.sampled_from(["recipe", "cosine"]))
def test_every_curve_stays_between_its_ends(steps, epoch_steps, warmup, name):
    schedule = (
        RecipeSchedule(warmup_epochs=warmup) if name == "recipe" else CosineSchedule(warmup_steps=int(warmup * 50))
    )
    values = [schedule.multiplier(step, steps, epoch_steps) for step in range(0, steps + 2, max(steps // 50, 1))]
    assert all(0 <= value <= 1 for value in values)


def test_learning_rates_follow_schedule_multiplier_and_batch():
    module = nn.Linear(3, 3)
    groups = parameter_groups([module])
    groups[1]["lr_multiplier"] = 10.0
    optimizer = torch.optim.SGD(groups, lr=0.1)
    scheduler = apply_schedule(optimizer, CosineSchedule(warmup_steps=0), steps=5, epoch_steps=5, rate=0.5)
    seen = []
    for _ in range(5):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    expected = [0.05 * 0.5 * (1 + math.cos(math.pi * step / 4)) for step in range(5)]
    assert [row[0] for row in seen] == pytest.approx(expected, abs=1e-12)
    assert [row[1] for row in seen] == pytest.approx([10 * rate for rate in expected], abs=1e-12)


@pytest.mark.parametrize("steps", [0, -1])
def test_a_run_without_an_end_is_refused(steps):
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)
    with pytest.raises(UserError, match="max_epochs or max_steps"):
        apply_schedule(optimizer, ConstantSchedule(), steps, 1)


def test_decay_is_for_matrices_alone():
    config = RestoreVARConfig(
        scales=SCALES,
        tokenizer=TOKENIZER,
        transformer=TRANSFORMER,
        refiner=RefinerConfig(width=16, heads=2, mlp_width=16, depth=1),
    )
    model = RestoreVAR(config)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = {group["name"]: group for group in parameter_groups([model], scalar_rate_multiplier=10)}
    found = {name: {names[id(parameter)] for parameter in group["params"]} for name, group in groups.items()}
    assert sum(map(len, found.values())) == len(names)
    assert groups["matrices"].get("weight_decay") is None  # that of the optimizer
    assert groups["vectors"]["weight_decay"] == groups["scalars"]["weight_decay"] == 0.0
    assert groups["scalars"]["lr_multiplier"] == 10
    assert {"transformer.head.weight", "tokenizer.quant_conv.weight", "refiner.project_out.weight"} <= found["matrices"]
    undecayed = {
        "tokenizer.quantizer.codebook.weight",
        "transformer.class_embed.weight",
        "transformer.level_embed.weight",
        "transformer.condition_level_embed",
        "transformer.head.bias",
        "transformer.blocks.0.attention.query_bias",
        "transformer.blocks.0.cross.norm_query.weight",
        "refiner.latent_position",
    }
    assert undecayed <= found["vectors"]
    assert "transformer.blocks.0.cross.gain" in found["scalars"]
    assert "transformer.blocks.0.attention.scale.log_scale" in found["scalars"]
    assert "transformer.global_gain" in found["scalars"]


def test_frozen_parameters_are_left_out():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[0].requires_grad_(False)
    assert sum(len(group["params"]) for group in parameter_groups([module])) == 2
