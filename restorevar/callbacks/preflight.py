"""What is about to happen, said before the first step; set-ups that cannot work stop there."""

import functools
import itertools
import logging
import time
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, WeightAveraging
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from restorevar.callbacks.acceleration import layers_of
from restorevar.callbacks.progress import Rate, duration
from restorevar.devices import computes_bfloat16
from restorevar.errors import UserError
from restorevar.memory import total_memory
from restorevar.modules import DetailModule, GateModule, RefinerModule, StageModule, TokenizerModule, TransformerModule

__all__ = ["Preflight", "activation_bytes", "memory_estimate"]

logger = logging.getLogger(__name__)

GIB = 2**30
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


class Preflight(Callback):
    """Writes a summary before step 1 (parameters, batch, samples of each kind, memory) and, once known, the time.

    Args:
        time_after_batches: Batches after which the time of an epoch and of the run is told.
    """

    def __init__(self, time_after_batches: int = 20) -> None:
        self.time_after_batches = time_after_batches
        self._rate = Rate()
        self._batches = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses combinations that would go wrong later.

        Raises:
            UserError: A precision that the stages are not made for, averaged weights with split weights, or a stage
                that cannot be split.
        """
        if isinstance(pl_module, StageModule) and str(trainer.precision) not in PRECISIONS:
            raise UserError(
                f"trainer.precision is {trainer.precision}; expected {', '.join(PRECISIONS)}: weights stay in float32"
            )
        if stage != "fit" or not isinstance(trainer.strategy, ModelParallelStrategy):
            return
        if any(isinstance(callback, WeightAveraging) for callback in callbacks_of(trainer)):
            raise UserError(
                "averaged weights (ExponentialMovingAverage) do not work with split weights (FSDP);"
                " remove that callback, or use configs/trainer/ddp.yaml"
            )
        if isinstance(pl_module, TokenizerModule):
            raise UserError(
                "stage 1 cannot be split (FSDP): its codebook is looked after as a whole; use configs/trainer/ddp.yaml"
            )
        if isinstance(pl_module, DetailModule):  # split weights are put together where `forward` is called
            raise UserError(
                "stage 4 cannot be split (FSDP): the decoder calls its parts one by one; use configs/trainer/ddp.yaml"
            )
        if isinstance(pl_module, GateModule):
            raise UserError("stage 5 has nothing to split (FSDP): the gate is tiny; use configs/trainer/ddp.yaml")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Checks sizes and writes the summary.

        Raises:
            UserError: The data module's crops are not of the model's size.
        """
        if not isinstance(pl_module, StageModule):
            return
        found, expected = tuple(getattr(trainer, "datamodule").image_size), pl_module.model.image_size  # noqa: B009
        if found != expected:
            raise UserError(
                f"data.image_size is {found[0]} x {found[1]}, but the model's own size is {expected[0]} x {expected[1]}"
                " (height x width); set data.image_size to that, or start from a model with other scales"
            )
        self._rate, self._batches = Rate(), 0
        if trainer.is_global_zero:
            logger.info("%s", "\n".join(summary(trainer, pl_module)))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Tells the time once there is something to tell it from."""
        if self._batches > self.time_after_batches:
            return
        self._batches += 1
        now = time.monotonic()
        self._rate.batch_end(now)
        if self._batches > self.time_after_batches and trainer.is_global_zero:
            epoch = self._rate.seconds_for(float(trainer.num_training_batches), now)
            steps = trainer.estimated_stepping_batches - trainer.global_step
            left = self._rate.seconds_for(steps * trainer.accumulate_grad_batches, now)
            if epoch is not None and left is not None:
                logger.info("time: %s an epoch, %s for the run, without validation", duration(epoch), duration(left))


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """The Trainer's callbacks."""
    return cast(Any, trainer).callbacks


def summary(trainer: Trainer, module: StageModule) -> list[str]:
    """Lines that say what is about to run.

    Args:
        trainer: At the start of `fit`.
        module: The stage.
    """
    data = cast(Any, trainer).datamodule
    parts = {name: count_parameters(part) for name, part in module.model.named_children()}
    trained = {name: counts[0] for name, counts in parts.items() if counts[0]}
    frozen = sum(counts[1] for counts in parts.values())
    accumulate = trainer.accumulate_grad_batches
    total = data.batch_size * trainer.world_size * accumulate
    rates = sorted({group["initial_lr"] for group in trainer.optimizers[0].param_groups if "initial_lr" in group})
    device = module.device.type
    lines = [
        f"{type(module).__name__} on {trainer.world_size} x {device}, {type(trainer.strategy).__name__},"
        f" precision {trainer.precision}",
        f"  trained   {', '.join(f'{name} {count / 1e6:.2f} M' for name, count in trained.items())};"
        f" frozen {frozen / 1e6:.2f} M parameters",
        f"  batch     {total} = {trainer.world_size} x {data.batch_size} x {accumulate} accumulated; highest learning"
        f" rate {', '.join(f'{rate:.3g}' for rate in rates)}",
        f"  steps     {module.total_steps} in all, {module.epoch_steps()} an epoch",
    ]
    # not the Trainer's loader: asking for that now would make Lightning forget a checkpoint's position in the data
    sampler = data.train_dataloader().epoch_sampler
    kinds = ", ".join(f"{task.name} {task.share * sampler.length:.0f}" for task in sampler.tasks)
    lines.append(f"  samples   {sampler.length} an epoch: {kinds}")
    estimate = memory_estimate(trainer, module)
    there = total_memory(module.device)
    needed = sum(estimate.values())
    parts_of_it = ", ".join(f"{name} {size / GIB:.2f}" for name, size in estimate.items())
    if "activations" not in estimate:
        parts_of_it += "; activations not counted"
    size = "" if there is None else f"; {there / GIB:.1f} GiB there"
    lines.append(f"  memory    about {needed / GIB:.2f} GiB a process ({parts_of_it}){size}")
    lines.append(f"  folder    {trainer.default_root_dir}")
    asked = {
        "--trainer.precision 32-true": "bf16" in str(trainer.precision),
        "--model.encoder_bfloat16 false": module.encoder_bfloat16,
    }
    if any(asked.values()) and not computes_bfloat16(module.device):
        options = " ".join(option for option, is_asked in asked.items() if is_asked)
        lines.append(f"  WARNING   bfloat16 is emulated on this device and very slow; add {options}")
    sharing = 1 if device == "cuda" else max(trainer.world_size // max(trainer.num_nodes, 1), 1)
    if there is not None and needed > there / sharing:
        lines.append(
            "  WARNING   this may not fit: lower data.batch_size (accumulation makes up for it), turn on"
            " acceleration.activation_checkpointing, or split the weights with configs/trainer/fsdp.yaml"
        )
    return lines


def count_parameters(module: nn.Module) -> tuple[int, int]:
    """Trained and frozen parameters."""
    counts = [0, 0]
    for parameter in module.parameters():
        counts[0 if parameter.requires_grad else 1] += parameter.numel()
    return counts[0], counts[1]


def memory_estimate(trainer: Trainer, module: StageModule) -> dict[str, float]:
    """Bytes a process needs: weights, training state (gradients, two AdamW moments, averages) and activations.

    Where the latter cannot be counted, those of the encoder alone, by that name.

    Args:
        trainer: At the start of `fit`.
        module: The stage.
    """
    split = trainer.world_size if isinstance(trainer.strategy, ModelParallelStrategy) else 1
    trained, frozen = count_parameters(module)
    averages = sum(isinstance(callback, WeightAveraging) for callback in callbacks_of(trainer))
    half = 0.5 if "16" in str(trainer.precision) else 1.0
    encoder_half = half if isinstance(module, TokenizerModule) else 0.5 if module.encoder_bfloat16 else 1.0
    estimate = {
        "weights": 4.0 * (trained / split + frozen),
        "training state": 12.0 * trained / split + 4.0 * averages * (trained + frozen),
    }
    batch_size = cast(Any, trainer).datamodule.batch_size
    saved, encoder = activation_bytes(module, batch_size), encoder_half * frozen_bytes(module, batch_size)
    if saved is None:
        estimate["encoder"] = encoder
    else:
        estimate["activations"] = half * saved + encoder
    return estimate


def activation_bytes(module: StageModule, batch_size: int) -> int | None:
    """Bytes that autograd keeps for the backward pass of what is trained, in float32: counted on tensors without data.

    Args:
        module: The stage, built.
        batch_size: Samples in a batch of one process.

    Returns:
        The bytes; None for stage 4, whose gradients go through the frozen decoder, and for a stage of the user's own.
    """
    model = module.model
    tokens, size = model.scales.tokens, model.scales.finest
    channels = model.config.tokenizer.latent_channels
    latent = (batch_size, channels, *size)
    if isinstance(module, TransformerModule) and model.transformer is not None:
        teacher_input = (batch_size, tokens - model.scales.lengths[0], channels)
        return saved_bytes(model.transformer, teacher_input, latent)
    if isinstance(module, RefinerModule) and model.refiner is not None and model.transformer is not None:
        hidden = (batch_size, tokens, model.transformer.config.width)
        return saved_bytes(model.refiner, latent, hidden, latent)
    if isinstance(module, TokenizerModule):
        kept = saved_bytes(model.tokenizer.decoder, latent)
        if module.codebook is not None:
            kept += saved_bytes(model.tokenizer.encoder, (batch_size, 3, *model.image_size))
        return kept
    return None


def saved_bytes(network: nn.Module, *shapes: tuple[int, ...]) -> int:
    """Bytes that autograd keeps for the backward pass, weights left out.

    Args:
        network: Its own weights are not touched.
        shapes: Of its inputs.
    """
    kept: dict[int, Tensor] = {}
    own: set[int] = set()

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()._cdata
        if storage not in own:
            kept[storage] = tensor  # held, so that no other storage gets its address
        return tensor

    # an entry of a module list that is run again in the backward pass keeps its inputs, which no hook sees
    inputs_of_layers: list[Tensor] = []
    layers = [layer for layer in layers_of(network) if isinstance(layer.forward, functools.partial)]
    hooks = [layer.register_forward_pre_hook(lambda _, given: inputs_of_layers.append(given[0])) for layer in layers]
    try:
        # layers that are to be compiled run as they are written: there is nothing to compile for
        with torch.compiler.set_stance("force_eager"), FakeTensorMode(), torch.enable_grad():
            weights: dict[str, Tensor] = {}
            for name, tensor in itertools.chain(network.named_parameters(), network.named_buffers()):
                weights[name] = torch.empty(tensor.shape, dtype=tensor.dtype).requires_grad_(tensor.requires_grad)
            own |= {weight.untyped_storage()._cdata for weight in weights.values()}
            inputs = [torch.empty(shape) for shape in shapes]
            with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
                torch.func.functional_call(network, weights, tuple(inputs))
            for tensor in inputs_of_layers:
                note(tensor)
            return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    finally:
        for hook in hooks:
            hook.remove()


def frozen_bytes(module: StageModule, batch_size: int) -> float:
    """Bytes of the widest feature maps while degraded and clean photos go through the frozen encoder, in float32."""
    config = module.model.config.tokenizer
    height, width = module.model.image_size
    live = 4  # input, output and two in between
    return 4.0 * live * 2 * batch_size * config.base_channels * height * width / config.stem_patch**2
