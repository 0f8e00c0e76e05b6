"""``fit``, ``validate``, ``test`` and ``predict``: Lightning's command line with short errors and our defaults."""

import json
import logging
import os
import re
import signal
import warnings
from collections.abc import Sequence
from typing import Any

# albumentations asks the network for a newer version when it is imported
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import torch
from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException
from lightning.pytorch.utilities.model_helpers import is_overridden

from restorevar.callbacks import (
    Acceleration,
    ExportModel,
    NanGuard,
    NewestCheckpoint,
    Preflight,
    RequeueOnSignal,
    TotalBatch,
    TrainingMonitor,
    TrainingProgress,
)
from restorevar.callbacks.requeue import Preempted, leave
from restorevar.cli.parsing import ShortErrors
from restorevar.datamodules import RestorationDataModule
from restorevar.errors import UserError

__all__ = ["RestoreVARCLI", "read_config", "run_verb"]

logger = logging.getLogger(__name__)

# true, but nothing that a user of this program could or should act on
NOISE = (
    ".*does not have many workers.*",
    ".*LightningCLI's args parameter is intended.*",
    ".*You're using the WeightAveraging callback with a model that overrides.*",
    ".*is set, but there is no last checkpoint available.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*in eval mode at the start of training.*",
    ".*isinstance.treespec, LeafSpec.*",
    ".*you enabled val dataloader shuffling.*",  # not so: overfit_batches takes the training loader
)


# what a module must define for a verb, and a configuration that has one
VERBS = {
    "fit": ("training_step", "configs/stage2.yaml"),
    "validate": ("validation_step", "configs/stage2.yaml"),
    "test": ("test_step", "configs/test.yaml"),
    "predict": ("predict_step", "configs/predict.yaml"),
}


class StageParser(ShortErrors, LightningArgumentParser):
    """Lightning's parser with one-line errors, in which a later file's list replaces an earlier one's.

    jsonargparse (4.53) merges lists of equal length item by item: a data source would inherit what the earlier file's
    source in its place was told.
    """

    def _apply_actions(self, cfg: Any, parent_key: str = "", prev_cfg: Any = None, skip_fn: Any = None) -> Any:
        if prev_cfg and isinstance(cfg, dict):  # as read from a file
            prev_cfg = prev_cfg.clone()
            _forget_lists(prev_cfg, cfg)
        return super()._apply_actions(cfg, parent_key, prev_cfg, skip_fn)


def _forget_lists(previous: Namespace, given: dict[str, Any]) -> None:
    for key, value in given.items():
        if isinstance(value, list):
            previous.pop(key, None)
        elif isinstance(value, dict) and isinstance(inner := previous.get(key), Namespace):
            _forget_lists(inner, value)


class _SaveConfig(SaveConfigCallback):
    """Writes the settings once the run starts: one that is refused leaves the folder as it is."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Does nothing yet: whether the run can start is not known."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes them."""
        super().setup(trainer, pl_module, "fit")

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes them, unless this is a validation within training."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            super().setup(trainer, pl_module, "validate")

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes them."""
        super().setup(trainer, pl_module, "test")

    def on_predict_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes them."""
        super().setup(trainer, pl_module, "predict")


class RestoreVARCLI(LightningCLI):
    """One stage from configuration files.

    Every run has one folder, ``trainer.default_root_dir``: TensorBoard events, ``config.yaml``, ``checkpoints/`` and
    the exported ``model/`` lie directly in it, so that ``--ckpt_path last`` finds the run's own checkpoint. Other verbs
    than ``fit`` put their settings there as ``config_test.yaml`` and so on.

    Args:
        args: Words of the command line, the verb first.
    """

    def __init__(self, args: Sequence[str]) -> None:
        super().__init__(
            model_class=LightningModule,
            datamodule_class=RestorationDataModule,
            subclass_mode_model=True,
            parser_class=StageParser,
            # an abbreviated option is a misspelt one
            parser_kwargs={"prog": "restorevar", "allow_abbrev": False, **{v: {"allow_abbrev": False} for v in VERBS}},
            save_config_callback=_SaveConfig,
            save_config_kwargs={"overwrite": True},
            seed_everything_default=0,
            auto_configure_optimizers=False,
            args=list(args),
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the export of the trained model, which every stage ends with, the batch over all devices, switches."""
        parser.add_lightning_class_args(ExportModel, "export")
        parser.add_lightning_class_args(TotalBatch, "total_batch")
        parser.add_lightning_class_args(Acceleration, "acceleration")

    def _parse_ckpt_path(self) -> None:
        """Flags that the user typed win over what a checkpoint remembers (Lightning's default is the reverse)."""

    def instantiate_classes(self) -> None:
        """Builds data, model and Trainer.

        Raises:
            UserError: The model has no step for this verb, such as a training stage that is asked to test.
        """
        if self.subcommand != "fit":  # the settings of the run whose folder this may be stay as they are
            self.save_config_kwargs["config_filename"] = f"config_{self.subcommand}.yaml"
        super().instantiate_classes()
        step, example = VERBS[str(self.subcommand)]
        if not is_overridden(step, self.model):
            able = " and ".join(verb for verb, (other, _) in VERBS.items() if is_overridden(other, self.model))
            raise UserError(
                f"model.class_path is {type(self.model).__name__}, which does {able or 'nothing'}; `restorevar"
                f" {self.subcommand}` needs a module with {step}: give a configuration such as {example}"
            )

    def before_fit(self) -> None:
        """Refuses to begin anew in the folder of another run, before anything of that run is written over.

        Raises:
            UserError: There is a checkpoint, and no `--ckpt_path`.
        """
        if self._get(self.config_init, "ckpt_path") is None:
            for callback in self.trainer.checkpoint_callbacks:
                if isinstance(callback, NewestCheckpoint):
                    callback.refuse_used_folder(self.trainer)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The Trainer, logging into its root folder itself instead of a new ``version_N`` each time."""
        settings = self._get(self.config_init, "trainer")
        if settings.get("logger") in (None, True):
            root = settings.get("default_root_dir") or os.getcwd()
            # curves are of training: a score of another verb would be a point at step 0 of the run whose folder it is
            is_fit = self.subcommand == "fit"
            kwargs["logger"] = TensorBoardLogger(save_dir=root, name="", version="") if is_fit else False
        if settings.get("enable_model_summary") is None:
            kwargs["enable_model_summary"] = False  # the pre-flight summary says more
        self.trainer_defaults = {"callbacks": standard_callbacks(settings)}
        try:
            return super().instantiate_trainer(**kwargs)
        except MisconfigurationException as error:
            message = " ".join(str(error).split())
            if re.search("gpu|device|accelerator|backend", message, re.IGNORECASE):
                count = torch.cuda.device_count()
                message += f" This machine has {count} GPUs: change trainer.accelerator or trainer.devices"
            raise UserError(f"trainer: {message}") from error


def standard_callbacks(settings: Any) -> list[Callback]:
    """What every run has unless the configuration lists the same class (or another bar) with settings of its own.

    Args:
        settings: The ``trainer`` section.
    """
    listed = settings.get("callbacks") or []
    listed = listed if isinstance(listed, list) else [listed]
    standard: list[Callback] = [Preflight(), NanGuard(), TrainingMonitor()]
    if settings.get("enable_progress_bar") is not False and not any(isinstance(own, ProgressBar) for own in listed):
        standard.append(TrainingProgress())
    if settings.get("enable_checkpointing") is not False:
        standard += [NewestCheckpoint(), RequeueOnSignal()]
    own = {type(callback) for callback in listed}
    return [callback for callback in standard if type(callback) not in own]


class _ConfigReader(RestoreVARCLI):
    """Parses and checks, and stops there."""

    def _set_seed(self) -> None: ...

    def instantiate_classes(self) -> None: ...

    def _run_subcommand(self, subcommand: str) -> None: ...


def read_config(args: Sequence[str]) -> dict[str, Any]:
    """The complete configuration (defaults included) that ``args`` stand for, without running anything.

    Args:
        args: Words of the command line, the verb first.

    Raises:
        SystemExit: After a one-line error, if a key or value is wrong.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reader = _ConfigReader(args)
    text = reader.parser.dump(reader.config, skip_link_targets=False, skip_none=False, format="json")
    return json.loads(text)[args[0]]


def _reason(error: BaseException) -> str | None:
    """What a user is to be told of an error of the set-up; None for a fault that needs its traceback.

    jsonargparse wraps what a class says of its options into an account of all types that it tried.
    """
    if isinstance(error, ModuleNotFoundError):
        return str(error)
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, UserError | MisconfigurationException):
            return " ".join(str(inner).split())
        inner = inner.__cause__ or inner.__context__
    # a logger whose package is missing, `--ckpt_path best` where no checkpoint is the best
    found = re.search(r"Requirement '.*|^.*ckpt_path.*", str(error))
    return None if found is None else found[0]


def run_verb(verb: str, args: Sequence[str]) -> tuple[Trainer, LightningModule, LightningDataModule]:
    """Runs one of Lightning's verbs.

    Args:
        verb: ``fit``, ``validate``, ``test`` or ``predict``.
        args: The words after it.

    Returns:
        The trainer, module and data module, after the run.

    Raises:
        SystemExit: After a one-line error, if a key or value is wrong; or when the run was asked to leave by a signal.
        KeyboardInterrupt: On Ctrl-C.
    """
    # adverts and announcements; warnings still come through
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric.utilities.seed").setLevel(logging.WARNING)
    # it says that checkpoints may run code; ours never do
    logging.getLogger("lightning.pytorch.trainer.connectors.checkpoint_connector").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for message in NOISE:
            warnings.filterwarnings("ignore", message)
        try:
            cli = RestoreVARCLI([verb, *args])
        except Preempted as preempted:
            raise SystemExit(leave(preempted)) from None
        except SIGTERMException:  # between training steps `RequeueOnSignal` is asked instead
            logger.info("SIGTERM: stopped outside of training steps; nothing was saved")
            raise SystemExit(128 + signal.SIGTERM) from None
        except (MisconfigurationException, ModuleNotFoundError, ValueError) as error:
            if (reason := _reason(error)) is None:
                raise
            raise UserError(reason) from error
        except SystemExit as error:
            if isinstance(error.__context__, KeyboardInterrupt):  # Lightning's 1 means that something failed
                signal.signal(signal.SIGINT, signal.default_int_handler)  # which it has switched off
                raise KeyboardInterrupt from None
            raise
    return cli.trainer, cli.model, cli.datamodule
