"""Splitting weights over processes with FSDP2 (`fully_shard`), and putting them together again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import cast

from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from restorevar.errors import UserError
from restorevar.models.config import RestoreVARConfig
from restorevar.models.restorevar import RestoreVAR

__all__ = ["assemble", "gathered", "is_sharded", "shard", "unsharded_copy"]


def shard(modules: Iterable[nn.Module], mesh: DeviceMesh) -> None:
    """Splits modules over a mesh, each entry of their module lists (transformer blocks, refiner layers) on its own.

    Args:
        modules: What is trained. Frozen parts stay whole on every process: they have no gradients or optimizer states.
        mesh: One-dimensional.
    """
    for module in modules:
        _widen_scalars(module)
        for part in module.modules():
            if isinstance(part, nn.ModuleList):
                for entry in part:
                    fully_shard(entry, mesh=mesh)
        fully_shard(module, mesh=mesh)


def _widen_scalars(module: nn.Module) -> None:
    """Gains become vectors of one number: FSDP cannot split what has no dimension."""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            if parameter.dim() == 0:
                setattr(part, name, nn.Parameter(parameter.detach()[None], requires_grad=parameter.requires_grad))


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
    weights = cast("Mapping[str, Tensor]", get_model_state_dict(model, options=options))
    return assemble(model.config, weights)


def assemble(config: RestoreVARConfig, state: Mapping[str, Tensor]) -> RestoreVAR:
    """A model on the CPU from its sizes and whole weights.

    Args:
        config: The sizes.
        state: Weights by name; empty leaves them undefined.

    Raises:
        UserError: If the weights do not fit.
    """
    model = RestoreVAR(config, initialize=False)
    if state:
        expected = model.state_dict()
        if different := sorted(expected.keys() ^ state.keys()):
            raise UserError(f"the weights do not fit the model's sizes: {different[0]} is missing or left over")
        for name, value in state.items():
            if value.numel() != expected[name].numel():
                raise UserError(
                    f"the weights do not fit the model's sizes: '{name}' has shape {tuple(value.shape)}, expected "
                    f"{tuple(expected[name].shape)}; was it made by another version?"
                )
        # gains were vectors while they were split
        model.load_state_dict({name: value.reshape(expected[name].shape) for name, value in state.items()})
    model.rebuild_tables()
    return model.eval()
