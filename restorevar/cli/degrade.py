"""``restorevar degrade``: degraded copies of photos, with the parameters used, and contact sheets."""

import json
import logging
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import track

from restorevar.datamodules.degradations import KINDS, get_degradation
from restorevar.datamodules.degradations import degrade as degrade_pixels
from restorevar.datamodules.degradations.sheet import contact_sheet as draw_sheet
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
        overwrite: Replace results that are there already.

    Returns:
        0, or 1 if a photo failed.
    """
    _check(kind, severity, seed, output, contact_sheet)
    keep_freed_memory()
    errors: list[str] = []
    if contact_sheet is not None:
        errors += _write_sheet(paths, kind, seed, contact_sheet, overwrite)
    if kind is not None and output is not None:
        jobs = plan_jobs(paths, output)
        there = [job.result for job in jobs if job.result.exists()]
        if there and not overwrite:
            raise UserError(
                f"{len(there)} of the results are there already ({there[0]}); choose another --output or --overwrite"
            )
        numbered = list(enumerate(jobs))
        for number, job in track(numbered, "degrading", console=Console(stderr=True), transient=True):
            try:
                _degrade_file(job, kind, severity, seed + number)
            except (UserError, OSError) as error:
                text = str(error) if str(job.source) in str(error) else f"{job.source}: {error}"
                errors.append(text)
                logger.error("error: %s", text)
        failed = f", {len(errors)} failed" if errors else ""
        logger.info("%d photos degraded%s: %s", len(jobs) - len(errors), failed, output)
    return 1 if errors else 0


def _check(kind: str | None, severity: float, seed: int, output: Path | None, contact_sheet: Path | None) -> None:
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
    if contact_sheet is not None and contact_sheet.suffix.lower() not in SUFFIXES:
        raise UserError(f"--contact-sheet {contact_sheet}: expected a name ending in {', '.join(SUFFIXES)}")


def _degrade_file(job: Job, kind: str, severity: float, seed: int) -> None:
    photo = read_photo(job.source)
    pixels, parameters = degrade_pixels(to_8_bits(photo.pixels), kind, severity, seed)
    # fog over a grey photo has a tint, and noise has colours
    write_photo(job.result, replace(photo, pixels=pixels, grey=False))
    with atomic_write(job.result.with_name(job.result.name + ".json")) as temporary:
        temporary.write_text(json.dumps(parameters, indent=2) + "\n", encoding="utf-8")


def _write_sheet(paths: list[Path], kind: str | None, seed: int, target: Path, overwrite: bool) -> list[str]:
    if target.exists() and not overwrite:
        raise UserError(f"{target} is there already; choose another --contact-sheet or --overwrite")
    photos, errors = [], []
    # results would go nowhere: only the photos' names are wanted
    jobs = plan_jobs(paths, target.parent / f".{target.name}.none")
    if target.resolve() in {job.source.resolve() for job in jobs}:
        raise UserError(f"--contact-sheet {target} is one of the photos given; choose another name")
    for job in jobs[:_SHEET_PHOTOS]:
        try:
            photos.append(read_rgb(job.source))
        except UserError as error:
            errors.append(str(error))
            logger.error("error: %s", error)
    if not photos:
        raise UserError("no photo could be read for the contact sheet")
    sheet = draw_sheet(photos, KINDS if kind is None else [kind], seed=seed)
    try:
        write_photo(target, Photo(sheet, format=SUFFIXES[target.suffix.lower()]))
    except OSError as error:
        raise UserError(f"--contact-sheet {target} cannot be written ({error.strerror or error})") from error
    logger.info("contact sheet: %s", target)
    return errors
