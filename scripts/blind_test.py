"""Can people tell our degradations from real ones? Unlabelled sheets, a hidden key, and the score.

    python scripts/blind_test.py make REAL CLEAN OUTPUT [--crops 24] [--seed 0]
    python scripts/blind_test.py score OUTPUT ANSWERS

REAL holds one folder of real degraded photos a kind (haze, rain, snow, low_light or lowlight, motion_blur or blur,
mixed: two or more of these in one photo, such as rain at night). A kind without a folder is left out.
CLEAN holds good photos (searched with sub-folders); a sub-folder named like a kind is used for that kind alone, so that
rain need not fall on a living room. Half of the crops are real. As many clean photos are used as there are real ones,
and each gives as many crops, from other corners. Ours go through what the real ones went through: they have a real
photo's size, are saved as JPEG after the degradation, then resized; all crops have the same size.

OUTPUT/sheets/KIND_1.png ... hold 12 numbered crops each; OUTPUT/key.json says which are ours: not to be opened before
the answers are written; OUTPUT/run.json holds what the sheets were made from. ANSWERS is a JSON file: for each kind the
numbers taken for synthetic, with the reason:
{"haze": {"3": "flat veil", "7": ""}, "rain": {}}.
"""

import argparse
import json
import math
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

import restorevar
from restorevar.datamodules.dataset import through_jpeg
from restorevar.datamodules.degradations import degrade
from restorevar.datamodules.sources import list_photos
from restorevar.errors import UserError
from restorevar.restoration.photo import read_rgb

# severities that occur outdoors: rain above these is Rain100H's
SEVERITIES = {
    "haze": (0.2, 0.9),
    "rain": (0.08, 0.3),
    "snow": (0.15, 0.7),
    "low_light": (0.2, 0.8),
    "motion_blur": (0.25, 0.9),
    "mixed": (0.2, 0.7),
}
FOLDERS = {"lowlight": "low_light", "blur": "motion_blur"}
SHORT_SIDE, CROP, COLUMNS, ROWS, GAP = 480, 240, 4, 3, 26


def resized(photo: np.ndarray, short_side: int) -> np.ndarray:
    """The photo with a short side of so many pixels."""
    scale = short_side / min(photo.shape[:2])
    size = max(short_side, round(photo.shape[1] * scale)), max(short_side, round(photo.shape[0] * scale))
    return cv2.resize(photo, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)


def cropped(photo: np.ndarray, corner: int, random: np.random.Generator) -> np.ndarray:
    """A crop of the resized photo near one of its corners (0 to 3), saved once more."""
    small = resized(photo, SHORT_SIDE)
    spare = [max((size - 2 * CROP) // 2, 0) for size in small.shape[:2]]
    inset = [int(random.integers(most + 1)) for most in spare]
    top, left = (
        size - CROP - near if far else near
        for size, near, far in zip(small.shape[:2], inset, divmod(corner, 2), strict=True)
    )
    return through_jpeg(small[top : top + CROP, left : left + CROP], 90)


def sheet(crops: list[np.ndarray], first: int) -> Image.Image:
    """Numbered crops in a grid."""
    picture = Image.new("RGB", (COLUMNS * CROP, ROWS * (CROP + GAP)), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=18)
    for index, crop in enumerate(crops):
        left, top = index % COLUMNS * CROP, index // COLUMNS * (CROP + GAP)
        draw.text((left + CROP // 2, top + GAP // 2), str(first + index), fill="black", font=font, anchor="mm")
        picture.paste(Image.fromarray(crop), (left, top + GAP))
    return picture


def make(real: Path, clean: Path, output: Path, count: int, seed: int) -> None:
    """Writes sheets, key, and how they were made.

    Raises:
        UserError: If a folder holds no photos, or one cannot be read.
    """
    key: dict[str, dict[str, dict[str, object]]] = {}
    for place in (real, clean):
        if not place.is_dir():
            raise UserError(f"{place}: no such folder; expected one of photos")
    folders = {FOLDERS.get(path.name, path.name): path for path in sorted(real.iterdir()) if path.is_dir()}
    folders = {kind: path for kind, path in folders.items() if kind in SEVERITIES}
    for folder in folders.values():  # before anything is written
        list_photos(folder)
    (output / "sheets").mkdir(parents=True, exist_ok=True)
    for kind, folder in folders.items():
        random = np.random.Generator(np.random.PCG64([seed, list(SEVERITIES).index(kind)]))
        own = clean / folder.name if (clean / folder.name).is_dir() else clean
        sources, good = list_photos(folder), list_photos(own)
        # scenes come back as often on either side, so that seeing one twice tells nothing
        good = [good[index] for index in random.permutation(len(good))[: len(sources)]]
        corners = [random.permutation(4) for _ in range(2 * len(sources))]
        drawn = [(float(random.uniform(*SEVERITIES[kind])), int(random.integers(2**31))) for _ in sources]
        entries = []
        for number in range(count):
            turn, which = divmod(number // 2, len(sources))
            corner = int(corners[2 * which + number % 2][turn % 4])
            if number % 2:
                source = sources[which]
                entries.append((cropped(read_rgb(source), corner, random), {"synthetic": False, "photo": source.name}))
                continue
            source = good[which % len(good)]
            severity, made = drawn[which]
            photo = resized(through_jpeg(read_rgb(source), 92), min(read_rgb(sources[which]).shape[:2]))
            image, _ = degrade(photo, kind, severity, made)
            image = through_jpeg(image, int(random.integers(80, 93)))
            about = {"synthetic": True, "photo": source.name, "severity": round(severity, 3), "seed": made}
            entries.append((cropped(image, corner, random), about))
        entries = [entries[index] for index in random.permutation(len(entries))]
        key[kind] = {str(number + 1): about for number, (_, about) in enumerate(entries)}
        size = COLUMNS * ROWS
        for part in range(math.ceil(len(entries) / size)):
            crops = [crop for crop, _ in entries[part * size : (part + 1) * size]]
            sheet(crops, part * size + 1).save(output / "sheets" / f"{kind}_{part + 1}.png")
    run = {"real": str(real), "clean": str(clean), "crops": count, "seed": seed, "severities": SEVERITIES}
    versions = {"restorevar": restorevar.__version__, "numpy": np.__version__, "opencv": cv2.__version__}
    (output / "run.json").write_text(json.dumps(run | versions) + "\n")
    (output / "key.json").write_text(json.dumps(key, indent=1) + "\n")


def score(output: Path, answers: Path) -> None:
    """Prints the share named rightly for each kind (half is chance), and how the sheets were made."""
    try:
        key, named = (json.loads(path.read_text()) for path in (output / "key.json", answers))
    except (OSError, ValueError) as error:
        raise UserError(f"answers cannot be compared with the key: {error}") from None
    print("| kind | crops | named rightly | ours taken for real | real taken for ours |\n|---|---|---|---|---|")
    for kind, entries in key.items():
        if kind not in named:
            continue
        said = set(named[kind])
        wrong = [about["synthetic"] for number, about in entries.items() if about["synthetic"] != (number in said)]
        right = 100 * (1 - len(wrong) / len(entries))
        print(f"| {kind} | {len(entries)} | {right:.0f} % | {sum(wrong)} | {len(wrong) - sum(wrong)} |")
        for number in sorted(said, key=int):
            if named[kind][number]:
                truth = "ours" if entries[number]["synthetic"] else "real"
                print(f"<!-- {kind} {number} ({truth}): {named[kind][number]} -->")
    print(f"<!-- made by `scripts/blind_test.py make`: {(output / 'run.json').read_text().strip()} -->")


def main() -> None:
    """Runs one of the two commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("make", help="write the sheets and the key")
    making.add_argument("real", type=Path)
    making.add_argument("clean", type=Path)
    making.add_argument("output", type=Path)
    making.add_argument("--crops", type=int, default=24, help="of each kind; half of them real")
    making.add_argument("--seed", type=int, default=0)
    scoring = commands.add_parser("score", help="compare answers with the key")
    scoring.add_argument("output", type=Path)
    scoring.add_argument("answers", type=Path)
    arguments = parser.parse_args()
    try:
        if arguments.command == "make":
            make(arguments.real, arguments.clean, arguments.output, arguments.crops, arguments.seed)
        else:
            score(arguments.output, arguments.answers)
    except UserError as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
