"""``restorevar convert``: published weights to a model folder, and back."""

import re
import sys
from pathlib import Path

from restorevar.errors import UserError
from restorevar.files import atomic_write, refuse_existing, sha256

__all__ = ["convert", "parse_scales"]

# what the published code looks for
TOKENIZER_FILE, TRANSFORMER_FILE = "vae_restorevar.ckpt", "restorevar.pth"


def convert(
    output: Path,
    tokenizer: Path | None = None,
    transformer: Path | None = None,
    model: str | None = None,
    scales: str | None = None,
    refiner_heads: int | None = None,
    overwrite: bool = False,
) -> int:
    """Convert published weights to a model folder (--tokenizer, --transformer), or a model folder back (--model).

    Args:
        output: Folder to write to: a model folder, or one for the two published files.
        tokenizer: Published tokenizer, e.g. vae_restorevar.ckpt or vae_ch160v4096z32.pth.
        transformer: Published transformer and refiner, e.g. restorevar.pth, or a training checkpoint; none makes a
            model folder with a tokenizer only, as training stage 1 does.
        model: Model folder, shipped name or hub id to write under the published names.
        scales: Sides of the token maps (or HEIGHTxWIDTH), e.g. 1,2,3,4,6,9,13,18,24,32; read from the transformer's
            file if it has them.
        refiner_heads: Attention heads of the refiner; 64 channels a head if not given.
        overwrite: Replace what the output folder holds.

    Returns:
        0.

    Raises:
        UserError: If the weights do not fit, the options contradict each other, or the output exists.
    """
    if (model is None) == (tokenizer is None):
        raise UserError(
            "expected either --tokenizer (and --transformer) to make a model folder, "
            "or --model to write published files"
        )
    if model is not None:
        given = {"--transformer": transformer, "--scales": scales, "--refiner-heads": refiner_heads}
        needless = [name for name, value in given.items() if value is not None]
        if needless:
            raise UserError(f"{needless[0]} goes with --tokenizer; a model folder knows its own sizes")
        written = _to_published(model, output, overwrite)
    else:
        assert tokenizer is not None
        written = _from_published(output, tokenizer, transformer, parse_scales(scales), refiner_heads, overwrite)
    _report(written)
    return 0


def parse_scales(text: str | None) -> list[int | tuple[int, int]] | None:
    """Scales from ``1,2,3`` or ``1,2x3,4x6``; brackets and spaces do no harm.

    Raises:
        UserError: If an entry is neither a number nor HEIGHTxWIDTH.
    """
    if text is None:
        return None
    scales: list[int | tuple[int, int]] = []
    for entry in text.strip("[]() ").split(","):
        if (match := re.fullmatch(r"\s*(\d+)(?:x(\d+))?\s*", entry)) is None:
            raise UserError(f"--scales has '{entry.strip()}'; expected sides separated by commas, e.g. 1,2,3,4,6,9,13")
        scales.append(int(match[1]) if match[2] is None else (int(match[1]), int(match[2])))
    return scales


def _from_published(
    output: Path,
    tokenizer: Path,
    transformer: Path | None,
    scales: list[int | tuple[int, int]] | None,
    refiner_heads: int | None,
    overwrite: bool,
) -> list[Path]:
    from restorevar.models.pretrained import CONFIG, WEIGHTS
    from restorevar.models.published import load_published

    refuse_existing([output / CONFIG, output / WEIGHTS], overwrite)
    load_published(tokenizer, transformer, refiner_heads, scales).save_pretrained(output)
    return [output / WEIGHTS, output / CONFIG]


def _to_published(model: str, output: Path, overwrite: bool) -> list[Path]:
    import torch

    from restorevar.models.pretrained import load
    from restorevar.models.published import to_published

    paths = [output / TOKENIZER_FILE, output / TRANSFORMER_FILE]
    refuse_existing(paths, overwrite)
    parts = to_published(load(model))
    if not parts[1] and paths[1].exists():
        raise UserError(
            f"{paths[1]} goes with another tokenizer, and {model} has no transformer; give another --output"
        )
    written = []
    for path, weights in zip(paths, parts, strict=True):
        if weights:  # a model folder of stage 1 has no transformer
            with atomic_write(path) as temporary:
                torch.save(weights, temporary)
            written.append(path)
    return written


def _report(written: list[Path]) -> None:
    for path in written:
        sys.stdout.write(f"{path}  {path.stat().st_size / 1e6:.1f} MB  sha256 {sha256(path)}\n")
