"""Lists of training pairs in JSON or CSV files."""

import csv
import json
from pathlib import Path
from typing import NamedTuple

from restorevar.datamodules.batch import CLEAN_KIND, PAIRED_KINDS
from restorevar.errors import UserError

__all__ = ["FIELDS", "PUBLISHED_KINDS", "Row", "read_manifest"]

FIELDS = ("image_path", "target_path", "degradation", "dataset")

PUBLISHED_KINDS = {
    "Haze": "haze",
    "Rain": "rain",
    "Snow": "snow",
    "Low-light": "low_light",
    "Motion blur": "motion_blur",
    "Mixed": "mixed",
    "toled": "other",
    "poled": "other",
}
"""Names of kinds in the published manifests, and ours."""


class Row(NamedTuple):
    """One pair. Paths are as written: absolute, or relative to the manifest's folder or a given root."""

    image_path: str
    target_path: str
    kind: str
    dataset: str


def read_manifest(path: Path) -> list[Row]:
    """Reads a manifest.

    Args:
        path: A JSON list of objects with `image_path`, `target_path`, `degradation` and `dataset`, or a CSV file with
            these columns.

    Returns:
        Its rows, kinds under our names.

    Raises:
        UserError: The file is missing or is no such list, or a row lacks a field or has an unknown kind; the message
            names file and row.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; expected a manifest (.json or .csv)") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text ({error}); expected a manifest (.json or .csv)") from None
    entries = _csv_entries(path, text) if path.suffix.lower() == ".csv" else _json_entries(path, text)
    if not entries:
        raise UserError(f"{path}: no row in it; expected at least one pair")
    known = dict.fromkeys((*PAIRED_KINDS, CLEAN_KIND))
    rows = []
    for place, entry in entries:
        for name in FIELDS:
            if not isinstance(entry.get(name), str) or not str(entry[name]).strip():
                raise UserError(f"{path}, {place}: '{name}' is {entry.get(name)!r}; expected a text in every row")
        label = str(entry["degradation"])
        kind = label if label in known else PUBLISHED_KINDS.get(label)
        if kind is None:
            expected = ", ".join((*known, *PUBLISHED_KINDS))
            raise UserError(f"{path}, {place}: degradation '{label}'; expected one of {expected}")
        rows.append(Row(str(entry["image_path"]), str(entry["target_path"]), kind, str(entry["dataset"])))
    return rows


def _json_entries(path: Path, text: str) -> list[tuple[str, dict[str, object]]]:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); expected a list of pairs, or a file ending in .csv") from None
    if not isinstance(content, list):
        raise UserError(f"{path}: found a JSON {type(content).__name__}; expected a list of pairs")
    entries = []
    for number, entry in enumerate(content, 1):
        if not isinstance(entry, dict):
            raise UserError(f"{path}, row {number}: found {type(entry).__name__}; expected an object with {FIELDS}")
        entries.append((f"row {number}", entry))
    return entries


def _csv_entries(path: Path, text: str) -> list[tuple[str, dict[str, object]]]:
    reader = csv.DictReader(text.splitlines())
    missing = [name for name in FIELDS if name not in (reader.fieldnames or ())]
    if missing:
        raise UserError(f"{path}: no column {', '.join(missing)}; expected a first line with {','.join(FIELDS)}")
    return [(f"line {reader.line_num}", dict(entry)) for entry in reader]
