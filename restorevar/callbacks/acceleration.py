"""Switches that trade time for memory or start-up for speed, without changing what is computed."""

import functools
from collections.abc import Iterator

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.utils.checkpoint import checkpoint

from restorevar.modules import StageModule

__all__ = ["Acceleration", "layers_of"]


class Acceleration(Callback):
    """Activation checkpointing and compilation of the layers that a stage trains.

    Args:
        activation_checkpointing: Keep a layer's inputs only and run it again in the backward pass: a third slower, with
            a fraction of the memory for activations.
        compile: Compile each layer with `torch.compile`. The first steps take minutes; results differ by rounding.
    """

    def __init__(self, activation_checkpointing: bool = False, compile: bool = False) -> None:
        self.activation_checkpointing, self.compile = activation_checkpointing, compile

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Once the model is built, and split if it is."""
        if not isinstance(pl_module, StageModule):
            return
        for module in pl_module.trained_modules():
            for layer in layers_of(module):
                if self.activation_checkpointing:
                    # draws of drop path are repeated; the layer's own hooks (FSDP) stay outside
                    layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)
                if self.compile:
                    layer.compile()


def layers_of(module: nn.Module) -> Iterator[nn.Module]:
    """Outermost entries of a network's module lists: transformer blocks, refiner layers, levels of a decoder."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from layers_of(child)
