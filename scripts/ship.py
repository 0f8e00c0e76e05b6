"""Puts a trained model into the package: bfloat16 weights, their licence, the card.

python scripts/ship.py runs/nano/gate/model restorevar-nano

Writes ``restorevar/pretrained/<name>/``. A card that is there already (written by hand) stays, as do other files.
"""

import argparse
import dataclasses
import shutil
import tempfile
from pathlib import Path

import torch

from restorevar.errors import UserError
from restorevar.models import RestoreVAR
from restorevar.models.pretrained import CARD, GATE, weights_digest

ROOT = Path(__file__).parents[1]
LICENSE = "LICENSE-WEIGHTS"
LIMIT_MB = 30.0


def ship(trained: Path, target: Path, scales: list[int] | None = None) -> str:
    """Writes the folder of a shipped model and returns a line about it.

    Args:
        trained: Model folder of the last stage.
        target: Folder to write.
        scales: Schedule that the shipped model works at; None keeps the trained model's.

    Raises:
        UserError: If the weights are larger than the limit; nothing has been written then.
    """
    model = RestoreVAR.from_pretrained(trained)
    model.config = dataclasses.replace(model.config, license=LICENSE)
    if scales is not None:
        model.set_scales(scales)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".ship.") as name:
        folder = Path(name)
        shutil.copyfile(trained / CARD, folder / CARD)
        model.save_pretrained(folder, dtype=torch.bfloat16)
        shutil.copyfile(ROOT / LICENSE, folder / LICENSE)
        megabytes = sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 1e6
        if megabytes > LIMIT_MB:
            raise UserError(
                f"the weights take {megabytes:.1f} MB; expected at most {LIMIT_MB:.0f}: train a smaller model"
            )
        target.mkdir(exist_ok=True)
        if (target / CARD).exists():
            (folder / CARD).unlink()
        if not (folder / GATE).exists():  # the model shipped before may have had one
            (target / GATE).unlink(missing_ok=True)
        for file in sorted(folder.iterdir(), key=lambda file: file.suffix == ".json"):  # config.json last
            file.replace(target / file.name)
    height, width = model.image_size
    return f"{target}: {megabytes:.1f} MB, {width} x {height} px, {weights_digest(target)}"


def main() -> None:
    """Command line of this script."""
    parser = argparse.ArgumentParser(description="Puts a trained model into the package.")
    parser.add_argument("trained", type=Path, help="model folder of the last stage")
    parser.add_argument("name", help="name for from_pretrained")
    parser.add_argument("--scales", type=int, nargs="+", help="schedule of the shipped model")
    arguments = parser.parse_args()
    try:
        print(ship(arguments.trained, ROOT / "restorevar" / "pretrained" / arguments.name, arguments.scales))
    except UserError as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
