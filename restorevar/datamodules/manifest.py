"""Lists of training pairs in JSON or CSV files: reading, writing, checking."""

import csv
import io
import json
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from restorevar.datamodules.kinds import CLEAN_KIND, PAIRED_KINDS
from restorevar.datamodules.layouts import Layout, match_both_ways
from restorevar.errors import UserError
from restorevar.files import atomic_write, sha256
from restorevar.restoration.photo import read_rgb

__all__ = [
    "FIELDS",
    "PUBLISHED_KINDS",
    "Fingerprint",
    "Problem",
    "Row",
    "build_rows",
    "check_counts",
    "check_rows",
    "find_twins",
    "fingerprints",
    "located",
    "read_manifest",
    "sizes_fit",
    "write_manifest",
]

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


CENTER_CROP = "center_crop"  # optional fifth field
# of 256 bits of a perceptual hash. Measured on 376 photos: JPEG, resizing, grey and darkening change at most 10 bits,
# cutting off 10 pixels all round 60 (95th percentile); of 70,500 unrelated pairs the closest differ in 90
TWIN_DISTANCE = 60


class Row(NamedTuple):
    """One pair.

    Attributes:
        image_path: The degraded image; absolute, or relative to the manifest's folder or a given root.
        target_path: The clean image; empty where there is none.
        kind: Kind of degradation.
        dataset: Name of the set.
        center_crop: The clean image has a border that the degraded one lacks.
    """

    image_path: str
    target_path: str
    kind: str
    dataset: str
    center_crop: bool = False


class Problem(NamedTuple):
    """Something wrong with a manifest.

    Attributes:
        row: Number of the row, from 1; 0 for the manifest as a whole.
        path: The file it is about.
        message: What is wrong.
    """

    row: int
    path: str
    message: str


class Fingerprint(NamedTuple):
    """What tells whether two image files show the same.

    Attributes:
        path: The file.
        content: SHA-256 of the file.
        perceptual: (32,) uint8, 256 bits of the image's low frequencies; None if it has too little contrast to tell.
    """

    path: str
    content: str
    perceptual: NDArray[np.uint8] | None


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
    for number, entry in enumerate(entries, 1):
        for name in FIELDS:
            value = entry.get(name)
            if not isinstance(value, str) or not (value.strip() or name == "target_path") or not _is_unicode(value):
                raise UserError(f"{path}, row {number}: '{name}' is {value!r}; expected a text in every row")
        label = str(entry["degradation"])
        kind = label if label in known else PUBLISHED_KINDS.get(label)
        if kind is None:
            expected = ", ".join((*known, *PUBLISHED_KINDS))
            raise UserError(f"{path}, row {number}: degradation '{label}'; expected one of {expected}")
        border = str(entry.get(CENTER_CROP) or "").lower() in ("1", "true")
        rows.append(Row(str(entry["image_path"]), str(entry["target_path"]), kind, str(entry["dataset"]), border))
    return rows


def _json_entries(path: Path, text: str) -> list[dict[str, object]]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error}); expected a list of pairs, or a file ending in .csv") from None
    if not isinstance(content, list):
        raise UserError(f"{path}: found a JSON {type(content).__name__}; expected a list of pairs")
    for number, entry in enumerate(content, 1):
        if not isinstance(entry, dict):
            raise UserError(f"{path}, row {number}: found {type(entry).__name__}; expected an object with {FIELDS}")
    return content


def _csv_entries(path: Path, text: str) -> list[dict[str, object]]:
    # strict: a quote that is not closed would take in all rows after it
    lines = csv.reader(io.StringIO(text), strict=True)
    entries: list[dict[str, object]] = []
    try:
        columns = [name.strip() for name in next(lines, [])]
        missing = [name for name in FIELDS if name not in columns]
        if missing:
            other = next((mark for mark in ";\t" if len(columns) == 1 and mark in columns[0]), None)
            advice = f"separated by commas, not by {other!r}" if other else "the columns' names"
            raise UserError(
                f"{path}: no column {', '.join(missing)}; expected a first line with {','.join(FIELDS)}, {advice}"
            )
        for line in filter(None, lines):
            entries.append(dict(zip(columns, line, strict=False)))
    except csv.Error as error:
        raise UserError(f"{path}: not CSV after row {len(entries)} ({error}); is a quote not closed?") from None
    return entries


def write_manifest(path: Path, rows: Sequence[Row]) -> None:
    """Writes a manifest, whole or not at all.

    Args:
        path: A file ending in .json or .csv.
        rows: Its rows.

    Raises:
        UserError: The ending is another, or the file cannot be written.
    """
    entries = [dict(zip(FIELDS, row, strict=False)) | ({CENTER_CROP: True} if row.center_crop else {}) for row in rows]
    if path.suffix.lower() == ".csv":
        text = io.StringIO()
        columns = [*FIELDS, *([CENTER_CROP] if any(row.center_crop for row in rows) else [])]
        writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(entries)
        content = text.getvalue()
    elif path.suffix.lower() == ".json":
        content = json.dumps(entries, indent=1, ensure_ascii=False) + "\n"
    else:
        raise UserError(f"{path}: a manifest ends in .json or .csv; change its name")
    try:
        with atomic_write(path) as temporary:
            temporary.write_text(content, encoding="utf-8", newline="")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another place or name") from None


def build_rows(layout: Layout, files: Sequence[Path], base: Path) -> tuple[list[Row], list[Problem]]:
    """Rows for a set's files, and what is missing.

    Args:
        layout: How the set lies on disk.
        files: Absolute paths of the photos found.
        base: Folder that the rows' paths are relative to.

    Returns:
        Rows of complete pairs; problems: images without their partner, and counts that are not the set's.
    """
    rows, problems = [], []
    matches, alone = match_both_ways(layout, [path for path in files if _is_unicode(str(path))])
    for path in files:
        if not _is_unicode(str(path)):
            name = str(path).encode(errors="backslashreplace").decode()
            problems.append(Problem(0, name, "a name that is not UTF-8 cannot be in a manifest; rename it"))
    for match in matches:
        if match.fault:
            problems.append(Problem(0, str(match.degraded), match.fault))
            continue
        clean = _relative(match.clean, base) if match.clean is not None else ""
        rows.append(Row(_relative(match.degraded, base), clean, match.kind, layout.dataset, layout.center_crop))
    expected = " or ".join(layout.degraded)
    problems += [Problem(0, str(path), f"no degraded image of it; expected {expected}") for path in alone]
    cleans = {match.clean for match in matches if match.clean is not None}
    return rows, problems + _count_problems(layout, len(matches), len(cleans))


def check_counts(rows: Sequence[Row], base: Path, layout: Layout) -> list[Problem]:
    """Compares how many images of a set a manifest holds with how many the set has.

    Args:
        rows: The rows, of this and other sets.
        base: Folder that relative paths start from.
        layout: The set.

    Returns:
        Counts of degraded and clean images that differ.
    """
    own = [row for row in rows if row.dataset == layout.dataset]
    cleans = {_key(base, row.target_path) for row in own if row.target_path}
    return _count_problems(layout, len({_key(base, row.image_path) for row in own}), len(cleans))


def _count_problems(layout: Layout, degraded: int, clean: int) -> list[Problem]:
    return [
        Problem(0, "", f"{found} {what}; {layout.dataset} ({layout.split}) has {expected}")
        for what, found, expected in (
            ("degraded images", degraded, layout.count),
            ("clean images", clean, layout.clean_count),
        )
        if expected is not None and found != expected
    ]


def check_rows(rows: Sequence[Row], base: Path, advance: Callable[[], None] = lambda: None) -> list[Problem]:
    """Opens every file of a manifest.

    Args:
        rows: The rows.
        base: Folder that relative paths start from.
        advance: Called after each row.

    Returns:
        Files that are missing, unreadable or of another size than their partner, and rows that say the same twice or
        name one file as both images.
    """

    def check(numbered: tuple[int, Row]) -> list[Problem]:
        try:
            return list(_row_problems(*numbered, base))
        finally:
            advance()

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoding releases the interpreter's lock
        problems = [problem for found in pool.map(check, enumerate(rows, 1)) for problem in found]
    first: dict[str, int] = {}
    for number, row in enumerate(rows, 1):
        earlier = first.setdefault(_key(base, row.image_path), number)
        if earlier != number:
            problems.append(Problem(number, row.image_path, f"listed already in row {earlier}"))
    return sorted(problems)


def fingerprint(path: Path) -> Fingerprint:
    """Content and perceptual hash of an image file.

    Raises:
        UserError: The file cannot be read.
    """
    import imagehash
    from PIL import Image

    pixels = read_rgb(path)
    bits = imagehash.phash(Image.fromarray(pixels), hash_size=16).hash
    # a nearly flat image has arbitrary bits
    perceptual = np.packbits(bits) if pixels.std() > 4 else None
    return Fingerprint(str(path), sha256(path), perceptual)


def fingerprints(
    files: Sequence[Path], advance: Callable[[], None] = lambda: None
) -> tuple[list[Fingerprint], dict[Path, str]]:
    """Fingerprints of image files.

    Args:
        files: The files, each once.
        advance: Called after each of them.

    Returns:
        The fingerprints; what is wrong with each file that has none.
    """

    def prepare(path: Path) -> Fingerprint | str:
        try:
            return fingerprint(path)
        except UserError as error:
            return str(error).removeprefix(f"{path}: ")
        finally:
            advance()

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(prepare, files))
    faults = {path: result for path, result in zip(files, found, strict=True) if isinstance(result, str)}
    return [result for result in found if isinstance(result, Fingerprint)], faults


def find_twins(mine: Sequence[Fingerprint], theirs: Sequence[Fingerprint]) -> list[tuple[str, str, str]]:
    """Images that two sets share, such as one for training and one for testing.

    Args:
        mine: The first set.
        theirs: The second set.

    Returns:
        (file of the first set, file of the second, how they are the same) of every twin.
    """
    contents: dict[str, list[str]] = {}
    for other in theirs:
        contents.setdefault(other.content, []).append(other.path)
    telling = [other for other in theirs if other.perceptual is not None]
    table = np.array([other.perceptual for other in telling], np.uint8).reshape(-1, 32)
    twins = []
    for own in mine:
        same = contents.get(own.content, [])
        twins += [(own.path, path, "the same file") for path in same]
        if own.perceptual is not None:
            distances = np.bitwise_count(table ^ own.perceptual).sum(1, dtype=np.int64)
            for row in np.flatnonzero(distances <= TWIN_DISTANCE):
                if telling[row].path not in same:
                    how = f"the same picture ({distances[row]} of 256 bits differ)"
                    twins.append((own.path, telling[row].path, how))
    return twins


def located(base: Path, name: str) -> Path:
    """Where a path of a manifest points; `..` is taken out without looking at the disk, as it was put in."""
    return Path(os.path.normpath(base / name))


def _key(base: Path, name: str) -> str:
    """Equal for all ways to write one path in a manifest."""
    return os.path.abspath(base / name)


def _is_unicode(text: str) -> bool:
    """Whether a text can be written; names of files on old disks and escapes in JSON may not."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _relative(path: Path, base: Path) -> str:
    """Relative to `base` so that both can be moved together; absolute if they share nothing but the root."""
    try:
        shared = os.path.commonpath([path, base])
    except ValueError:  # different drives
        return str(path)
    return str(path) if shared == path.anchor else Path(os.path.relpath(path, base)).as_posix()


def _row_problems(number: int, row: Row, base: Path) -> Iterable[Problem]:
    shapes = []
    for name in (row.image_path, row.target_path):
        if not name:
            continue
        path = located(base, name)
        if not os.path.isfile(path):  # unlike `Path.is_file`, whatever the name
            what = "a folder; expected an image file" if os.path.isdir(path) else "missing"
            yield Problem(number, str(path), what)
            continue
        try:
            shapes.append(read_rgb(path).shape[:2])
        except UserError as error:
            yield Problem(number, str(path), str(error).removeprefix(f"{path}: "))
    if row.target_path and _key(base, row.image_path) == _key(base, row.target_path):
        if row.kind != CLEAN_KIND:
            yield Problem(number, str(located(base, row.image_path)), "degraded and clean image are one file")
    elif len(shapes) == 2 and not sizes_fit(shapes[0], shapes[1], row.center_crop):
        (height, width), (clean_height, clean_width) = shapes
        message = f"{width} x {height} pixels, its clean image {clean_width} x {clean_height}"
        yield Problem(number, str(located(base, row.image_path)), message)


def sizes_fit(degraded: Sequence[int], clean: Sequence[int], center_crop: bool) -> bool:
    """Whether two (height, width) are equal, or the clean one larger by the same few pixels on all sides if allowed."""
    spare = [clean[axis] - degraded[axis] for axis in (0, 1)]
    return spare == [0, 0] or (center_crop and spare[0] == spare[1] and 0 < spare[0] <= 32 and spare[0] % 2 == 0)
