"""``restorevar demo``: held-out photographs degraded, restored, scored and pictured."""

import importlib.util
import json
import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from restorevar.cli.restore import DEFAULT_MODEL, find_model, load_model, restore
from restorevar.devices import choose_device, choose_precision, computes_bfloat16
from restorevar.errors import UserError
from restorevar.files import atomic_write

if TYPE_CHECKING:
    from restorevar.models import RestoreVAR

__all__ = ["DemoScore", "demo"]

log = logging.getLogger(__name__)

KINDS = ("haze", "rain", "snow", "low_light", "motion_blur")
PHOTOS = ("astronaut.png", "chelsea.png")
"""Held out: no demo stage trains on them."""

Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class DemoScore:
    """Scores of one photo in one kind of degradation, at the photo's own size.

    Attributes:
        photo: Its name.
        kind: Kind of degradation.
        degraded_psnr: dB of the degraded photo.
        restored_psnr: dB of the restored photo.
        degraded_ssim: SSIM of the degraded photo.
        restored_ssim: SSIM of the restored photo.
        other_psnr: dB of the same model given ANOTHER degraded photo's condition, against this clean photo: tokens and
            latent come from the other photo, and only the detail path, if there is one, sees the right one.
    """

    photo: str
    kind: str
    degraded_psnr: float
    restored_psnr: float
    degraded_ssim: float
    restored_ssim: float
    other_psnr: float


def demo(
    output: Path = Path("demo"),
    model: str | None = None,
    config: Path | None = None,
    severity: float = 0.6,
    seed: int = 0,
    overrides: list[str] | None = None,
) -> int:
    """Degrades photographs that come with scikit-image, restores them and leaves a picture to look at.

    The photos are restored by the same code as `restorevar restore`, and lie inside scikit-image's package: nothing is
    fetched.

    Args:
        output: Folder of everything that is made; the picture is before_after.png in it.
        model: Name or folder of a model; the shipped one if neither this nor a pipeline is given.
        config: Pipeline file to train a model by first, such as configs/demo/pipeline.yaml; its last stage's is used.
        severity: Severity of the degradations, 0 to 1.
        seed: Fixes the degradations.
        overrides: Options for the pipeline's stages, as in `restorevar pipeline`.

    Returns:
        0 if the restored photos score better than the degraded ones on average, else 1.
    """
    if model is not None and config is not None:
        raise UserError("a model and a pipeline to train one were given; expected --model NAME or --config FILE")
    if overrides and config is None:
        raise UserError(f"unknown setting '{overrides[0]}'; options for training go with --config")
    started = time.monotonic()
    if config is not None:
        from restorevar.cli.pipeline import pipeline, read_pipeline

        words = [f"--trainer.precision={training_precision()}", *(overrides or [])]
        if code := pipeline(config, output / "training", overrides=words):
            return code
        model = str(output / "training" / read_pipeline(config)[0][-1].name / "model")
        log.info("trained in %.0f s", time.monotonic() - started)
    model = DEFAULT_MODEL if model is None else model
    find_model(model)  # before anything is made
    clean = {Path(name).stem: photo_file(name) for name in PHOTOS}
    make_degraded(clean, output / "degraded", severity, seed)
    started = time.monotonic()
    if code := restore_folder(output / "degraded", output / "restored", model):
        return code
    log.info("%d photos restored in %.0f s", len(KINDS) * len(PHOTOS), time.monotonic() - started)
    network = load_network(model)
    scores = [score(name, path, kind, output, network) for kind in KINDS for name, path in clean.items()]
    with atomic_write(output / "scores.json") as temporary:
        temporary.write_text(json.dumps([asdict(entry) for entry in scores], indent=1) + "\n", encoding="utf-8")
    write_picture(scores, clean, output)
    log.info("%s", table(scores))
    log.info("picture: %s", output / "before_after.png")
    better = np.mean([entry.restored_psnr - entry.degraded_psnr for entry in scores]) > 0
    return 0 if better else 1


def training_precision() -> str:
    """bfloat16 where this processor computes it natively, else float32: elsewhere bfloat16 is slower."""
    import torch

    return "bf16-mixed" if computes_bfloat16(torch.device("cpu")) else "32-true"


def photo_file(name: str) -> Path:
    """A photo inside scikit-image's package.

    Raises:
        UserError: If the package is not there.
    """
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise UserError(
            "the demo's photographs come with scikit-image, which is not installed: pip install scikit-image"
        )
    return Path(spec.origin).parent / "data" / name


def make_degraded(clean: dict[str, Path], folder: Path, severity: float, seed: int) -> None:
    """Writes ``<folder>/<kind>/<photo>.png`` for every kind and photo.

    Args:
        clean: Files of the clean photos by name.
        folder: Where to.
        severity: Severity in [0, 1].
        seed: Fixes the degradations.
    """
    from restorevar.datamodules.degradations import degrade
    from restorevar.restoration.photo import read_rgb

    for number, (name, path) in enumerate(clean.items()):
        photo = read_rgb(path)
        for kind in KINDS:
            degraded, _ = degrade(photo, kind, severity, seed + number)
            with atomic_write(folder / kind / f"{name}.png") as temporary:
                Image.fromarray(degraded).save(temporary)


def restore_folder(degraded: Path, restored: Path, model: str) -> int:
    """Restores a folder by the command that users have."""
    return restore([degraded], output=restored, model=model, overwrite=True) or 0


def load_network(model: str) -> "RestoreVAR":
    """The model as `restorevar restore` uses it by default."""
    device = choose_device("auto")
    return load_model(model)[0].set_precision(choose_precision("auto", device)).to(device)


def score(name: str, clean_path: Path, kind: str, output: Path, model: "RestoreVAR") -> DemoScore:
    """Scores one restored photo, and what the model makes of it with another photo's condition.

    Args:
        name: The photo.
        clean_path: Its clean file.
        kind: Kind of degradation.
        output: The demo's folder.
        model: The model that restored it.
    """
    from restorevar.benchmarking.exchange import restore_with_latent_of
    from restorevar.restoration.photo import read_rgb

    clean = read_rgb(clean_path)
    degraded, restored = (read_rgb(output / part / kind / f"{name}.png") for part in ("degraded", "restored"))
    other = next(Path(photo).stem for photo in PHOTOS if Path(photo).stem != name)
    exchanged = restore_with_latent_of(model, degraded, read_rgb(output / "degraded" / kind / f"{other}.png"))
    before, after, wrong = (compare(photo, clean) for photo in (degraded, restored, exchanged))
    return DemoScore(name, kind, before[0], after[0], before[1], after[1], wrong[0])


def compare(image: Picture, clean: Picture) -> tuple[float, float]:
    """PSNR in dB and SSIM of two (H, W, 3) uint8 photos."""
    import torch

    from restorevar.evaluation.metrics import ImageMetrics

    first, second = (torch.from_numpy(np.array(photo)).permute(2, 0, 1)[None].float() / 255 for photo in (image, clean))
    values = ImageMetrics(("psnr", "ssim"))(first, second)
    return float(values["psnr"]), float(values["ssim"])


def table(scores: list[DemoScore]) -> str:
    """Mean scores per kind as text."""
    lines = [
        "",
        "kind          PSNR degraded -> restored (gain)   SSIM degraded -> restored   another photo's condition",
    ]
    for kind in (*KINDS, "all"):
        chosen = [entry for entry in scores if kind in (entry.kind, "all")]
        before, after, ssim_before, ssim_after, other = (
            float(np.mean([getattr(entry, field) for entry in chosen]))
            for field in ("degraded_psnr", "restored_psnr", "degraded_ssim", "restored_ssim", "other_psnr")
        )
        lines.append(
            f"{kind:<12}  {before:10.2f} -> {after:6.2f} dB ({after - before:+5.2f})"
            f"   {ssim_before:12.3f} -> {ssim_after:.3f}   {other - after:+18.2f} dB"
        )
    return "\n".join(lines)


def write_picture(scores: list[DemoScore], clean: dict[str, Path], output: Path) -> None:
    """Writes ``before_after.png``: one row a kind, for each photo degraded, restored and clean.

    Args:
        scores: Scores of all photos and kinds.
        clean: Files of the clean photos by name.
        output: The demo's folder.
    """
    from restorevar.restoration.photo import read_rgb

    height, bar, gap, left = 160, 16, 4, 12
    versions = {name: read_rgb(path) for name, path in clean.items()}
    widths = {name: round(photo.shape[1] * height / photo.shape[0]) for name, photo in versions.items()}
    total = left + sum(3 * (width + gap) for width in widths.values())
    canvas = Image.new("RGB", (total, len(KINDS) * (height + bar + gap)), "white")
    draw = ImageDraw.Draw(canvas)
    for row, kind in enumerate(KINDS):
        top, x = row * (height + bar + gap), left
        for name, photo in versions.items():
            entry = next(entry for entry in scores if (entry.photo, entry.kind) == (name, kind))
            degraded, restored = (read_rgb(output / part / kind / f"{name}.png") for part in ("degraded", "restored"))
            cells = {
                f"{kind} {entry.degraded_psnr:.1f} dB": degraded,
                f"restored {entry.restored_psnr:.1f} dB": restored,
                "clean": photo,
            }
            for label, pixels in cells.items():
                draw.text((x + 2, top + 2), label, fill="black")
                small = Image.fromarray(pixels).resize((widths[name], height), Image.Resampling.LANCZOS)
                canvas.paste(small, (x, top + bar))
                x += widths[name] + gap
    with atomic_write(output / "before_after.png") as temporary:
        canvas.save(temporary, optimize=True)
