"""Model folders: `config.json`, `model.safetensors` and a model card, written and read."""

from __future__ import annotations

import importlib.resources
import json
import logging
import os
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

import restorevar
from restorevar.errors import UserError
from restorevar.files import atomic_write, sha256
from restorevar.models.config import RestoreVARConfig
from restorevar.models.restorevar import RestoreVAR, in_float32_island

__all__ = [
    "copy_license",
    "find_folder",
    "license_file",
    "load",
    "read_config",
    "save",
    "shipped_models",
    "weights_digest",
]

FORMAT = 1
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
# apart from the others: it is made for a model that is finished, and leaves that model's file as it is
GATE = "gate.safetensors"
# `models/mine` where nothing lies is a folder mistyped or not made yet, not somebody's repository
LOCAL_FOLDERS = ("models", "runs", "checkpoints", "outputs", "demo")

logger = logging.getLogger(__name__)


def shipped_models() -> dict[str, Path]:
    """Names and folders of the models that come inside the package."""
    root = Path(str(importlib.resources.files(restorevar))) / "pretrained"
    return {folder.parent.name: folder.parent for folder in sorted(root.glob(f"*/{CONFIG}"))}


def find_folder(name_or_folder: str | os.PathLike[str]) -> Path:
    """Where a model lies: a shipped name, a local folder, or a hub id (``owner/name``), which is downloaded.

    What begins with a folder that exists, or with one of ``LOCAL_FOLDERS``, is never taken for a hub id.

    Raises:
        UserError: If there is no such model; the message lists what there is.
    """
    text, path = os.fspath(name_or_folder), Path(name_or_folder)
    shipped = shipped_models()
    if (path / CONFIG).is_file():
        return path
    if text in shipped:
        return shipped[text]
    if path.is_dir():
        inside = [str(file.parent) for pattern in ("*", "*/*") for file in sorted(path.glob(f"{pattern}/{CONFIG}"))]
        hint = f"did you mean {inside[-1]}?" if inside else "expected one written by save_pretrained or a stage"
        raise UserError(f"{path} is not a model folder: it has no {CONFIG}; {hint}")
    local = path.parts[:1] and (path.parts[0] in LOCAL_FOLDERS or Path(path.parts[0]).exists())
    if text.count("/") == 1 and not text.startswith((".", "/", "~")) and not local:
        return _download(text)
    raise UserError(
        f"no model '{text}'{_models_beside(path)}; expected a model folder, a hub id, or one of: "
        f"{', '.join(shipped) or 'none shipped'}"
    )


def _models_beside(path: Path) -> str:
    """What the folder of a missing model folder holds, for an error message; empty for a bare name."""
    parent = path.parent
    if len(path.parts) < 2:
        return ""
    if not parent.is_dir():
        return f" (there is no folder {parent})"
    beside = sorted(file.parent.name for file in parent.glob(f"*/{CONFIG}"))
    return f" (model folders in {parent}: {', '.join(beside[:8]) or 'none'})"


def _download(hub_id: str) -> Path:
    logger.info("fetching %s from the Hugging Face hub", hub_id)
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(hub_id, allow_patterns=[CONFIG, WEIGHTS, GATE, CARD, "LICENSE*"]))
    except Exception as error:
        shipped = ", ".join(shipped_models()) or "none"
        raise UserError(
            f"model '{hub_id}' is neither a folder nor could it be fetched from the hub ({type(error).__name__}); "
            f"shipped models: {shipped}"
        ) from error


def read_config(folder: str | os.PathLike[str]) -> RestoreVARConfig:
    """Sizes of the model in a folder.

    Raises:
        UserError: If ``config.json`` cannot be read or was written by a newer format.
    """
    return RestoreVARConfig.from_dict(_read_record(Path(folder))["model"])


def _read_record(folder: Path) -> dict:
    path = folder / CONFIG
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}); expected a model folder's {CONFIG}") from error
    if not isinstance(record, dict) or "model" not in record:
        raise UserError(f"{path} has no key 'model'; expected a {CONFIG} written by restorevar")
    if record.get("format", FORMAT) > FORMAT:
        raise UserError(f"{path} has format {record['format']}; this version reads up to {FORMAT}: update restorevar")
    return record


def load(name_or_folder: str | os.PathLike[str]) -> RestoreVAR:
    """Loads a model in float32 on the CPU, in evaluation mode.

    Args:
        name_or_folder: A shipped name, a model folder, or a hub id.

    Raises:
        UserError: If there is no such model, or its weights do not fit its configuration.
    """
    folder = find_folder(name_or_folder)
    model = RestoreVAR(read_config(folder), initialize=False)
    weights, gate = _parts(model.state_dict())
    _read_weights(folder / WEIGHTS, weights)
    if gate:
        _read_weights(folder / GATE, gate)
    model.rebuild_tables()
    return model.eval()


def weights_digest(folder: Path) -> str:
    """SHA-256 of a model folder's weights, and of its gate's where it has one, as reports name them."""
    digest = f"sha256 {sha256(folder / WEIGHTS)}"
    return digest + (f", gate {sha256(folder / GATE)}" if (folder / GATE).is_file() else "")


def _parts(weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What lies in :data:`WEIGHTS`, and what in :data:`GATE`."""
    gate = {name: value for name, value in weights.items() if name.startswith("gate.")}
    return {name: value for name, value in weights.items() if name not in gate}, gate


def _read_weights(path: Path, expected: dict[str, Tensor]) -> None:
    """Reads a file into tensors of the same names."""
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            missing, left_over = sorted(set(expected) - names), sorted(names - set(expected))
            if missing or left_over:
                raise UserError(
                    f"{path} does not fit its {CONFIG}; missing: {missing[:3]}, left over: {left_over[:3]}; "
                    "was one of the two files replaced?"
                )
            for name, tensor in expected.items():
                value = file.get_tensor(name)
                if value.shape != tensor.shape:
                    raise UserError(
                        f"{path}: '{name}' has shape {tuple(value.shape)}; {CONFIG} expects {tuple(tensor.shape)}; "
                        "was one of the two files replaced, or made by another version?"
                    )
                tensor.copy_(value)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read ({error}); expected the weights that belong to {CONFIG}") from error


def save(
    model: RestoreVAR, folder: str | os.PathLike[str], card: str | None = None, dtype: torch.dtype | None = None
) -> None:
    """Writes a model folder; ``config.json`` comes last, so a folder with one is complete.

    Args:
        model: The model.
        folder: Where to; created if needed. Files of a model already there are replaced.
        card: Text of the model card; None writes a short one, unless the folder has one already.
        dtype: Store the weights outside the float32 island in this type, such as bfloat16 for half the size; None keeps
            what they have.
    """
    folder = Path(folder)
    (folder / CONFIG).unlink(missing_ok=True)
    weights = {}
    for name, value in model.state_dict().items():
        stays = dtype is None or in_float32_island(name) or not value.is_floating_point()
        weights[name] = value.detach().to("cpu", value.dtype if stays else dtype)
    weights = {name: value.contiguous() for name, value in weights.items()}
    checksums = {}
    for file, key, part in zip((WEIGHTS, GATE), ("weights_sha256", "gate_sha256"), _parts(weights), strict=True):
        if not part:
            (folder / file).unlink(missing_ok=True)
            continue
        with atomic_write(folder / file) as temporary:
            save_file(part, temporary, metadata={"format": "pt"})
        checksums[key] = sha256(folder / file)
    if card is not None or not (folder / CARD).exists():
        with atomic_write(folder / CARD) as temporary:
            temporary.write_text(card or _card(model), encoding="utf-8")
    record = {
        "format": FORMAT,
        "restorevar": restorevar.__version__,
        **checksums,
        "model": model.config.to_dict(),
    }
    with atomic_write(folder / CONFIG) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def copy_license(source: str | os.PathLike[str], folder: str | os.PathLike[str]) -> None:
    """Copies the licence file that a model folder's ``config.json`` names, if it names one that is not there yet.

    Args:
        source: Shipped name, model folder or hub id of a model that has the file.
        folder: Folder of the model made from it.
    """
    name = read_config(folder).license
    if name is not None and not (Path(folder) / name).exists():
        file = license_file(source, name)
        if file is not None:
            with atomic_write(Path(folder) / name) as temporary:
                shutil.copyfile(file, temporary)


def license_file(source: str | os.PathLike[str], name: str | None = None) -> Path | None:
    """The file in a model folder that holds the terms of its weights; None where there is none.

    Args:
        source: Shipped name, model folder or hub id.
        name: Its name; what ``config.json`` says if not given.
    """
    folder = find_folder(source)
    name = name or read_config(folder).license
    if name is None or Path(name).name != name or not (folder / name).is_file():
        return None
    return folder / name


def _card(model: RestoreVAR) -> str:
    height, width = model.image_size
    names = ("tokenizer", "transformer", "refiner", "detail", "gate")
    parts = [name for name in names if getattr(model, name) is not None]
    sizes = [f"| {name} | {sum(p.numel() for p in getattr(model, name).parameters()) / 1e6:.2f} |" for name in parts]
    return "\n".join(
        [
            "# RestoreVAR model",
            "",
            f"All-in-one image restoration by visual autoregression; own size {width} x {height} px, "
            f"{len(model.scales)} scales.",
            "",
            "| part | parameters (M) |",
            "|---|---|",
            *sizes,
            "",
            "```python",
            "from restorevar import RestoreVAR",
            'model = RestoreVAR.from_pretrained("this folder")',
            "image = model.restore(photo)",
            "```",
            "",
        ]
    )
