"""How long degradations take on one thread, with Albumentations' transforms beside them.

    python benchmarks/degradations.py [--photos FOLDER] [--repeats 3]

Prints milliseconds of processor time a photo of 512 x 512 pixels for each kind, and milliseconds a 256 px training
crop, averaged over all kinds and severities, with JPEG decoding included. Photos are those that come with scikit-image,
resized to a short side of 512 and stored as JPEG in memory, unless a folder of JPEG files is given; those are taken as
they are.
"""

import argparse
import importlib.util
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from restorevar.datamodules.degradations import KINDS, degrade
from restorevar.memory import keep_freed_memory

OWN = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png")
LIMITS = {"haze": 40, "rain": 40, "snow": 40, "low_light": 80, "motion_blur": 40, "mixed": 80}
PEERS = {"haze": "RandomFog", "rain": "RandomRain", "snow": "RandomSnow", "motion_blur": "MotionBlur"}
CROP, CROP_LIMIT = 256, 8
SEVERITIES = np.linspace(0.1, 1, 10)


def encoded_photos(folder: Path | None) -> list[np.ndarray]:
    """JPEG files in memory."""
    if folder is not None:
        files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
        if not files:
            raise SystemExit(f"error: no JPEG files in {folder}")
        return [np.frombuffer(path.read_bytes(), np.uint8) for path in files[:200]]
    data = Path(str(importlib.util.find_spec("skimage").origin)).parent / "data"
    encoded = []
    for name in OWN:
        photo = cv2.imread(str(data / name))
        scale = 512 / min(photo.shape[:2])
        size = max(512, round(photo.shape[1] * scale)), max(512, round(photo.shape[0] * scale))
        encoded.append(cv2.imencode(".jpg", cv2.resize(photo, size), [cv2.IMWRITE_JPEG_QUALITY, 90])[1])
    return encoded


def decode(data: np.ndarray) -> np.ndarray:
    """uint8 RGB."""
    return cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def milliseconds(call: Callable[[], object], repeats: int) -> float:
    """Processor time of the quickest of some calls: other programs on the machine only ever add."""
    times = []
    for _ in range(repeats):
        start = time.thread_time()
        call()
        times.append(time.thread_time() - start)
    return 1000 * min(times)


def peer(name: str) -> Callable[[np.ndarray], np.ndarray]:
    """An Albumentations transform with its default settings."""
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    import albumentations

    transform = albumentations.Compose([getattr(albumentations, name)(p=1)], seed=0)
    return lambda photo: transform(image=photo)["image"]


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="folder of JPEG files; those of scikit-image if not given")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--plain-memory", action="store_true", help="without keep_freed_memory, which degrade uses")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    if not arguments.plain_memory:
        keep_freed_memory()
    encoded = encoded_photos(arguments.photos)
    photos = [np.ascontiguousarray(cv2.resize(decode(data), (512, 512))) for data in encoded[:5]]
    print(f"{platform.processor() or platform.machine()}, OpenCV {cv2.__version__}, one thread\n")

    print("| kind | mean ms, 512 x 512 | slowest | limit | Albumentations, mean ms |")
    print("|---|---|---|---|---|")
    for kind in KINDS:
        times = [
            milliseconds(lambda p=photo, s=severity, n=number, k=kind: degrade(p, k, s, n), arguments.repeats)
            for number, photo in enumerate(photos)
            for severity in SEVERITIES
        ]
        beside = ""
        if kind in PEERS:
            call = peer(PEERS[kind])
            theirs = [milliseconds(lambda p=photo, c=call: c(p), 10 * arguments.repeats) for photo in photos]
            beside = f"{PEERS[kind]} {np.mean(theirs):.1f}"
        print(f"| {kind} | {np.mean(times):.1f} | {max(times):.1f} | {LIMITS[kind]} | {beside} |")

    random = np.random.Generator(np.random.PCG64(0))
    decoding, crops = [], {kind: [] for kind in KINDS}
    for number in range(len(KINDS) * 60):
        data, kind = encoded[number % len(encoded)], KINDS[number % len(KINDS)]
        photo = decode(data)
        if min(photo.shape[:2]) < CROP:
            scale = CROP / min(photo.shape[:2])
            photo = cv2.resize(photo, None, fx=scale * 1.001, fy=scale * 1.001)
        top = int(random.integers(photo.shape[0] - CROP + 1))
        left = int(random.integers(photo.shape[1] - CROP + 1))
        severity = random.random()
        decoding.append(milliseconds(lambda d=data: decode(d), arguments.repeats))
        crops[kind].append(
            milliseconds(
                lambda p=photo, k=kind, s=severity, n=number, c=(top, left, CROP, CROP): degrade(p, k, s, n, crop=c),
                arguments.repeats,
            )
        )
    means = {kind: float(np.mean(times)) for kind, times in crops.items()}
    print(f"\n| {CROP} px crop | " + " | ".join(KINDS) + " | mean | decoding | together | limit |")
    print("|---" * (len(KINDS) + 5) + "|")
    mean, decode_mean = float(np.mean(list(means.values()))), float(np.mean(decoding))
    print(
        "| ms | "
        + " | ".join(f"{means[kind]:.1f}" for kind in KINDS)
        + f" | {mean:.1f} | {decode_mean:.1f} | {mean + decode_mean:.1f} | {CROP_LIMIT} |"
    )


if __name__ == "__main__":
    main()
