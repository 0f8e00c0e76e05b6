"""``restorevar restore``: photos and folders of photos in, restored photos of the same names out."""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from restorevar.devices import choose_device, choose_precision
from restorevar.errors import UserError
from restorevar.memory import keep_freed_memory
from restorevar.restoration.color import ColorFix
from restorevar.restoration.folder import Job, Record, pixel_count, plan_jobs, run_jobs
from restorevar.restoration.restorer import GlobalCorrection, Restorer

if TYPE_CHECKING:
    from restorevar.models import RestoreVAR

__all__ = ["restore"]

DEFAULT_MODEL = "restorevar-nano"


def restore(
    paths: list[Path],
    output: Path,
    model: str = DEFAULT_MODEL,
    tile: int | Literal["auto"] = "auto",
    overlap: int | None = None,
    fidelity: float | None = None,
    color_fix: ColorFix = "none",
    global_correction: GlobalCorrection = "on",
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    overwrite: bool = False,
) -> int:
    """Restores photos and folders of photos (recursively), keeping names, sizes and orientation.

    Results that are complete, from the same photo, model and settings, are skipped. A photo that cannot be restored is
    reported and does not stop the rest; the exit code is 1 then.

    Args:
        paths: Photos (JPEG, PNG, WebP, BMP, TIFF) and folders.
        output: Folder for the results; sub-folders are mirrored.
        model: Name of a shipped model, a model folder, or a hub id.
        tile: Side of the tiles in pixels; auto is the model's own size, as many at once as fit into memory.
        overlap: Pixels over which tiles cross-fade; an eighth of a tile if not given.
        fidelity: For models with a detail path or a gate: 0 (method only) to 1 (the default; keeps most of the input).
        color_fix: Takes the mean of each channel (mean) or all low frequencies (wavelet) back from the input, which
            brings haze and darkness back too.
        global_correction: Whether tiles are levelled by one restoration of the whole photo at reduced size.
        precision: auto is bfloat16 where the device computes it natively, else float32.
        device: auto is a GPU if there is one.
        overwrite: Make finished results again, and replace files in the output folder that are not ours.

    Returns:
        0, or 1 if a photo failed.
    """
    keep_freed_memory()
    jobs = plan_jobs(paths, output)
    network, identity = load_model(model)
    place = choose_device(device)
    number_type = choose_precision(precision, place)
    network.set_precision(number_type).to(place)
    with _Display(jobs) as display:
        restorer = Restorer(
            network,
            tile=tile,
            overlap=overlap,
            fidelity=fidelity,
            color_fix=color_fix,
            global_correction=global_correction,
            note=lambda line: display.message(f"note: {line}"),
        )
        made_by = {
            "model": identity,
            "tile": list(restorer.tile),
            "overlap": restorer.overlap,
            "fidelity": fidelity,
            "color_fix": color_fix,
            "global_correction": global_correction,
            "precision": str(number_type).removeprefix("torch."),
        }
        outcome = run_jobs(jobs, restorer, Record(output, made_by), display, overwrite)
    parts = [f"{outcome.restored} restored"]
    parts += [f"{outcome.skipped} done already"] if outcome.skipped else []
    parts += [f"{len(outcome.errors)} failed"] if outcome.errors else []
    display.message(f"{', '.join(parts)}: {output}")
    return 1 if outcome.errors else 0


def find_model(name: str) -> Path:
    """The folder of a model; see :func:`restorevar.models.pretrained.find_folder`.

    Raises:
        UserError: If there is none; for the default model it says how to come by another.
    """
    from restorevar.models import pretrained

    if name == DEFAULT_MODEL and name not in pretrained.shipped_models() and not Path(name).is_dir():
        raise UserError(
            f"the model '{name}' is not part of this installation; give a model folder with --model "
            "(every training stage exports one: `restorevar pipeline --config ...`)"
        )
    return pretrained.find_folder(name)


def load_model(name: str) -> "tuple[RestoreVAR, str]":
    """The model, and what tells it from others: the checksum of its files.

    Raises:
        UserError: There is none of that name, or it holds a tokenizer only.
    """
    import hashlib

    from restorevar.files import sha256
    from restorevar.models import pretrained

    folder = find_model(name)
    network = pretrained.load(folder)
    if network.transformer is None:
        raise UserError(f"{folder} holds a tokenizer only; expected a model that went through stage 2 as well")
    checksums = sha256(folder / pretrained.CONFIG) + sha256(folder / pretrained.WEIGHTS)
    return network, hashlib.sha256(checksums.encode()).hexdigest()[:16]


class _Display:
    """Progress bar in pixels, with the time left, on standard error.

    Args:
        jobs: The photos.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        # a photo whose size cannot be told still counts as one pixel of work
        self._sizes = [max(pixel_count(job.source), 1) for job in jobs]
        console = Console(stderr=True, emoji=False)
        self._progress = Progress(
            TextColumn("{task.fields[number]}/{task.fields[count]} {task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("", total=sum(self._sizes), number=0, count=len(jobs))

    def __enter__(self) -> "_Display":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def begin(self, job: Job, number: int) -> None:
        """Names the photo."""
        self._progress.update(self._task, description=job.source.name, number=number + 1)

    def advance(self, pixels: float) -> None:
        """Moves the bar."""
        self._progress.advance(self._task, pixels)

    def end(self, job: Job, number: int) -> None:
        """Puts the bar where it belongs, also after a failure."""
        self._progress.update(self._task, completed=sum(self._sizes[: number + 1]))

    def message(self, line: str) -> None:
        """Writes a line above the bar."""
        self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)
