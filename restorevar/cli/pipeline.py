"""``restorevar pipeline``: the training stages one after the other."""

import difflib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from restorevar.errors import UserError
from restorevar.files import atomic_write, sha256

__all__ = ["PipelineStage", "pipeline", "read_pipeline"]

log = logging.getLogger(__name__)

RECORD = "inputs.json"
HOW_NOT_WHAT = (
    "trainer",
    "export",
    "acceleration",
    "data.num_workers",
    "data.cache_megabytes",
    "data.pin_memory",
    "data.skip_broken",
    "data.val",
    "data.val_batch_size",
    "data.test",
    "data.predict",
)
"""Settings, and sections of them, that an interrupted stage may be resumed with after a change."""
OF_EVERY_STEP = (
    "trainer.accumulate_grad_batches",
    "trainer.gradient_clip_algorithm",
    "trainer.gradient_clip_val",
    "trainer.precision",
)
"""Those that a finished stage's steps have hung on all the same: with another one it is another model."""
SECTIONS = ("model", "data", "trainer", "export", "total_batch", "acceleration")
"""First words of settings that are no stage's name."""


@dataclass(frozen=True)
class PipelineStage:
    """One stage of a pipeline file.

    Attributes:
        name: Its folder inside the output.
        configs: Its configuration files; later ones win.
    """

    name: str
    configs: tuple[Path, ...]


def pipeline(
    config: Path, output: Path | None = None, overlay: list[Path] | None = None, overrides: list[str] | None = None
) -> int:
    """Trains all stages, each starting from the last one's export.

    A finished stage is skipped as long as its inputs (settings and the stage before) are the same; an interrupted one
    resumes from its last checkpoint. All stages' settings are checked before the first one starts. Further options go
    to every stage (--trainer.max_steps 100) or to one (--transformer.trainer.max_steps 100).

    Args:
        config: Pipeline file with `stages`, a list of `name` and `config` (one file or several, relative to it).
        output: Folder of the runs, one sub-folder a stage; by default what the file says under `output`.
        overlay: Configuration files added to every stage, such as configs/trainer/gpu.yaml.
        overrides: Options for the stages.

    Returns:
        Exit code: that of the first stage that failed, else 0.
    """
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        raise UserError(
            "srun started several pipelines at once, which would write over each other; run it as one task, or queue"
            " the stages with scripts/slurm/pipeline.sh"
        )
    stages, default_output = read_pipeline(config)
    root = output or default_output
    if root is None:
        raise UserError(f"{config} names no output folder; add `output:` to it or give --output")
    for file in overlay or []:
        if not file.is_file():
            raise UserError(f"no overlay file '{file}'")
    _check_owners(overrides or [], [stage.name for stage in stages])
    arguments = {stage.name: stage_arguments(stage, root, overlay or [], overrides or [], stages) for stage in stages}
    configs = {stage.name: check_stage(stage, arguments[stage.name], root / stage.name) for stage in stages}
    previous: Path | None = None
    for number, stage in enumerate(stages, 1):
        folder = root / stage.name
        title = f"stage {number} of {len(stages)}, {stage.name}"
        inputs = {
            "settings": _comparable(configs[stage.name]),
            "initial_weights": _weights_of(previous, configs[stage.name]),
        }
        if _is_finished(folder, inputs):
            log.info("%s: finished before, skipped", title)
        else:
            is_fresh, aside = _prepare(folder, inputs, title)
            started_from = [] if previous is None else [f"--model.init_args.initial_model={previous}"]
            try:
                code = run_stage(["fit", *arguments[stage.name], *started_from], configs[stage.name])
            except BaseException:  # a signal, or a fault in the settings that only shows now
                _discard_refused(folder, is_fresh, aside)
                raise
            if code == 2:  # the same, in a process of its own
                _discard_refused(folder, is_fresh, aside)
            if code:
                return code
            if not _is_complete(folder / "model"):
                log.error("%s: stopped before its end; the same command resumes it", title)
                return 1
            _record(folder, inputs, finished=True)
        previous = folder / "model"
    log.info("the trained model: %s", previous)
    return 0


def read_pipeline(path: Path) -> tuple[list[PipelineStage], Path | None]:
    """Reads a pipeline file.

    Args:
        path: YAML file.

    Returns:
        The stages, and the default output folder (relative to the working folder) or None.

    Raises:
        UserError: If it is not a valid pipeline file, or a stage's file is missing.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not isinstance(content.get("stages"), list) or not content["stages"]:
        raise UserError(f"{path} is not a pipeline file; expected `stages:` with a list of `name` and `config`")
    _check_keys(path, content, ("stages", "output"))
    stages = []
    for entry in content["stages"]:
        if not isinstance(entry, dict) or not {"name", "config"} <= set(entry):
            raise UserError(f"{path}: stage {entry!r}; expected `name` and `config`")
        _check_keys(path, entry, ("name", "config"))
        files = entry["config"] if isinstance(entry["config"], list) else [entry["config"]]
        configs = tuple(path.parent / file for file in files)
        for file in configs:
            if not file.is_file():
                raise UserError(f"{path}: stage '{entry['name']}' names {file}, which does not exist")
        stages.append(PipelineStage(str(entry["name"]), configs))
    names = [stage.name for stage in stages]
    if len(set(names)) < len(names):
        raise UserError(f"{path}: two stages have the same name ({', '.join(names)}); each needs a folder of its own")
    return stages, Path(content["output"]) if content.get("output") else None


def _check_keys(path: Path, content: dict[str, Any], known: Sequence[str]) -> None:
    for key in content:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            hint = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(known)}"
            raise UserError(f"{path}: unknown setting '{key}' - {hint}")


def _check_owners(overrides: Sequence[str], names: Sequence[str]) -> None:
    """Refuses a misspelt stage's name, which would otherwise be corrected to a setting of all stages."""
    for word in overrides:
        owner, dot, rest = word.removeprefix("--").partition(".")
        if word.startswith("--") and dot and owner not in names:
            near = difflib.get_close_matches(owner, [*SECTIONS, *names], 1, 0.7)
            if near and near[0] in names:
                name = rest.partition("=")[0]
                raise UserError(f"unknown setting '--{owner}.{name}' - did you mean '--{near[0]}.{name}'?")


def stage_arguments(
    stage: PipelineStage, root: Path, overlay: Sequence[Path], overrides: Sequence[str], stages: Sequence[PipelineStage]
) -> list[str]:
    """The words after ``fit`` for one stage, but for the model that it starts from.

    Args:
        stage: The stage.
        root: Output folder of the pipeline.
        overlay: Configuration files for every stage.
        overrides: Options for every stage, or with a stage's name in front for that one.
        stages: All stages.
    """
    words = [word for file in (*stage.configs, *overlay) for word in ("--config", str(file))]
    names = {other.name for other in stages}
    mine = True
    chosen = []
    for word in overrides:
        if word.startswith("--"):
            owner, dot, rest = word[2:].partition(".")
            mine = not (dot and owner in names) or owner == stage.name
            word = f"--{rest}" if dot and owner in names else word
        if mine:
            chosen.append(word)
    return [*words, f"--trainer.default_root_dir={root / stage.name}", "--ckpt_path=last", *chosen]


def check_stage(stage: PipelineStage, arguments: Sequence[str], folder: Path) -> dict[str, Any]:
    """Parses a stage's whole configuration.

    Args:
        stage: The stage.
        arguments: The words after ``fit``.
        folder: Of the stage's run.

    Raises:
        UserError: After the one-line error of the parser, with the stage's name; or if the settings would keep the run
            or its model out of the folder.
    """
    from restorevar.cli.lightning import read_config

    try:
        config = read_config(["fit", *arguments])
    except SystemExit as error:
        files = ", ".join(str(file) for file in stage.configs)
        raise UserError(f"stage '{stage.name}' ({files}) was refused; nothing has been started") from error
    elsewhere = {
        "trainer.default_root_dir": Path(config["trainer"]["default_root_dir"]) != folder,
        "trainer.fast_dev_run": bool(config["trainer"]["fast_dev_run"]),
        "export.folder": config["export"]["folder"] is not None,
    }
    for name, is_set in elsewhere.items():
        if is_set:
            raise UserError(
                f"stage '{stage.name}' sets {name}, and the pipeline would not find its model in {folder}; leave it out"
            )
    return config


def run_stage(arguments: Sequence[str], config: dict[str, Any]) -> int:
    """Trains one stage: here, or in a process of its own where Lightning starts more of them."""
    if not needs_own_process(config["trainer"]):
        from restorevar.cli.lightning import run_verb

        run_verb(arguments[0], arguments[1:])
        return 0
    return run_and_forward_signals([sys.executable, "-m", "restorevar", *arguments])


def run_and_forward_signals(command: Sequence[str]) -> int:
    """Runs a command, which gets the signals that ask a run to be saved, and is waited for whatever happens.

    Returns:
        Its exit code; 128 + the signal that it died of.
    """
    process = subprocess.Popen(command)
    forwarded = (signal.SIGUSR1, signal.SIGTERM)
    before = {number: signal.signal(number, lambda sent, _: process.send_signal(sent)) for number in forwarded}
    try:
        code = process.wait()
    except KeyboardInterrupt:  # which the command got as well
        process.wait()
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code


def needs_own_process(trainer: dict[str, Any]) -> bool:
    """Whether these trainer settings mean several processes, which re-run the command line that they find.

    Args:
        trainer: The ``trainer`` section of a complete configuration.
    """
    devices, accelerator = trainer.get("devices", "auto"), trainer.get("accelerator", "auto")
    if int(trainer.get("num_nodes") or 1) > 1:
        return True
    if devices in ("auto", -1, "-1"):
        import torch

        return accelerator != "cpu" and torch.cuda.device_count() > 1
    if isinstance(devices, list):
        return len(devices) > 1
    return str(devices) != "1" if str(devices).isdigit() else len(str(devices).split(",")) > 1


def _comparable(config: dict[str, Any]) -> dict[str, Any]:
    """Settings as flat names, without places and the model that the pipeline itself fills in."""
    flat = dict(_flatten(config))
    for name in ("trainer.default_root_dir", "ckpt_path", "config", "model.init_args.initial_model"):
        flat.pop(name, None)
    return flat


def _flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def _weights_of(previous: Path | None, config: dict[str, Any]) -> str | None:
    """What identifies the model that a stage starts from."""
    if previous is not None:
        record = json.loads((previous / "config.json").read_text(encoding="utf-8"))
        return str(record["weights_sha256"]) + str(record.get("gate_sha256", ""))
    return config["model"].get("init_args", {}).get("initial_model")


def _read_record(folder: Path) -> dict[str, Any] | None:
    try:
        return json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _record(folder: Path, inputs: dict[str, Any], finished: bool) -> None:
    with atomic_write(folder / RECORD) as temporary:
        temporary.write_text(json.dumps({"finished": finished, **inputs}, indent=1) + "\n", encoding="utf-8")


def _is_complete(model: Path) -> bool:
    """A model folder whose weights are the ones that its configuration, written last, speaks of."""
    try:
        record = json.loads((model / "config.json").read_text(encoding="utf-8"))
        if "gate_sha256" in record and sha256(model / "gate.safetensors") != record["gate_sha256"]:
            return False
        return bool(sha256(model / "model.safetensors") == record["weights_sha256"])
    except (OSError, ValueError, KeyError):
        return False


def _is_finished(folder: Path, inputs: dict[str, Any]) -> bool:
    record = _read_record(folder)
    return record is not None and record == {"finished": True, **_plain(inputs)} and _is_complete(folder / "model")


def _plain(inputs: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(inputs))


def _prepare(folder: Path, inputs: dict[str, Any], title: str) -> tuple[bool, Path | None]:
    """Decides between a fresh start and a resume, and notes the inputs.

    Returns:
        Whether the folder is new, and where the run is now that it held before, if that was set aside.
    """
    record, inputs, aside = _read_record(folder), _plain(inputs), None
    if record is None and (folder / "checkpoints").exists():
        aside = _set_aside(folder)
        log.info("%s: the folder holds a run of unknown settings, now in %s", title, aside)
    if record is not None:
        changed = sorted(
            name
            for name in record["settings"].keys() | inputs["settings"].keys()
            if record["settings"].get(name) != inputs["settings"].get(name)
        )
        if record["initial_weights"] != inputs["initial_weights"]:
            changed.insert(0, "the stage before")
        if not _is_worth_keeping(folder):
            log.info("%s: begun again", title)
            shutil.rmtree(folder)
        elif what := [name for name in changed if not _is_how(name, record, inputs["settings"])]:
            aside = _set_aside(folder)
            log.info("%s: made anew, as %s changed; the old run is now %s", title, ", ".join(what[:3]), aside)
        elif (folder / "checkpoints" / "last.ckpt").exists():
            log.info("%s: resumed from its last checkpoint", title)
        elif (folder / "model").exists():
            aside = _set_aside(folder)
            log.info("%s: made anew, as there is no checkpoint to go on from; the old run is now %s", title, aside)
        else:
            log.info("%s: begun again", title)
    else:
        log.info("%s: started", title)
    is_fresh = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    _record(folder, inputs, finished=False)
    return is_fresh, aside


def _is_how(name: str, record: dict[str, Any], settings: dict[str, Any]) -> bool:
    """Whether a run with this record goes on as it would have after a setting was changed to what `settings` say."""
    if record["finished"] and name == "trainer.callbacks":
        return _averages(record["settings"].get(name)) == _averages(settings.get(name))
    if record["finished"] and name in ("trainer.max_steps", "trainer.max_epochs"):
        before, now = (value.get(name) for value in (record["settings"], settings))
        unlimited = (None, -1)
        return now in unlimited or (before not in unlimited and now >= before)
    if name in OF_EVERY_STEP:
        return not record["finished"]
    if name == "data.batch_size":  # accumulation makes up for it
        return record["settings"].get("total_batch.total") is not None
    return any(name == known or name.startswith(f"{known}.") for known in HOW_NOT_WHAT)


def _averages(callbacks: Any) -> list[Any]:
    """Of the Trainer's callbacks, those that change what a run's export holds."""
    listed = callbacks if isinstance(callbacks, list) else [callbacks]
    return [entry for entry in listed if "Averag" in str(entry)]


def _is_worth_keeping(folder: Path) -> bool:
    """Whether a run has come to a checkpoint or an export."""
    return any((folder / "checkpoints").glob("*")) or (folder / "model").exists()


def _discard_refused(folder: Path, is_fresh: bool, aside: Path | None) -> None:
    """Removes the new folder of a stage that was refused before it did anything; the run before gets its name back.

    One that went wrong in its first steps stays, with its curves and pictures.
    """
    if is_fresh and not _is_worth_keeping(folder) and not (folder / "checkpoints").exists():
        shutil.rmtree(folder)
        if aside is not None:
            aside.rename(folder)
            log.info("%s: the run before is there again", folder)


def _set_aside(folder: Path) -> Path:
    """Renames a run's folder to the first free ``<name>.before<n>``; nothing trained is ever deleted."""
    number = 1
    while (aside := folder.with_name(f"{folder.name}.before{number}")).exists():
        number += 1
    return folder.rename(aside)
