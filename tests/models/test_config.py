import dataclasses
import json

import pytest

from restorevar.errors import UserError
from restorevar.models import DetailConfig, RefinerConfig, RestoreVARConfig, TokenizerConfig, TransformerConfig
from tests.models.small import CONVOLUTION_REFINER, DETAIL, small_config


@pytest.mark.parametrize(
    "config",
    [
        RestoreVARConfig(),
        RestoreVARConfig(transformer=TransformerConfig(), refiner=RefinerConfig()),
        small_config(scales=(1, (2, 3), (4, 6)), refiner=CONVOLUTION_REFINER, detail=DETAIL, license="CC0-1.0"),
    ],
)
def test_json_gives_the_config_back(config: RestoreVARConfig) -> None:
    assert RestoreVARConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_fields_added_later_keep_their_defaults() -> None:
    values = small_config().to_dict()
    del values["tokenizer"]["stem_patch"], values["transformer"]["local_condition"], values["detail"]
    assert RestoreVARConfig.from_dict(values) == small_config()


@pytest.mark.parametrize(
    ("path", "wrong", "nearest"),
    [
        (("transformer",), "dept", "transformer.depth"),
        (("tokenizer",), "latent_chanels", "tokenizer.latent_channels"),
        ((), "scale", "scales"),
    ],
)
def test_unknown_key_names_the_nearest(path: tuple[str, ...], wrong: str, nearest: str) -> None:
    values = small_config().to_dict()
    part = values[path[0]] if path else values
    part[wrong] = 1
    with pytest.raises(UserError, match=rf"unknown model setting '.*{wrong}'; did you mean '{nearest}'\?"):
        RestoreVARConfig.from_dict(values)


def test_unknown_key_far_from_all() -> None:
    with pytest.raises(UserError, match=r"unknown model setting 'xyzzy'; known: scales, tokenizer"):
        RestoreVARConfig.from_dict({"xyzzy": 1})


def test_parts_that_do_not_fit() -> None:
    with pytest.raises(UserError, match="a refiner but no transformer"):
        RestoreVARConfig(refiner=RefinerConfig())
    with pytest.raises(UserError, match=r"60 channels cannot have 32 norm groups; change base_channels"):
        RestoreVARConfig(tokenizer=TokenizerConfig(base_channels=60))
    with pytest.raises(UserError, match=r"width 100 with 16 heads.*change width or heads"):
        RestoreVARConfig(transformer=TransformerConfig(width=100))
    with pytest.raises(UserError, match=r"refiner width 40 does not divide into 3 heads"):
        small_config(refiner=RefinerConfig(width=40, heads=3))
    with pytest.raises(UserError, match=r"refiner width 40 is not a multiple of 16"):
        small_config(refiner=RefinerConfig(kind="convolution", width=40))
    with pytest.raises(UserError, match=r"detail width 40 is not a multiple of 16"):
        small_config(detail=DetailConfig(width=40))
    with pytest.raises(UserError, match=r"refiner kind 'atention' is unknown; expected attention or convolution"):
        small_config(refiner=RefinerConfig(kind="atention"))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="shrinks"):
        RestoreVARConfig(scales=(2, 1))


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"transformer": TransformerConfig(heads=0)}, "transformer heads is 0; expected whole numbers from 1"),
        ({"transformer": TransformerConfig(depth=2.5)}, r"transformer depth is 2\.5"),  # type: ignore[arg-type]
        ({"refiner": RefinerConfig(width=16, heads=-2)}, "refiner heads is -2"),
        ({"tokenizer": TokenizerConfig(norm_groups=0)}, "tokenizer norm_groups is 0"),
        ({"tokenizer": TokenizerConfig(channel_multipliers=(1, 0))}, r"channel_multipliers is \(1, 0\)"),
        ({"detail": DetailConfig(width=0)}, "detail width is 0"),
        ({"detail": DetailConfig(finest_level=-1)}, "finest_level is -1; expected whole numbers from 0"),
        ({"detail": DetailConfig(16, finest_level=1, photo_width=16)}, "expected finest_level 0 where the decoded"),
    ],
)
def test_sizes_that_are_not_positive(part: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        small_config(**part)


def test_configs_do_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        small_config().scales = (1,)  # type: ignore[misc]
