"""``restorevar manifest``: build, check and pack lists of training pairs."""

import csv
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from restorevar.datamodules.kinds import CLEAN_KIND, PAIRED_KINDS
from restorevar.datamodules.layouts import LAYOUTS, Layout, find_layout, own_layout
from restorevar.datamodules.manifest import (
    Fingerprint,
    Problem,
    Row,
    build_rows,
    check_counts,
    check_rows,
    find_twins,
    fingerprints,
    located,
    read_manifest,
    write_manifest,
)
from restorevar.datamodules.shards import index_shards, write_shards
from restorevar.datamodules.sources import list_photos
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
    overwrite: bool = False,
) -> int:
    """Build a manifest from a folder, and check every file in it.

    Give either `--layout` (a known set) or `--degraded` and `--clean` (your own folders). Pairs that are not complete
    are reported and left out; the exit code is then 1. If none is left, no manifest is written.

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
        overwrite: Replace a manifest that is there already.

    Returns:
        0, or 1 if something is wrong with the set.
    """
    chosen = _chosen_layout(layout, degraded, clean, kind, dataset or paths[0].resolve().name)
    if output.suffix.lower() not in (".json", ".csv"):
        raise UserError(f"{output}: a manifest ends in .json or .csv; change its name")
    if os.path.exists(output) and not overwrite:
        raise UserError(f"{output} is there already; choose another --output or --overwrite")
    _check_target(output)
    _check_report(report, [output])
    files = sorted({Path(os.path.abspath(photo)) for path in paths for photo in list_photos(path)})
    base = Path(os.path.abspath(output.parent))
    rows, problems = build_rows(chosen, files, base)
    if not rows and not any(problem.path for problem in problems):
        places = " or .../".join(chosen.degraded)
        partners = f" with .../{' or .../'.join(chosen.clean)}" if chosen.clean else ""
        raise UserError(f"{paths[0]}: no pair found in {len(files)} photos; expected .../{places}{partners}")
    if not quick:
        with _bar(len(rows), "checking") as advance:
            found = check_rows(rows, base, advance)
        faulty = {problem.row for problem in found}
        rows = [row for number, row in enumerate(rows, 1) if number not in faulty]
        # rows are numbered as they stand in the manifest that is written; those left out have none
        problems += [problem._replace(row=0) for problem in found]
    if rows:
        write_manifest(output, rows)
        sys.stdout.write(f"{output}: {len(rows)} pairs of {chosen.dataset}\n")
    else:
        sys.stdout.write(f"{output}: not written, no pair of {chosen.dataset} is complete\n")
    name = str(paths[0])
    _show(name, problems)
    _write_report([(name, problem) for problem in problems], report)
    return 1 if problems else 0


def check(
    paths: list[Path],
    root: Path | None = None,
    layout: str | None = None,
    against: Path | None = None,
    report: Path | None = None,
) -> int:
    """Check manifests: missing and unreadable files, unequal sizes, repeated rows, and twins of other sets.

    Args:
        paths: Manifests.
        root: Folder that relative paths in all manifests, also that of `--against`, start from; each one's own folder
            if not given.
        layout: Name of a known layout: compare how many images of its set each manifest has. Not done otherwise, as a
            manifest may hold a part of a set on purpose.
        against: A manifest or folder that must share no picture with them, such as that of the test sets; compared by
            content and by look.
        report: CSV file for all problems found.

    Returns:
        0, or 1 if something is wrong.
    """
    chosen = find_layout(layout) if layout is not None else None
    if chosen is not None and chosen.count is None:
        raise UserError(f"--layout {layout}: the releases of this set differ; there is no count to compare with")
    _check_report(report, [*paths, *([against] if against is not None else [])])
    manifests = [(path, read_manifest(path), _base(path, root)) for path in paths]
    problems: list[tuple[str, Problem]] = []

    def tell(name: str, what: str, found: Sequence[Problem]) -> None:
        sys.stdout.write(f"{name}: {what}, {len(found)} problems\n")
        _show(name, found)
        problems.extend((name, problem) for problem in found)

    others: list[Fingerprint] = []
    if against is not None:
        if os.path.isdir(against):
            images = dict.fromkeys(list_photos(against), 0)
        else:
            images = _images(read_manifest(against), _base(against, root))
        others, found = _fingerprints(images)
        tell(str(against), f"{len(images)} images", found)
    for path, rows, base in manifests:
        with _bar(len(rows), f"checking {path.name}") as advance:
            found = check_rows(rows, base, advance)
        if chosen is not None:
            found += check_counts(rows, base, chosen)
        if against is not None:
            images = _images(rows, base)
            own, _ = _fingerprints(images)  # what cannot be read is among the problems already
            twins = find_twins(own, others)
            found += [Problem(images[Path(mine)], mine, f"{how} as {other}") for mine, other, how in twins]
        tell(str(path), f"{len(rows)} rows", found)
    _write_report(problems, report)
    return 1 if problems else 0


def layouts() -> None:
    """List the known layouts: name, set, split, kind, number of images, where they lie."""
    for name, layout in LAYOUTS.items():
        count = "differs" if layout.count is None else f"{layout.count:,}"
        clean = f" -> {layout.clean[0]}" if layout.clean else " (no ground truth)"
        head = f"{name:<16} {layout.dataset:<14} {layout.split:<6} {layout.kind:<12} {count:>8}"
        sys.stdout.write(f"{head}  {layout.degraded[0]}{clean}\n")


def pack(paths: list[Path], output: Path, shard_megabytes: int = 512, root: Path | None = None) -> None:
    """Pack manifests, or folders of clean photos, into tar shards with an index.

    Args:
        paths: Manifests, or folders of clean photos to be degraded on the fly; not both.
        output: Folder for the shards.
        shard_megabytes: Size of a shard.
        root: Folder that relative paths in all manifests start from; each one's own folder if not given.
    """
    rows: list[Row] = []
    origins: list[str] = []
    for path in paths:
        if os.path.isdir(path):
            rows += [Row(os.path.abspath(photo), "", CLEAN_KIND, path.resolve().name) for photo in list_photos(path)]
            origins += [str(path)] * (len(rows) - len(origins))
        else:
            base = Path(os.path.abspath(_base(path, root)))
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
    if kind not in (kinds := (*PAIRED_KINDS, CLEAN_KIND)):
        raise UserError(f"--kind: found '{kind}'; expected one of {', '.join(kinds)}")
    assert degraded is not None  # checked above
    assert clean is not None
    return own_layout(dataset, kind, degraded, clean)


def _base(manifest: Path, root: Path | None) -> Path:
    """Where a manifest's relative paths start from."""
    if root is not None and not os.path.isdir(root):
        raise UserError(f"--root {root}: no such folder; expected the one that the manifest's paths start from")
    return manifest.parent if root is None else root


def _images(rows: Sequence[Row], base: Path) -> dict[Path, int]:
    """The clean images, or all there is, and the first row of each."""
    images: dict[Path, int] = {}
    for number, row in enumerate(rows, 1):
        images.setdefault(located(base, row.target_path or row.image_path), number)
    return images


def _fingerprints(images: Mapping[Path, int]) -> tuple[list[Fingerprint], list[Problem]]:
    with _bar(len(images), "looking for twins") as advance:
        found, faults = fingerprints(list(images), advance)
    return found, [Problem(images[path], str(path), message) for path, message in faults.items()]


def _check_target(path: Path) -> None:
    """Before any work, which would be lost."""
    there = next((parent for parent in Path(os.path.abspath(path)).parents if os.path.exists(parent)), path)
    if os.path.isdir(path) or not there.is_dir() or not os.access(there, os.W_OK):
        raise UserError(f"{path} cannot be written; expected the name of a file in a folder that you may write to")


def _check_report(report: Path | None, others: Sequence[Path]) -> None:
    if report is None:
        return
    _check_target(report)
    if os.path.abspath(report) in map(os.path.abspath, others):
        raise UserError(f"--report {report} is one of the files given; choose another name")


def _show(name: str, problems: Sequence[Problem]) -> None:
    for problem in problems[:SHOWN]:
        row = f", row {problem.row}" if problem.row else ""
        sys.stdout.write(f"{name}{row}: {problem.path}{': ' if problem.path else ''}{problem.message}\n")
    if len(problems) > SHOWN:
        sys.stdout.write(f"... and {len(problems) - SHOWN} more; --report FILE.csv writes them all\n")


def _write_report(problems: Sequence[tuple[str, Problem]], report: Path | None) -> None:
    if report is None:
        return
    try:
        with atomic_write(report) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["manifest", "row", "path", "problem"])
            writer.writerows([name, problem.row or "", problem.path, problem.message] for name, problem in problems)
    except OSError as error:
        raise UserError(f"--report {report} cannot be written ({error.strerror}); choose another") from None


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
