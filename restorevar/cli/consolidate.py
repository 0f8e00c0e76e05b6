"""``restorevar consolidate``: a training checkpoint to a model folder."""

import dataclasses
import logging
import pickle
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from restorevar.errors import UserError
from restorevar.files import previous_of, refuse_existing

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["consolidate", "read_weights"]

logger = logging.getLogger(__name__)

PREFIX = "model."  # of the network inside a LightningModule
META = "meta.pt"  # what Lightning keeps beside the shards


def consolidate(checkpoint: Path, output: Path, overwrite: bool = False) -> None:
    """Makes a model folder of a training checkpoint: a file, or the folder of shards that FSDP writes.

    Optimizer states are not read. Where weights are averaged during training, the averages are taken. Licence and
    scales are those that the run's own export would have.

    Args:
        checkpoint: Such as runs/stage2/checkpoints/last.ckpt; written by any number of processes.
        output: The model folder to write.
        overwrite: Replace a model that is there already.
    """
    import torch

    from restorevar.models import pretrained
    from restorevar.models.config import RestoreVARConfig
    from restorevar.models.sharding import assemble

    refuse_existing([output / pretrained.CONFIG, output / pretrained.WEIGHTS], overwrite)
    if not checkpoint.exists() and previous_of(checkpoint).exists():
        checkpoint = previous_of(checkpoint)
    if not checkpoint.exists():
        raise UserError(f"no checkpoint {checkpoint}; expected a file or folder such as RUN/checkpoints/last.ckpt")
    weights, record = read_weights(checkpoint)
    if "model_config" not in record:
        raise UserError(f"{checkpoint} does not say the model's sizes; expected a checkpoint of a training stage")
    config = RestoreVARConfig.from_dict(record["model_config"])
    export = record.get("export", {})
    if export.get("license") is not None:
        config = dataclasses.replace(config, license=export["license"])
    with torch.no_grad():
        model = assemble(config, weights)
    if export.get("scales") is not None:
        model.set_scales(export["scales"])
    card = (
        f"# RestoreVAR in training\n\nMade by `restorevar consolidate` from `{checkpoint}`,"
        f" optimizer step {record['global_step']} of {export.get('stage', 'a training stage')}.\n\n"
        f"Licence of the weights: {model.config.license or 'not stated; that of the training photos may bind'}\n"
    )
    model.save_pretrained(output, card)
    if export.get("initial_model") is not None:
        try:
            pretrained.copy_license(export["initial_model"], output)
        except UserError as error:
            logger.warning("%s is not copied: %s", model.config.license, error)
    logger.info("model folder: %s (step %d)", output, record["global_step"])


def read_weights(checkpoint: Path) -> "tuple[dict[str, Tensor], dict[str, Any]]":
    """Whole weights of a checkpoint, and the rest of its record.

    Args:
        checkpoint: A file, or a folder of shards.

    Returns:
        Weights by the model's own names, and everything else but optimizer states.

    Raises:
        UserError: It cannot be read.
    """
    import torch
    from torch.distributed import checkpoint as sharded
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    try:
        if not checkpoint.is_dir():
            record = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
            weights = record.pop("state_dict")
        else:
            record = torch.load(checkpoint / META, map_location="cpu", weights_only=True)
            stored = sharded.FileSystemReader(checkpoint).read_metadata().state_dict_metadata
            weights = {
                name.removeprefix("state_dict."): torch.empty(entry.size, dtype=entry.properties.dtype)
                for name, entry in stored.items()
                if name.startswith("state_dict.") and isinstance(entry, TensorStorageMetadata)
            }
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "torch.distributed is disabled.*")  # one process is meant
                sharded.load({"state_dict": weights}, checkpoint_id=checkpoint, no_dist=True)
    except (
        OSError,
        EOFError,
        RuntimeError,
        TypeError,
        AttributeError,
        KeyError,
        pickle.UnpicklingError,
        CheckpointException,  # a BaseException
    ) as error:
        raise UserError(
            f"{checkpoint} cannot be read ({type(error).__name__}); is it a complete checkpoint?"
        ) from error
    return {name.removeprefix(PREFIX): value for name, value in weights.items() if name.startswith(PREFIX)}, record
