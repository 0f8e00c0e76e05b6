"""``restorevar manifest``: build, check and pack lists of training pairs."""

import csv
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from restorevar.datamodules.kinds import CLEAN_KIND
from restorevar.datamodules.layouts import LAYOUTS, Layout, find_layout
from restorevar.datamodules.manifest import (
    Problem,
    Row,
    build_rows,
    check_rows,
    find_twins,
    located,
    read_manifest,
    write_manifest,
)
from restorevar.datamodules.shards import index_shards, write_shards
from restorevar.datamodules.sources import check_kind, list_photos
from restorevar.errors import UserError
from restorevar.files import atomic_write

__all__ = ["build", "check", "index", "layouts", "manifest", "pack"]

SHOWN = 20  # problems on the screen; all go into the report


def build(
    paths: list[Path],
    output: Path,
    layout: str | None = None,
    degraded: str | None = None,
    clean: str | None = None,
    kind: str = "other",
    dataset: str | None = None,
    quick: bool = False,
    report: Path | None = None,
) -> int:
    """Build a manifest from a folder, and check every file in it.

    Give either `--layout` (a known set) or `--degraded` and `--clean` (your own folders). Pairs that are not complete
    are reported and left out; the exit code is then 1.

    Args:
        paths: The set's folder, or several.
        output: The manifest to write, .json or .csv. Paths in it are relative to its folder.
        layout: Name of a known layout; `restorevar manifest layouts` lists them.
        degraded: Last parts of the degraded images' paths, without ending, such as "input/{name}".
        clean: The same of the clean images, such as "target/{name}".
        kind: Kind of degradation of your own set.
        dataset: Name of your own set; the folder's name if not given.
        quick: Do not open the files.
        report: CSV file for all problems found.

    Returns:
        0, or 1 if something is wrong with the set.
    """
    chosen = _chosen_layout(layout, degraded, clean, kind, dataset or paths[0].resolve().name)
    if output.suffix.lower() not in (".json", ".csv"):
        raise UserError(f"{output}: a manifest ends in .json or .csv; change its name")
    files = sorted({Path(os.path.abspath(photo)) for path in paths for photo in list_photos(path)})
    base = Path(os.path.abspath(output.parent))
    rows, problems = build_rows(chosen, files, base)
    if not rows:
        places = " or .../".join(chosen.degraded)
        partners = f" with .../{' or .../'.join(chosen.clean)}" if chosen.clean else ""
        raise UserError(f"{paths[0]}: no pair found in {len(files)} photos; expected .../{places}{partners}")
    if not quick:
        with _bar(len(rows), "checking") as advance:
            found = check_rows(rows, base, advance)
        problems += found
        faulty = {problem.row for problem in found}
        rows = [row for number, row in enumerate(rows, 1) if number not in faulty]
        # rows are numbered as they stand in the manifest that is written; those left out have none
        problems = [problem._replace(row=0) for problem in problems]
    write_manifest(output, rows)
    sys.stdout.write(f"{output}: {len(rows)} pairs of {chosen.dataset}\n")
    return _report(str(paths[0]), problems, report)


def check(paths: list[Path], against: Path | None = None, report: Path | None = None) -> int:
    """Check manifests: missing and unreadable files, unequal sizes, repeated rows, and twins of other sets.

    Args:
        paths: Manifests.
        against: A manifest or folder that must share no picture with them, such as that of the test sets; compared by
            content and by look.
        report: CSV file for all problems found.

    Returns:
        0, or 1 if something is wrong.
    """
    code = 0
    problems: list[tuple[str, Problem]] = []
    for path in paths:
        rows, base = read_manifest(path), path.parent
        with _bar(len(rows), f"checking {path.name}") as advance:
            found = check_rows(rows, base, advance)
        if against is not None:
            found += _twins(rows, base, against)
        sys.stdout.write(f"{path}: {len(rows)} rows, {len(found)} problems\n")
        _show(str(path), found)
        problems += [(str(path), problem) for problem in found]
        code = 1 if found else code
    _write_report(problems, report)
    return code


def layouts() -> None:
    """List the known layouts: name, set, split, kind, number of images, where they lie."""
    for name, layout in LAYOUTS.items():
        count = "differs" if layout.count is None else f"{layout.count:,}"
        clean = f" -> {layout.clean[0]}" if layout.clean else " (no ground truth)"
        head = f"{name:<16} {layout.dataset:<14} {layout.split:<6} {layout.kind:<12} {count:>8}"
        sys.stdout.write(f"{head}  {layout.degraded[0]}{clean}\n")


def pack(paths: list[Path], output: Path, shard_megabytes: int = 512) -> None:
    """Pack manifests, or folders of clean photos, into tar shards with an index.

    Args:
        paths: Manifests, or folders of clean photos to be degraded on the fly; not both.
        output: Folder for the shards.
        shard_megabytes: Size of a shard.
    """
    rows: list[Row] = []
    origins: list[str] = []
    for path in paths:
        if path.is_dir():
            rows += [Row(os.path.abspath(photo), "", CLEAN_KIND, path.resolve().name) for photo in list_photos(path)]
            origins += [str(path)] * (len(rows) - len(origins))
        else:
            base = Path(os.path.abspath(path.parent))
            for number, row in enumerate(read_manifest(path), 1):
                origins.append(f"{path}, row {number}")
                target = str(located(base, row.target_path)) if row.target_path else ""
                rows.append(row._replace(image_path=str(located(base, row.image_path)), target_path=target))
    for origin, row in zip(origins, rows, strict=True):
        if not row.target_path and row.kind != CLEAN_KIND:  # a single photo in a shard is one to be degraded
            raise UserError(
                f"{origin}: {row.image_path} is a degraded photo ({row.kind}) without a clean one; expected pairs, or"
                f" clean photos of kind '{CLEAN_KIND}': leave such rows out"
            )
    if len({bool(row.target_path) for row in rows}) > 1:
        raise UserError("found pairs and single photos; pack them into two folders")
    if any(row.center_crop for row in rows):
        raise UserError("a set whose clean images have a border cannot be packed; use its folder or manifest")
    with _bar(len(rows), "packing") as advance:
        current: list[str] = []
        try:
            count = write_shards(rows, Path(), output, shard_megabytes, _counted(origins, advance, current))
        except UserError as error:
            raise UserError(": ".join([*current, str(error)])) from error
    sys.stdout.write(f"{output}: {len(rows)} samples in {count} shards\n")


def index(paths: list[Path]) -> None:
    """Write the index of folders of shards anew.

    Args:
        paths: Folders of tar files.
    """
    for path in paths:
        sys.stdout.write(f"{index_shards(path)}\n")


manifest = {"build": build, "check": check, "layouts": layouts, "pack": pack, "index": index}
"""The words after ``restorevar manifest``."""


def _chosen_layout(layout: str | None, degraded: str | None, clean: str | None, kind: str, dataset: str) -> Layout:
    if (layout is None) == (degraded is None) or (degraded is None) != (clean is None):
        raise UserError("expected either --layout NAME, or --degraded PATTERN and --clean PATTERN")
    if layout is not None:
        return find_layout(layout)
    check_kind(kind)
    assert degraded is not None  # checked above
    assert clean is not None
    return Layout(dataset, kind, "train", (degraded.strip("/"),), (clean.strip("/"),))


def _twins(rows: Sequence[Row], base: Path, against: Path) -> list[Problem]:
    """Compares what is clean, or all there is, with the same of another set."""
    mine = [located(base, row.target_path or row.image_path) for row in rows]
    if against.is_dir():
        others = list_photos(against)
    else:
        others = [located(against.parent, row.target_path or row.image_path) for row in read_manifest(against)]
    unique, unique_others = list(dict.fromkeys(mine)), list(dict.fromkeys(others))
    with _bar(len(unique) + len(unique_others), "looking for twins") as advance:
        twins = find_twins(unique, unique_others, advance)
    first = {path: number for number, path in reversed(list(enumerate(mine, 1)))}
    return [
        Problem(first[unique[own]], str(unique[own]), f"{how} as {unique_others[other]}") for own, other, how in twins
    ]


def _report(name: str, problems: Sequence[Problem], report: Path | None) -> int:
    _show(name, problems)
    _write_report([(name, problem) for problem in problems], report)
    return 1 if problems else 0


def _show(name: str, problems: Sequence[Problem]) -> None:
    for problem in problems[:SHOWN]:
        row = f", row {problem.row}" if problem.row else ""
        sys.stdout.write(f"{name}{row}: {problem.path}{': ' if problem.path else ''}{problem.message}\n")
    if len(problems) > SHOWN:
        sys.stdout.write(f"... and {len(problems) - SHOWN} more; --report FILE.csv writes them all\n")


def _write_report(problems: Sequence[tuple[str, Problem]], report: Path | None) -> None:
    if report is None:
        return
    with atomic_write(report) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["manifest", "row", "path", "problem"])
        writer.writerows([name, problem.row or "", problem.path, problem.message] for name, problem in problems)


@contextmanager
def _bar(total: int, what: str) -> Iterator[Callable[[], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda: progress.advance(task)


def _counted(origins: Sequence[str], advance: Callable[[], None], current: list[str]) -> Iterator[int]:
    """Numbers of the rows; ``current`` holds the origin of the one that is being worked on."""
    for number, origin in enumerate(origins):
        current[:] = [origin]
        yield number
        advance()
    current.clear()
