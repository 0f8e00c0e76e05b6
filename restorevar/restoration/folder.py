"""Many photo files: what to restore, where each result goes, what is done already."""

import json
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from restorevar.errors import UserError
from restorevar.files import sha256
from restorevar.restoration.photo import SUFFIXES, read_photo, write_photo
from restorevar.restoration.restorer import Restorer

__all__ = ["RECORD", "FolderProgress", "Job", "Outcome", "Record", "pixel_count", "plan_jobs", "run_jobs"]

RECORD = ".restorevar.jsonl"
"""Lies in the output folder and tells which results are complete and how they were made. Safe to delete."""


@dataclass(frozen=True)
class Job:
    """One photo to restore.

    Attributes:
        source: The given file.
        result: The file to write.
    """

    source: Path
    result: Path


@dataclass(frozen=True)
class Outcome:
    """How a run over many files ended.

    Attributes:
        restored: Number of files written.
        skipped: Number of files that were done already.
        errors: One line for each file that failed.
    """

    restored: int
    skipped: int
    errors: tuple[str, ...]


class FolderProgress(Protocol):
    """What is shown while a folder is worked through."""

    def begin(self, job: Job, number: int) -> None:
        """Photo ``number`` (from 0) is begun."""

    def advance(self, pixels: float) -> None:
        """So many pixels of it were done."""

    def end(self, job: Job, number: int) -> None:
        """It is done, skipped or failed."""

    def message(self, line: str) -> None:
        """Something to tell."""


def plan_jobs(paths: Sequence[Path], output: Path) -> list[Job]:
    """Finds the photos and where their results go, and refuses what could lose a file.

    A file's result keeps its name; a folder's sub-folders are mirrored. Hidden files, files of other kinds and an
    output folder inside an input folder are left out.

    Args:
        paths: Photo files and folders.
        output: The output folder; need not exist.

    Returns:
        One job a photo, in the order given and sorted within folders.

    Raises:
        UserError: If a path does not exist, nothing is found, two photos would share one result, a result would replace
            a given photo or a folder, or nothing can be written there.
    """
    _check_output(output)
    jobs: dict[Path, Job] = {}
    for path in paths:
        if path.is_dir():
            found = [(file, output / file.relative_to(path)) for file in _photos_in(path, output)]
        elif path.is_file():
            found = [(path, output / path.name)]
        elif path.exists():
            raise UserError(f"{path} is neither a file nor a folder; expected photos")
        else:
            raise UserError(f"{path}: no such file or folder")
        for source, result in found:
            # two links to one photo are two photos, one photo named twice is one
            jobs.setdefault(source.parent.resolve() / source.name, Job(source, result))
    if not jobs:
        names = ", ".join(str(path) for path in paths)
        raise UserError(f"no photos in {names}; expected files ending in {' '.join(sorted(SUFFIXES))}")
    originals = {*jobs, *(job.source.resolve() for job in jobs.values())}
    results: dict[Path, Job] = {}
    for job in jobs.values():
        target = job.result.parent.resolve() / job.result.name
        if target in originals:
            raise UserError(
                f"the result of {job.source} would replace the photo {target}; choose another output folder"
            )
        if target.is_dir():
            raise UserError(f"{job.result}, the result of {job.source}, is a folder; choose another output folder")
        if target in results:
            raise UserError(
                f"{results[target].source} and {job.source} would both become {job.result}; "
                "restore them into different output folders"
            )
        results[target] = job
    return list(jobs.values())


def _check_output(output: Path) -> None:
    if not output.is_dir() and (output.exists() or output.suffix.lower() in SUFFIXES):
        raise UserError(f"the output {output} is a file's name; expected a folder: results keep their photos' names")
    nearest = next(folder for folder in (output, *output.absolute().parents) if folder.exists())
    if not nearest.is_dir():
        raise UserError(f"the output {output} lies in {nearest}, which is a file; choose another output folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"the output {output}: no permission to write in {nearest}; choose another output folder")


def _photos_in(folder: Path, output: Path) -> Iterator[Path]:
    seen = {output.resolve(), folder.resolve()}  # links may lead back
    for root, folders, files in os.walk(folder, onerror=_refuse_folder, followlinks=True):
        here = Path(root)
        wanted = []
        for name in sorted(folders):
            if not name.startswith(".") and (place := (here / name).resolve()) not in seen:
                seen.add(place)
                wanted.append(name)
        folders[:] = wanted
        for name in sorted(files):
            path = here / name
            if name.startswith(".") or path.suffix.lower() not in SUFFIXES:
                continue
            # a pipe would be waited for; a link to nothing or into a locked folder is reported (pathlib would raise)
            if os.path.isfile(path) or not os.path.exists(path):
                yield path


def _refuse_folder(error: OSError) -> None:
    """What `os.walk` would pass over, photos and all."""
    raise UserError(f"{error.filename}: the folder cannot be read ({error.strerror}); mend that, or move it away")


class Record:
    """Remembers in the output folder which results are complete and how they were made.

    One JSON object a line. A result is entered when its file is complete and not yet in its place, so at any moment
    what is there is known by its content, and nothing else is ever taken for ours.

    Args:
        output: The output folder.
        made_by: Model and settings; results made otherwise are made again.
    """

    def __init__(self, output: Path, made_by: dict[str, Any]) -> None:
        self._path = output / RECORD
        self._output = output
        self._made_by = made_by
        self._entries: dict[str, list[dict[str, Any]]] = {}
        try:
            lines = self._path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            return
        for line in lines:
            try:
                entry = json.loads(line)
                if "bytes" in entry:
                    self._entries.setdefault(entry["result"], []).append(entry)
            except (ValueError, KeyError, TypeError):
                continue  # a line cut short by a crash

    def is_ours(self, job: Job) -> bool:
        """Whether the file where the result goes was written by an earlier run and not changed since."""
        return any(_is_unchanged(job.result, entry) for entry in self._entries.get(self._name(job), []))

    def is_done(self, job: Job) -> bool:
        """Whether the result is there, whole and unchanged, from the same photo, model and settings."""
        entries = self._entries.get(self._name(job))
        if not entries:
            return False
        try:
            same = all(entries[-1].get(key) == value for key, value in self._origin(job).items())
            return same and _is_unchanged(job.result, entries[-1]) and not _is_of_another(job, entries[-1])
        except OSError:
            return False

    def namesake(self, job: Job) -> Path | None:
        """Another photo, still there, whose result lies where this one's goes; None if there is none."""
        entries = self._entries.get(self._name(job))
        if not entries or not _is_of_another(job, entries[-1]):
            return None
        other = Path(entries[-1]["photo"])
        return other if other.exists() else None

    def enter(self, job: Job, written: Path) -> None:
        """To be called once the result is complete, before it goes to its place.

        Args:
            job: The photo and where its result goes.
            written: The complete file.
        """
        state = written.stat()
        facts = {"bytes": state.st_size, "modified": state.st_mtime_ns, "sha256": sha256(written)}
        photo = {"photo": str(job.source.resolve()), "photo_sha256": sha256(job.source)}
        entry = {"result": self._name(job), **facts, **self._origin(job), **photo}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a+b") as file:
            end = file.seek(0, os.SEEK_END)
            if end and (file.seek(end - 1), file.read(1))[1] != b"\n":
                file.write(b"\n")  # a crash has cut the last line short
            file.write(json.dumps(entry).encode() + b"\n")
        self._entries.setdefault(entry["result"], []).append(entry)

    def _name(self, job: Job) -> str:
        return job.result.relative_to(self._output).as_posix()

    def _origin(self, job: Job) -> dict[str, Any]:
        source = job.source.stat()
        return {"source": [source.st_size, source.st_mtime_ns], "made_by": self._made_by}


def _is_of_another(job: Job, entry: dict[str, Any]) -> bool:
    """Whether an entry is of a photo in another place that is not this one, moved or copied."""
    photo = entry.get("photo", str(job.source.resolve()))
    return photo != str(job.source.resolve()) and sha256(job.source) != entry.get("photo_sha256")


def _is_unchanged(result: Path, entry: dict[str, Any]) -> bool:
    """Whether a file is what was entered; its content is read only if its time says otherwise, as after a copy."""
    state = result.stat()
    if state.st_size != entry["bytes"]:
        return False
    return state.st_mtime_ns == entry.get("modified") or sha256(result) == entry.get("sha256")


def pixel_count(path: Path) -> int:
    """Pixels of a photo by its header; 0 where it cannot be told."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                return image.width * image.height
    except Exception:  # reported when its turn comes
        return 0


def run_jobs(
    jobs: Iterable[Job], restorer: Restorer, record: Record, progress: FolderProgress, overwrite: bool = False
) -> Outcome:
    """Restores files one after the other; one that fails does not stop the rest.

    Args:
        jobs: From :func:`plan_jobs`.
        restorer: Model and options.
        record: What is done already.
        progress: Shown while it runs.
        overwrite: Make results again that are done, and replace files that are not ours.
    """
    restored, skipped = 0, 0
    errors = []
    for number, job in enumerate(jobs):
        progress.begin(job, number)
        try:
            if not overwrite and record.is_done(job):
                skipped += 1
            elif not overwrite and job.result.exists() and not record.is_ours(job):
                raise UserError(
                    f"{job.result} exists and is not (or no longer) a result of ours; --overwrite replaces it"
                )
            elif not overwrite and job.result.exists() and (other := record.namesake(job)) is not None:
                raise UserError(
                    f"{job.result} is the result of {other}; choose another output folder, or --overwrite replaces it"
                )
            else:
                _restore_file(job, restorer, record, progress)
                restored += 1
        except (UserError, OSError, MemoryError) as error:
            text = str(error) or type(error).__name__
            line = text if str(job.source) in text else f"{job.source}: {text}"
            errors.append(line)
            progress.message(f"error: {line}")
        progress.end(job, number)
    return Outcome(restored, skipped, tuple(errors))


def _restore_file(job: Job, restorer: Restorer, record: Record, progress: FolderProgress) -> None:
    photo = read_photo(job.source)
    for line in photo.notes:
        progress.message(f"note: {job.source}: {line}")
    count = photo.pixels.shape[0] * photo.pixels.shape[1]
    pixels = restorer.restore(photo.pixels, lambda share: progress.advance(share * count))
    photo = replace(photo, pixels=pixels)
    del pixels
    write_photo(job.result, photo, lambda written: record.enter(job, written))
