"""``restorevar degrade``: degraded copies of photos, with the parameters used, and contact sheets."""

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import track

from restorevar.datamodules.degradations import KINDS, get_degradation
from restorevar.datamodules.degradations import degrade as degrade_pixels
from restorevar.datamodules.degradations.sheet import contact_sheet as draw_sheet
from restorevar.datamodules.sources import depth_maps, read_depth
from restorevar.errors import UserError
from restorevar.files import atomic_write
from restorevar.memory import keep_freed_memory
from restorevar.restoration.folder import Job, plan_jobs
from restorevar.restoration.photo import SUFFIXES, Photo, read_photo, read_rgb, to_8_bits, write_photo

__all__ = ["degrade"]

_SHEET_PHOTOS = 24  # read for a sheet at most

logger = logging.getLogger(__name__)


def degrade(
    paths: list[Path],
    kind: str | None = None,
    severity: float = 0.5,
    seed: int = 0,
    output: Path | None = None,
    contact_sheet: Path | None = None,
    depth: Path | None = None,
    overwrite: bool = False,
) -> int:
    """Degrades photos and folders of photos (recursively), keeping names and sizes.

    The parameters used are written beside each result: photo.png.json beside photo.png. A photo that cannot be read is
    reported and does not stop the rest; the exit code is 1 then.

    Args:
        paths: Photos (JPEG, PNG, WebP, BMP, TIFF) and folders.
        kind: haze, rain, snow, low_light, motion_blur or mixed, or the import path of a function of your own.
        severity: 0 (nothing) to 1.
        seed: Whole number from 0; the second photo takes the next one, and so on.
        output: Folder for the results; sub-folders are mirrored.
        contact_sheet: Picture file to write: all kinds (or the one given) at severities from 0 to 1.
        depth: Folder of depth maps with the photos' names, larger is farther, for --output: images of 8 or 16 bits or
            .npy, in the same sub-folders as the photos. The distances of photos without one are guessed.
        overwrite: Replace results that are there already.

    Returns:
        0, or 1 if a photo failed.
    """
    _check(kind, severity, seed, output, contact_sheet, depth)
    keep_freed_memory()
    errors: list[str] = []
    if contact_sheet is not None:
        errors += _write_sheet(paths, kind, seed, contact_sheet, overwrite)
    if kind is not None and output is not None:
        jobs = plan_jobs(paths, output)
        there = [path for job in jobs for path in (job.result, _parameters_of(job)) if path.exists()]
        if there and not overwrite:
            raise UserError(
                f"{len(there)} of the results are there already ({there[0]}); choose another --output or --overwrite"
            )
        maps = None if depth is None else _find_depth_maps(jobs, output, depth)
        failures = []
        numbered = list(enumerate(jobs))
        for number, job in track(numbered, "degrading", console=Console(stderr=True), transient=True):
            try:
                _degrade_file(job, kind, severity, seed + number, maps)
            except Exception as error:  # a degradation of the user's own raises what it likes
                failures.append(_report(job.source, error))
        failed = f", {len(failures)} failed" if failures else ""
        logger.info("%d photos degraded%s: %s", len(jobs) - len(failures), failed, output)
        errors += failures
    return 1 if errors else 0


def _check(
    kind: str | None,
    severity: float,
    seed: int,
    output: Path | None,
    contact_sheet: Path | None,
    depth: Path | None,
) -> None:
    if not 0 <= severity <= 1:
        raise UserError(f"--severity is {severity}; expected a number from 0 to 1")
    if seed < 0:
        raise UserError(f"--seed is {seed}; expected a whole number from 0")
    if kind is not None:
        get_degradation(kind)
    if kind is None and (output is not None or contact_sheet is None):
        raise UserError(f"--kind is missing; expected one of {', '.join(KINDS)}")
    if output is None and contact_sheet is None:
        raise UserError("nothing to write; give a folder with --output, or a picture file with --contact-sheet")
    if depth is not None and output is None:
        raise UserError("--depth is for photos written to --output; on contact sheets distances are guessed")
    if contact_sheet is not None and contact_sheet.suffix.lower() not in SUFFIXES:
        raise UserError(f"--contact-sheet {contact_sheet}: expected a name ending in {', '.join(SUFFIXES)}")


def _report(source: Path, error: Exception) -> str:
    """Logs what befell a photo, in one line, and returns that line."""
    text = str(error) if isinstance(error, UserError | OSError) else f"{type(error).__name__}: {error}"
    text = " ".join(text.split())
    line = text if str(source) in text else f"{source}: {text}"
    logger.error("error: %s", line)
    return line


def _find_depth_maps(jobs: Sequence[Job], output: Path, folder: Path) -> dict[Path, str]:
    """Depth map of each photo that has one, as training finds them."""
    photos = [(job.source, "", job.result.relative_to(output).with_suffix("")) for job in jobs]
    maps = depth_maps(photos, folder)
    if not maps:
        raise UserError(f"--depth {folder}: no map has a photo's name; expected {photos[0][2]}.npy, .png or .tif")
    return maps


def _degrade_file(job: Job, kind: str, severity: float, seed: int, maps: dict[Path, str] | None) -> None:
    """Degrades one file.

    Args:
        job: The file and its result.
        kind: Kind of degradation.
        severity: In [0, 1].
        seed: The photo's own.
        maps: Depth maps of the photos, or None if none are asked for.
    """
    photo = read_photo(job.source)
    notes, profile, depth = list(photo.notes), photo.icc_profile, None
    if photo.pixels.itemsize > 1:
        notes.append("16 bits a channel reduced to 8")
    if profile and profile[16:20] != b"RGB ":
        notes.append("ICC profile left out, it is not one for RGB")
        profile = b""
    if maps is not None and job.source not in maps:
        notes.append("no depth map, distances are guessed")
    if notes:
        logger.info("note: %s: %s", job.source, "; ".join(notes))
    if maps is not None and job.source in maps:
        depth = read_depth(maps[job.source], photo.pixels.shape[:2])
    pixels, parameters = degrade_pixels(to_8_bits(photo.pixels), kind, severity, seed, depth=depth)
    # before the photo is written: a degradation of the user's own may return what JSON cannot hold
    text = json.dumps(parameters, indent=2) + "\n"
    alpha = None if photo.alpha is None else to_8_bits(photo.alpha)

    def write_parameters(_: Path) -> None:
        with atomic_write(_parameters_of(job)) as temporary:
            temporary.write_text(text, encoding="utf-8")

    # fog over a grey photo has a tint, and noise has colours; no photo without its parameters
    degraded = replace(photo, pixels=pixels, alpha=alpha, grey=False, icc_profile=profile)
    write_photo(job.result, degraded, write_parameters)


def _parameters_of(job: Job) -> Path:
    return job.result.with_name(job.result.name + ".json")


def _write_sheet(paths: list[Path], kind: str | None, seed: int, target: Path, overwrite: bool) -> list[str]:
    if target.exists() and not overwrite:
        raise UserError(f"{target} is there already; choose another --contact-sheet or --overwrite")
    photos, errors = [], []
    # results would go nowhere: only the photos' names are wanted
    jobs = plan_jobs(paths, target.parent / f".{target.name}.none")
    if target.resolve() in {job.source.resolve() for job in jobs}:
        raise UserError(f"--contact-sheet {target} is one of the photos given; choose another name")
    if len(jobs) > _SHEET_PHOTOS:
        logger.info("the contact sheet shows the first %d of %d photos", _SHEET_PHOTOS, len(jobs))
    for job in jobs[:_SHEET_PHOTOS]:
        try:
            photos.append(read_rgb(job.source))
        except Exception as error:  # whatever it is, the others can be shown
            errors.append(_report(job.source, error))
    if not photos:
        raise UserError("no photo could be read for the contact sheet")
    sheet = draw_sheet(photos, KINDS if kind is None else [kind], seed=seed)
    try:
        write_photo(target, Photo(sheet, format=SUFFIXES[target.suffix.lower()]))
    except OSError as error:
        raise UserError(f"--contact-sheet {target} cannot be written ({error.strerror or error})") from error
    logger.info("contact sheet: %s", target)
    return errors
