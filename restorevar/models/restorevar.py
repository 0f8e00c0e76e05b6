"""The assembled model: degraded photo -> tokenizer -> transformer -> refiner -> decoder -> photo."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from restorevar.errors import UserError
from restorevar.models.config import GateConfig, RestoreVARConfig
from restorevar.models.detail import DetailPath
from restorevar.models.gate import PhotoGate
from restorevar.models.initialization import (
    WithoutInitialization,
    initialize_refiner,
    initialize_tokenizer,
    initialize_transformer,
)
from restorevar.models.refiner import Refiner, build_refiner
from restorevar.models.scales import ScaleSchedule
from restorevar.models.tokenizer import Tokenizer
from restorevar.models.transformer import ScaleTransformer

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Generation", "RestoreVAR", "RollOut", "in_float32_island"]


@dataclass
class RollOut:
    """Result of one autoregressive pass over all scales.

    Attributes:
        tokens: (B, T) int64; of the first ``mean_scales`` scales, those nearest to the means.
        hidden: (B, T, C) the last block's outputs.
        latent: (B, Z, s_K, s_K) running sum f_hat, float32.
    """

    tokens: Tensor
    hidden: Tensor
    latent: Tensor


@dataclass
class Generation:
    """Result of :meth:`RestoreVAR.generate`.

    Attributes:
        image: (B, 3, H, W) float32 in [0, 1].
        tokens: (B, T) int64, see :class:`RollOut`.
        hidden: (B, T, C) the last block's outputs.
        latent: (B, Z, s_K, s_K) running sum f_hat before the refiner.
        refined_latent: (B, Z, s_K, s_K) after the refiner; `latent` where the model has none.
    """

    image: Tensor
    tokens: Tensor
    hidden: Tensor
    latent: Tensor
    refined_latent: Tensor


FLOAT32_ISLAND = ("tokenizer.quant_conv.", "tokenizer.quantizer.", "transformer.head.")


def in_float32_island(name: str) -> bool:
    """Whether a weight stays float32 in a bfloat16 model: what decides between neighbouring tokens."""
    return name.startswith(FLOAT32_ISLAND) or name.endswith(".log_scale")


def _lets_through(fidelity: float | Tensor) -> bool:
    """Whether detail path and gate have a say; where every sample has a fidelity of its own, they have."""
    return isinstance(fidelity, Tensor) or fidelity != 0


class RestoreVAR(nn.Module):
    """All-in-one restoration by visual autoregression (arXiv 2505.18047).

    Args:
        config: Sizes. Parts that are None are left out; ``generate`` needs tokenizer and transformer.
        initialize: Whether to draw first weights. Without, they hold what was in memory: for weights that are read.
    """

    def __init__(self, config: RestoreVARConfig, initialize: bool = True) -> None:
        super().__init__()
        self.config = config
        self.transformer: ScaleTransformer | None = None
        self.refiner: Refiner | None = None
        self.detail: DetailPath | None = None
        self.gate: PhotoGate | None = None
        with contextlib.nullcontext() if initialize else WithoutInitialization():
            self._build(initialize)
        for part in (self.tokenizer, self.refiner, self.detail):
            if part is not None:
                part.to(memory_format=torch.channels_last)  # the faster layout for convolutions

    def _build(self, initialize: bool) -> None:
        config = self.config
        self.tokenizer = Tokenizer(config.tokenizer)
        if initialize:
            initialize_tokenizer(self.tokenizer)
        latent_channels, vocabulary = config.tokenizer.latent_channels, config.tokenizer.vocabulary_size
        if config.transformer is not None:
            self.transformer = ScaleTransformer(config.transformer, latent_channels, vocabulary, config.schedule)
            if initialize:
                initialize_transformer(self.transformer)
            if config.refiner is not None:
                self.refiner = build_refiner(config.refiner, latent_channels, config.transformer.width, config.schedule)
                if initialize:
                    initialize_refiner(self.refiner)
        if config.detail is not None:
            self.detail = DetailPath(config.detail, config.tokenizer)
        if config.gate is not None:
            self.gate = PhotoGate(config.gate)

    @property
    def scales(self) -> ScaleSchedule:
        """The scale schedule."""
        return self.config.schedule

    @property
    def image_size(self) -> tuple[int, int]:
        """The model's own photo size (height, width) in pixels."""
        return self.config.image_size

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the large matrix products and convolutions."""
        return self.tokenizer.encoder.conv_in.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.tokenizer.encoder.conv_in.weight.device

    def set_precision(self, dtype: torch.dtype) -> RestoreVAR:
        """Casts the weights for inference; quantizer, ``quant_conv``, attention scales and head stay float32.

        Args:
            dtype: ``torch.float32`` or ``torch.bfloat16``; float16 overflows in this model.

        Returns:
            The model itself.

        Raises:
            UserError: If ``dtype`` is another one.
        """
        if dtype not in (torch.float32, torch.bfloat16):
            raise UserError(f"precision {dtype} is not supported; expected float32 or bfloat16 (float16 overflows)")
        for name, parameter in self.named_parameters():
            if not in_float32_island(name):
                parameter.data = parameter.data.to(dtype)
        return self

    def set_scales(self, sizes: Sequence[int | Sequence[int]]) -> RestoreVAR:
        """Makes the model work at another size: another schedule of as many scales, without training.

        Rotary places follow the new grid and the refiner's position embeddings are resized per scale. Quality drops
        with the distance from the size of training.

        Args:
            sizes: Sides (or (height, width)) of the token maps, coarse to fine.

        Returns:
            The model itself.

        Raises:
            UserError: If the number of scales differs from the model's.
        """
        schedule = ScaleSchedule(sizes)
        if len(schedule) != len(self.scales):
            raise UserError(f"{len(schedule)} scales given; this model has {len(self.scales)}: give as many sizes")
        values = self.config.to_dict() | {"scales": schedule.to_list()}
        self.config = RestoreVARConfig.from_dict(values)
        for part in (self.transformer, self.refiner):
            if part is not None:
                part.set_scales(schedule)
        return self

    def set_gate(self, config: GateConfig | None) -> RestoreVAR:
        """Gives the model a new gate, untrained, or takes away the one it has.

        Args:
            config: Sizes; None for no gate.

        Returns:
            The model itself.
        """
        self.config = dataclasses.replace(self.config, gate=config)
        self.gate = None if config is None else PhotoGate(config).to(self.device).train(self.training)
        return self

    def rebuild_tables(self) -> None:
        """Recomputes the tables that follow from the schedule, after the model was made without initialisation."""
        if self.transformer is not None:
            self.transformer.set_scales(self.scales)
        if self.detail is not None:
            self.detail.rebuild_tables()

    def _transformer(self) -> ScaleTransformer:
        if self.transformer is None:
            raise UserError("this model folder holds a tokenizer only; expected one that went through stage 2 as well")
        return self.transformer

    def _check_size(self, image: Tensor) -> None:
        if image.dim() != 4 or tuple(image.shape[1:]) != (3, *self.image_size):
            height, width = self.image_size
            raise UserError(
                f"the model got a tensor of shape {tuple(image.shape)}; expected (B, 3, {height}, {width}). "
                "For other sizes use model.restore(photo)"
            )

    def prepared(self, image: Tensor) -> Tensor:
        """The image on the model's device, in its memory layout, in float32."""
        return image.to(self.device, torch.float32).contiguous(memory_format=torch.channels_last)

    def roll_out(self, features: Tensor) -> RollOut:
        """Autoregressive pass over all scales: the likeliest tokens, or as ``transformer.mean_scales`` says, means.

        Args:
            features: (B, Z, h, w) encoder features of the degraded photo.
        """
        parts = list(self.scale_by_scale(features))
        tokens, hidden = [part.tokens for part in parts], [part.hidden for part in parts]
        return RollOut(torch.cat(tokens, 1), torch.cat(hidden, 1), parts[-1].latent)

    def scale_by_scale(self, features: Tensor) -> Iterator[RollOut]:
        """The steps of :meth:`roll_out`: tokens and hidden of one scale each, with the running sum after it.

        Args:
            features: (B, Z, h, w) encoder features of the degraded photo.
        """
        transformer, quantizer, scales = self._transformer(), self.tokenizer.quantizer, self.scales
        state = transformer.start(features)
        running: Tensor | None = None
        for scale in range(len(scales)):
            inputs = None if running is None else quantizer.next_input(running, scale, scales)
            hidden = transformer.step(state, inputs, scale)
            tokens, entries = self._choose(hidden, scale)
            added = quantizer.contribution_of(entries, scale, scales)
            running = added if running is None else running + added
            yield RollOut(tokens, hidden, running)

    def _choose(self, hidden: Tensor, scale: int) -> tuple[Tensor, Tensor]:
        """Tokens (B, n) and entries (B, n, Z) of one scale, from the last block's outputs (B, n, C)."""
        transformer, quantizer = self._transformer(), self.tokenizer.quantizer
        if scale < transformer.config.mean_scales:
            entries = quantizer.mean_entries(transformer.logits(hidden))
            return quantizer.nearest(entries.flatten(0, 1)).unflatten(0, entries.shape[:2]), entries
        tokens = transformer.predict(hidden)
        return tokens, quantizer.codebook(tokens)

    def refine(self, roll_out: RollOut, features: Tensor) -> Tensor:
        """Continuous latent (B, Z, s_K, s_K) of a roll-out; its discrete one where the model has no refiner."""
        return roll_out.latent if self.refiner is None else self.refiner(roll_out.latent, roll_out.hidden, features)

    def decode(self, latent: Tensor, pyramid: list[Tensor], fidelity: float | Tensor, clamp: bool = True) -> Tensor:
        """Photo of a latent, with detail path and gate where fidelity asks for them.

        Args:
            latent: (B, Z, s_K, s_K).
            pyramid: The degraded photo's pixel blocks and encoder features, from :meth:`Encoder.pyramid`.
            fidelity: Weight of detail path and gate in [0, 1], a number or one a sample.
            clamp: Clamp to [-1, 1].

        Returns:
            (B, 3, H, W).
        """
        image = self.decode_ungated(latent, pyramid, fidelity, clamp=False)
        if self.gate is not None and _lets_through(fidelity):
            patch = self.config.tokenizer.stem_patch
            degraded = F.pixel_shuffle(pyramid[0], patch) if patch > 1 else pyramid[0]
            image = self.gate(image, degraded, fidelity)
        return image.clamp(-1, 1) if clamp else image

    def decode_ungated(
        self, latent: Tensor, pyramid: list[Tensor], fidelity: float | Tensor, clamp: bool = True
    ) -> Tensor:
        """What :meth:`decode` gives without a gate; arguments as there."""
        if self.detail is None or not _lets_through(fidelity):
            return self.tokenizer.decode(latent, clamp=clamp)
        fuser = self.detail.fuser(pyramid, fidelity)
        image = fuser.photo(self.tokenizer.decode(latent, clamp=False, fuse=fuser))
        return image.clamp(-1, 1) if clamp else image

    def resolve_fidelity(self, fidelity: float | None) -> float:
        """Checks a fidelity; None is 1 with a detail path or a gate and 0 without either.

        Raises:
            UserError: If it is outside [0, 1], or above 0 for a model with neither.
        """
        plain = self.detail is None and self.gate is None
        if fidelity is None:
            return 0.0 if plain else 1.0
        if not 0.0 <= fidelity <= 1.0:
            raise UserError(f"fidelity is {fidelity}; expected a number from 0 (method only) to 1 (most of the input)")
        if fidelity > 0 and plain:
            raise UserError(
                f"fidelity is {fidelity}, but this model has no detail path; leave fidelity out or set it to 0"
            )
        return float(fidelity)

    @torch.no_grad()
    def generate(self, degraded: Tensor, fidelity: float | None = None, gated: bool = True) -> Generation:
        """Restores photos of the model's own size.

        Args:
            degraded: (B, 3, H, W) in [-1, 1]; (H, W) is ``image_size``.
            fidelity: Weight of detail path and gate in [0, 1]: 0 is the published method, 1 keeps as much of the photo
                as possible. None is 1 where the model has either.
            gated: Whether the gate, where there is one, has its say; not for tiles of a larger photo, which it has to
                see as a whole.

        Raises:
            UserError: If the size or the fidelity does not fit the model.
        """
        fidelity = self.resolve_fidelity(fidelity)
        self._check_size(degraded)
        features, pyramid = self.tokenizer.encoder.features(self.prepared(degraded))
        if fidelity == 0:
            pyramid = []  # free the memory
        roll_out = self.roll_out(features)
        refined = self.refine(roll_out, features)
        decode = self.decode if gated else self.decode_ungated
        image = decode(refined, pyramid, fidelity).float()
        return Generation((image + 1) / 2, roll_out.tokens, roll_out.hidden, roll_out.latent, refined)

    def teacher_forced(self, clean: Tensor, degraded: Tensor) -> Tensor:
        """Logits with the clean photo's own tokens as input (training and diagnosis; not what users get).

        Args:
            clean: (B, 3, H, W) in [-1, 1].
            degraded: The same.

        Returns:
            (B, T, V) float32.
        """
        transformer = self._transformer()
        self._check_size(clean)
        self._check_size(degraded)
        with torch.no_grad():
            features = self.tokenizer.encode_features(self.prepared(torch.cat([degraded, clean])))
            condition, clean_features = features.chunk(2)
            tokens = self.tokenizer.quantizer.quantize(self.tokenizer.to_latent(clean_features), self.scales).tokens
            teacher_input = self.tokenizer.quantizer.teacher_input(tokens, self.scales)
        return transformer(teacher_input, condition)[0]

    def restore(self, photo: Any, **options: Any) -> Any:
        """Restores a photo of any size: a PIL image, an array or a tensor in, the same kind and size out.

        Args:
            photo: See :func:`restorevar.restoration.restorer.restore_photo`.
            **options: The keyword arguments of that function (tile, overlap, fidelity, color_fix ...).
        """
        from restorevar.restoration.restorer import restore_photo

        return restore_photo(self, photo, **options)

    @classmethod
    def from_pretrained(cls, name_or_folder: str | os.PathLike[str]) -> RestoreVAR:
        """Loads a shipped model by name, a model folder, or a hub id; see :func:`restorevar.models.pretrained.load`."""
        from restorevar.models.pretrained import load

        return load(name_or_folder)

    def save_pretrained(
        self, folder: str | os.PathLike[str], card: str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        """Writes a model folder; see :func:`restorevar.models.pretrained.save`."""
        from restorevar.models.pretrained import save

        save(self, folder, card, dtype)

    @classmethod
    def from_published(
        cls,
        tokenizer: str | os.PathLike[str] | Mapping[str, Tensor],
        transformer: str | os.PathLike[str] | Mapping[str, Tensor] | None = None,
        refiner_heads: int | None = None,
        scales: Sequence[int | Sequence[int]] | None = None,
    ) -> RestoreVAR:
        """Loads weights under the published names; see :func:`restorevar.models.published.load_published`."""
        from restorevar.models.published import load_published

        return load_published(tokenizer, transformer, refiner_heads, scales)
