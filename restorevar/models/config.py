"""Sizes of a model, as plain dataclasses: what `config.json` of a model folder holds."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any, Literal, TypeVar

from restorevar.errors import UserError
from restorevar.models.scales import PAPER_SCALES_512, ScaleSchedule

__all__ = ["DetailConfig", "RefinerConfig", "RestoreVARConfig", "TokenizerConfig", "TransformerConfig"]

ConfigT = TypeVar("ConfigT")


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """Multi-scale residual VQVAE. Defaults are the paper's (108.95 M parameters, 16 times downsampling).

    Attributes:
        base_channels: Channels of the first level.
        channel_multipliers: Channels of each level over ``base_channels``; one level more halves the latent once more.
        encoder_blocks: Residual blocks of a level in the encoder.
        decoder_blocks: Residual blocks of a level in the decoder.
        latent_channels: Channels Z of the latent.
        vocabulary_size: Entries V of the codebook.
        stem_patch: Side of the pixel blocks folded into channels before the first level (and unfolded after the
            last); 1 is the published full-resolution stem, 4 is several times faster on CPUs.
        attention: Self-attention at the coarsest level and in the middle.
        norm_groups: Groups of the group norms.
        phi_count: Residual convolutions shared over the scales.
        phi_identity: Weight of the identity in phi(h) = identity * h + convolution * conv3x3(h).
        phi_convolution: Weight of the convolution in phi.
        linear_path: Adds a linear transform of f x f pixel blocks beside encoder and decoder. It starts as the lowest
            cosines of the blocks, so that training begins with a fair picture (24 dB at f = 8, Z = 16) and brightness
            need not find its way through the norms. For models from scratch; not in the paper.
    """

    base_channels: int = 160
    channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    encoder_blocks: int = 2
    decoder_blocks: int = 3
    latent_channels: int = 32
    vocabulary_size: int = 4096
    stem_patch: int = 1
    attention: bool = True
    norm_groups: int = 32
    phi_count: int = 4
    phi_identity: float = 0.5
    phi_convolution: float = 0.5
    linear_path: bool = False

    @property
    def downsampling(self) -> int:
        """Side of the photo over the side of the latent (f)."""
        return self.stem_patch * 2 ** (len(self.channel_multipliers) - 1)

    @property
    def level_channels(self) -> tuple[int, ...]:
        """Channels of each level, finest first."""
        return tuple(self.base_channels * multiplier for multiplier in self.channel_multipliers)


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Scale-wise transformer. Defaults are the paper's d16.

    Attributes:
        depth: Number of blocks d.
        width: Channels C (paper: 64 d).
        heads: Attention heads (paper: d).
        mlp_ratio: Hidden channels of the MLP over ``width``.
        drop_path: Largest stochastic-depth rate, reached at the last block; None is the paper's 0.1 d / 24.
        class_count: Rows of the class embedding, of which the last starts every sequence (published: 1001).
        rotary_base: Base of the rotary frequencies.
        gain_init: Start of the cross-attention gains and of the global condition's gain: 0 when VAR's weights are
            loaded, 1 from scratch, where 0 would leave the condition without gradient.
        local_condition: Adds the condition latent, area-downsampled to s_k, to the inputs of scale k. Not in the paper.
        mean_scales: How many of the first scales add the mean of the predicted distribution to the running sum instead
            of the likeliest token's entry. The likeliest is biased: to keep a dark photo's brightness is one token, to
            lighten it are many; and neighbouring tokens of a plain sky leave patches. Not in the paper, which has 0.
    """

    depth: int = 16
    width: int = 1024
    heads: int = 16
    mlp_ratio: float = 4.0
    drop_path: float | None = None
    class_count: int = 1001
    rotary_base: float = 10000.0
    gain_init: float = 0.0
    local_condition: bool = False
    mean_scales: int = 0

    @property
    def drop_path_rate(self) -> float:
        """Stochastic-depth rate of the last block."""
        return 0.1 * self.depth / 24 if self.drop_path is None else self.drop_path


@dataclasses.dataclass(frozen=True)
class RefinerConfig:
    """Latent refiner. Defaults are the paper's latent refinement transformer (22.97 M parameters).

    Attributes:
        kind: ``attention`` is the published transformer over all scales' hidden tokens; ``convolution`` is a small
            residual network on the latent, the degraded latent and the last scale's hidden tokens, for small models.
        width: Channels.
        heads: Attention heads (``attention`` only).
        mlp_width: Hidden channels of the MLP (``attention`` only).
        depth: Number of layers or residual blocks.
        context: Hidden channels of the MLP by which the whole photo scales and shifts all channels halfway
            (``convolution`` only); 0 leaves it out.
    """

    kind: Literal["attention", "convolution"] = "attention"
    width: int = 384
    heads: int = 6
    mlp_width: int = 768
    depth: int = 12
    context: int = 0


@dataclasses.dataclass(frozen=True)
class DetailConfig:
    """Detail path: features of the degraded photo fused into the decoder by gated residuals (ours, not the paper's).

    Attributes:
        width: Channels inside the fusions before the decoder's levels.
        blocks: Residual blocks inside each of them.
        photo_width: Channels inside the fusion into the decoded photo; 0 leaves the photo alone.
        photo_blocks: Residual blocks inside it.
        photo_context: Hidden channels of the MLP by which the whole photo scales and shifts its channels halfway; 0
            leaves it out.
        finest_level: First encoder level used, 0 being the level of the stem; the decoded photo needs 0.
    """

    width: int = 64
    blocks: int = 2
    photo_width: int = 0
    photo_blocks: int = 2
    photo_context: int = 0
    finest_level: int = 0


@dataclasses.dataclass(frozen=True)
class GateConfig:
    """Gate: how much of the degraded photo to keep, told from statistics of the whole photo (ours, not the paper's).

    Attributes:
        hidden: Hidden channels of the network that reads the statistics.
        dropout: Share of the statistics that training hides.
        filter_radius: Radius in pixels of the guided filter that the restored photo goes through; 0 leaves it out.
        filter_epsilon: Variance of the degraded photo, of values in [0, 1], below which a place counts as smooth there.
    """

    hidden: int = 16
    dropout: float = 0.1
    filter_radius: int = 8
    filter_epsilon: float = 1e-5


@dataclasses.dataclass(frozen=True)
class RestoreVARConfig:
    """A whole model, or the first parts of one: each training stage adds the next part.

    Attributes:
        scales: Sides (or [height, width]) of the token maps, coarse to fine; the last is the latent's size.
        tokenizer: Sizes of the tokenizer.
        transformer: Sizes of the transformer, None before stage 2.
        refiner: Sizes of the refiner, None before stage 3.
        detail: Sizes of the detail path, None where there is none.
        gate: Sizes of the gate, None where there is none.
        license: Licence of the weights (SPDX name or a file's name in the model folder).
    """

    scales: tuple[int | tuple[int, int], ...] = PAPER_SCALES_512
    tokenizer: TokenizerConfig = dataclasses.field(default_factory=TokenizerConfig)
    transformer: TransformerConfig | None = None
    refiner: RefinerConfig | None = None
    detail: DetailConfig | None = None
    gate: GateConfig | None = None
    license: str | None = None

    def __post_init__(self) -> None:
        """Checks what one part expects of another.

        Raises:
            UserError: If a size is not positive, or the parts do not fit each other.
        """
        ScaleSchedule(self.scales)
        for name in ("tokenizer", "transformer", "refiner", "detail", "gate"):
            _check_positive(name, getattr(self, name))
        if self.transformer is None and self.refiner is not None:
            raise UserError("the model has a refiner but no transformer; expected both, or no refiner")
        if self.gate is not None and not 0 <= self.gate.dropout < 1:
            raise UserError(f"gate dropout is {self.gate.dropout}; expected a share from 0 to below 1")
        if self.gate is not None and not self.gate.filter_epsilon >= 1e-5:  # less drowns in float32's rounding
            raise UserError(f"gate filter_epsilon is {self.gate.filter_epsilon}; expected a number from 1e-5")
        tokenizer, transformer = self.tokenizer, self.transformer
        groups = tokenizer.norm_groups
        for channels in tokenizer.level_channels:
            if channels % groups:
                raise UserError(
                    f"tokenizer level with {channels} channels cannot have {groups} norm groups; "
                    "change base_channels, channel_multipliers or norm_groups"
                )
        if transformer is not None and (
            transformer.width % transformer.heads or transformer.width // transformer.heads % 4
        ):
            raise UserError(
                f"transformer width {transformer.width} with {transformer.heads} heads: expected width / heads to be "
                "a multiple of 4 (2D rotary embedding); change width or heads"
            )
        self._check_refiner()
        if self.detail is not None:
            _check_group_width("detail", self.detail.width)
            if self.detail.photo_width and self.detail.finest_level:
                raise UserError(
                    f"detail finest_level is {self.detail.finest_level} and photo_width {self.detail.photo_width}; "
                    "expected finest_level 0 where the decoded photo is fused, or photo_width 0"
                )

    def _check_refiner(self) -> None:
        refiner = self.refiner
        if refiner is None:
            return
        if refiner.kind == "convolution":
            _check_group_width("refiner", refiner.width)
        elif refiner.kind != "attention":
            raise UserError(f"refiner kind '{refiner.kind}' is unknown; expected attention or convolution")
        elif refiner.width % refiner.heads:
            raise UserError(
                f"refiner width {refiner.width} does not divide into {refiner.heads} heads; change width or heads"
            )

    @property
    def schedule(self) -> ScaleSchedule:
        """The scale schedule as an object."""
        return ScaleSchedule(self.scales)

    @property
    def image_size(self) -> tuple[int, int]:
        """The model's own photo size (height, width) in pixels."""
        height, width = self.schedule.finest
        return height * self.tokenizer.downsampling, width * self.tokenizer.downsampling

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RestoreVARConfig:
        """Reads what :meth:`to_dict` wrote; fields added since then keep their defaults.

        Raises:
            UserError: If there is a key that no field has.
        """
        parts = {
            "tokenizer": TokenizerConfig,
            "transformer": TransformerConfig,
            "refiner": RefinerConfig,
            "detail": DetailConfig,
            "gate": GateConfig,
        }
        values = dict(values)
        for name, part in parts.items():
            if values.get(name) is not None:
                values[name] = _build(part, values[name], f"{name}.")
        if "scales" in values:
            values["scales"] = tuple(size if isinstance(size, int) else (size[0], size[1]) for size in values["scales"])
        return _build(cls, values, "")


_MAY_BE_ZERO = ("filter_radius", "finest_level", "photo_width", "photo_context", "context", "mean_scales")


def _check_positive(name: str, part: Any) -> None:
    """All sizes are whole numbers from 1 but for the index of a level and what 0 leaves out."""
    for field in () if part is None else dataclasses.fields(part):
        value = getattr(part, field.name)
        least = 0 if field.name in _MAY_BE_ZERO else 1
        sizes = {"int": (value,), "tuple[int, ...]": value or (0,)}.get(str(field.type), ())
        if any(isinstance(size, bool) or not isinstance(size, int) or size < least for size in sizes):
            raise UserError(f"{name} {field.name} is {value}; expected whole numbers from {least}; change {field.name}")


def _check_group_width(name: str, width: int) -> None:
    """Convolutional parts have group norms of 16 channels a group."""
    if width > 16 and width % 16:
        raise UserError(f"{name} width {width} is not a multiple of 16, which its group norms need; change width")


def _build(part: type[ConfigT], values: dict[str, Any], prefix: str) -> ConfigT:
    names = [field.name for field in dataclasses.fields(part)]  # type: ignore[arg-type]
    for key in values:
        if key not in names:
            near = difflib.get_close_matches(key, names, 1)
            hint = f"did you mean '{prefix}{near[0]}'?" if near else f"known: {', '.join(names)}"
            raise UserError(f"unknown model setting '{prefix}{key}'; {hint}")
    return part(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})
