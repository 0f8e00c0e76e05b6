"""FSDP2: weights, gradients and optimizer states split over all processes."""

import logging
import os
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.constants import default_pg_timeout

from restorevar.files import previous_of, publish, sync

__all__ = ["ShardedStrategy"]

logger = logging.getLogger(__name__)


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's model-parallel strategy with all processes in one data-parallel group and safe checkpoint folders.

    Lightning's own default makes groups of the size of the number of nodes: on one node every process would see all
    of the data, without an error. Which layers are split is the model's affair (`StageModule.configure_model`).

    A checkpoint is a folder with one file a process. It is written under a temporary name, synced and then put in the
    place of the one before it, which is kept until then.

    Args:
        process_group_backend: `nccl` or `gloo`; chosen by the device if not given.
        timeout_minutes: How long processes wait for each other before they give up.
    """

    def __init__(self, process_group_backend: str | None = None, timeout_minutes: float | None = None) -> None:
        timeout = default_pg_timeout if timeout_minutes is None else timedelta(minutes=timeout_minutes)
        super().__init__(
            data_parallel_size=1,  # not known before the processes are; see setup_environment
            tensor_parallel_size=1,
            save_distributed_checkpoint=True,
            process_group_backend=process_group_backend,
            timeout=timeout,
        )

    def setup_environment(self) -> None:
        """Joins the processes; all of them form the data-parallel group."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        """Writes a sharded checkpoint folder; called on all processes.

        Args:
            checkpoint: Lightning's checkpoint dictionary.
            filepath: The folder.
            storage_options: Not supported.
        """
        path = Path(self.broadcast(os.fspath(filepath)))
        temporary = path.with_name(f".{path.name}.part")
        if self.is_global_zero:
            shutil.rmtree(temporary, ignore_errors=True)  # of a run that was killed here
            path.parent.mkdir(parents=True, exist_ok=True)
        self.barrier()
        super().save_checkpoint(checkpoint, temporary, storage_options)
        for file in temporary.iterdir():
            if file.is_file():
                sync(file)
        self.barrier()
        if self.is_global_zero:
            sync(temporary)
            publish(temporary, path)
        self.barrier()

    def load_checkpoint(
        self, checkpoint_path: str | os.PathLike[str], weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Reads a sharded checkpoint folder written by any number of processes, or a full checkpoint file.

        Args:
            checkpoint_path: The folder; if a run was killed while it was being replaced, the one before it is taken.
            weights_only: None means True.

        Returns:
            What is not weights or optimizer states; those have been loaded into the model.
        """
        path = Path(checkpoint_path)
        if not path.exists() and previous_of(path).exists():
            path = previous_of(path)
        return super().load_checkpoint(path, weights_only is not False)

    def remove_checkpoint(self, filepath: str | os.PathLike[str]) -> None:
        """Removes a checkpoint folder or file."""
        if self.is_global_zero:
            path = Path(filepath)
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
