"""Splitting weights over processes with FSDP2 (`fully_shard`), and putting them together again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from restorevar.models.restorevar import RestoreVAR

__all__ = ["gathered", "is_sharded", "shard", "unsharded_copy"]


def shard(modules: Iterable[nn.Module], mesh: DeviceMesh) -> None:
    """Splits modules over a mesh, each entry of their module lists (transformer blocks, refiner layers) on its own.

    Args:
        modules: What is trained. Frozen parts stay whole on every process: they have no gradients or optimizer states.
        mesh: One-dimensional.
    """
    for module in modules:
        for part in module.modules():
            if isinstance(part, nn.ModuleList):
                for entry in part:
                    fully_shard(entry, mesh=mesh)
        fully_shard(module, mesh=mesh)


def is_sharded(module: nn.Module) -> bool:
    """Whether any part of it is split over processes."""
    return any(isinstance(part, FSDPModule) for part in module.modules())


@contextlib.contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """Whole weights on every process while it lasts, for passes other than `forward` (roll-outs); without gradients.

    Does nothing for modules that are not split.
    """
    parts = [part for part in module.modules() if isinstance(part, FSDPModule)]
    for part in parts:
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()


def unsharded_copy(model: RestoreVAR) -> RestoreVAR:
    """The model with whole weights on the CPU; called on all processes, and complete on the first one only."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = get_model_state_dict(model, options=options)
    with torch.device("meta"):
        copy = RestoreVAR(model.config)
    copy = copy.to_empty(device="cpu")
    if state:
        copy.load_state_dict(state)
    copy.rebuild_tables()
    return copy.eval()
