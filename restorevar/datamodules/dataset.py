"""From a record to a sample: read, resize, crop, degrade, flip."""

import functools
import hashlib
import itertools
import json
import logging
import math
import multiprocessing
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset

from restorevar.datamodules.batch import RestorationSample, to_tensor
from restorevar.datamodules.degradations import degrade
from restorevar.datamodules.kinds import CLEAN_KIND
from restorevar.datamodules.manifest import sizes_fit
from restorevar.datamodules.sampler import Draw
from restorevar.datamodules.shards import is_member, read_member
from restorevar.datamodules.sources import Record, read_depth
from restorevar.errors import UserError
from restorevar.restoration.photo import read_rgb

__all__ = ["FixedDataset", "Geometry", "Pool", "Skips", "TrainingDataset"]

logger = logging.getLogger(__name__)

Pixels = NDArray[np.uint8]
Crop = tuple[int, int, int, int]
ResizeFilter = Literal["lanczos", "area"]
ATTEMPTS = 20  # other records tried for a broken one
MOST_PIXELS = 200_000_000  # of a resized photo: those of a good camera, and no more than memory holds


class Pool(NamedTuple):
    """Records that are drawn for one kind.

    Attributes:
        kind: The kind; `clean` hands out the clean image twice.
        records: The records.
        severity: Range of the severity for photos degraded on the fly.
    """

    kind: str
    records: Sequence[Record]
    severity: tuple[float, float]


class Geometry(NamedTuple):
    """How a photo becomes a crop.

    Attributes:
        size: Height and width of the crop.
        resize_short_side: Range that the short side is resized to (Lanczos), in units of the smallest size that still
            covers the crop; drawn log-uniformly. Its upper end is lowered to the photo's own size, its lower end
            holds always. None keeps the photo's size unless it is too small for the crop.
        horizontal_flip: Mirror half of the samples.
        vertical_flip: Turn half of the samples upside down.
        resize_filter: `lanczos`, or `area`, three times as fast and a little softer; what has to be enlarged is left to
            `lanczos`.
        random_crop: Draw scale and place of training crops; False takes the middle of both.
    """

    size: tuple[int, int]
    resize_short_side: tuple[float, float] | None = (1.125, 1.125)
    horizontal_flip: bool = True
    vertical_flip: bool = False
    resize_filter: ResizeFilter = "lanczos"
    random_crop: bool = True

    def plan(self, shape: Sequence[int], generator: np.random.Generator | None) -> tuple[tuple[int, int], Crop]:
        """Size of the resized photo, and the crop (top, left, height, width) in it.

        Args:
            shape: (H, W, ...) of the photo.
            generator: Draws scale and place; None takes the middle of both.

        Raises:
            UserError: The photo would become enormous, such as one that is a single row of pixels.
        """
        generator = generator if self.random_crop else None
        height, width = self.size
        cover = max(height / shape[0], width / shape[1])
        if self.resize_short_side is None:
            scale = max(1.0, cover)
        else:
            low, high = self.resize_short_side
            high = max(low, min(high, 1 / cover))
            part = 0.5 if generator is None else generator.random()
            scale = cover * math.exp(math.log(low) + part * (math.log(high) - math.log(low)))
        resized = (max(height, round(shape[0] * scale)), max(width, round(shape[1] * scale)))
        if math.prod(resized) > MOST_PIXELS:
            raise UserError(
                f"{shape[1]} x {shape[0]} pixels would be {resized[1]} x {resized[0]} to hold a crop of"
                f" {width} x {height}; leave this photo out, or ask for smaller crops"
            )
        spare = (resized[0] - height, resized[1] - width)
        if generator is None:
            top, left = spare[0] // 2, spare[1] // 2
        else:
            top, left = (int(generator.integers(0, room + 1)) for room in spare)
        return resized, (top, left, height, width)

    def resized_crop(self, image: Pixels, size: tuple[int, int], crop: Crop) -> Pixels:
        """The crop of the resized image, without resizing what Lanczos need not see."""
        if image.shape[:2] == size or (self.resize_filter == "area" and not _enlarges(image, size)):
            return cut(resize(image, size, self.resize_filter), crop)
        top, left, height, width = crop
        vertical, horizontal = image.shape[0] / size[0], image.shape[1] / size[1]
        box = (left * horizontal, top * vertical, (left + width) * horizontal, (top + height) * vertical)
        box = (*box[:2], min(box[2], image.shape[1]), min(box[3], image.shape[0]))
        return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS, box=box))

    def flips(self, generator: np.random.Generator) -> tuple[bool, bool]:
        """Whether to mirror, and whether to turn upside down."""
        mirror, turn = generator.random(2) < 0.5
        return bool(mirror) and self.horizontal_flip, bool(turn) and self.vertical_flip


class Skips:
    """Counts samples that another was taken for, over all worker processes."""

    def __init__(self) -> None:
        self._count = multiprocessing.Value("q", 0)

    def add(self) -> None:
        """One more."""
        with self._count.get_lock():
            self._count.value += 1

    @property
    def count(self) -> int:
        """How many so far."""
        return self._count.value


class PhotoCache:
    """The photos read last, decoded; one a worker process.

    Args:
        megabytes: Most memory that they may take.
    """

    def __init__(self, megabytes: int) -> None:
        self._limit, self._taken = megabytes * 1_000_000, 0
        self._photos: OrderedDict[str, Pixels] = OrderedDict()

    def read(self, reference: str) -> Pixels:
        """`read_image`, from memory if it is there, and then not to be written to."""
        photo = self._photos.get(reference)
        if photo is not None:
            self._photos.move_to_end(reference)
            return photo
        photo = read_image(reference)
        if photo.nbytes <= self._limit:
            photo.setflags(write=False)  # a degradation of the user's own that writes to it would change later samples
            self._photos[reference] = photo
            self._taken += photo.nbytes
            while self._taken > self._limit:
                self._taken -= self._photos.popitem(last=False)[1].nbytes
        return photo


class TrainingDataset(Dataset[RestorationSample]):
    """Makes the sample of a draw; all randomness comes from (seed, epoch, position).

    Args:
        pools: What draws refer to.
        geometry: Crop, scale and flips.
        seed: Fixes everything.
        skips: Counts samples of broken files, which are replaced by others of their pool; None raises instead.
        cache_megabytes: Memory of each worker for decoded photos.
        permute_colors: Exchange the colour channels at random.
        jpeg_share: Share of degraded images that went through JPEG, in [0, 1].
        jpeg_quality: Least and greatest quality of these, 1 to 100.
        with_keys: Hand out digests of the clean images, for crops that are the same in every epoch.
    """

    def __init__(
        self,
        pools: Sequence[Pool],
        geometry: Geometry,
        seed: int,
        skips: Skips | None = None,
        cache_megabytes: int = 0,
        permute_colors: bool = False,
        jpeg_share: float = 0.0,
        jpeg_quality: tuple[int, int] = (50, 95),
        with_keys: bool = False,
    ) -> None:
        self.pools, self.geometry, self.seed, self.skips = list(pools), geometry, seed, skips
        self.permute_colors, self.with_keys = permute_colors, with_keys
        self.jpeg_share, self.jpeg_quality = jpeg_share, jpeg_quality
        self.cache = PhotoCache(cache_megabytes)

    def __len__(self) -> int:
        return sum(len(pool.records) for pool in self.pools)

    def __getitem__(self, draw: Draw) -> RestorationSample:
        pool = self.pools[draw.pool]

        def attempts() -> Iterator[tuple[Record, Callable[[], RestorationSample]]]:
            record = pool.records[draw.record]
            for attempt in range(ATTEMPTS):
                generator = np.random.default_rng([self.seed, draw.epoch, draw.position, attempt])
                yield record, functools.partial(self._sample, pool, record, generator)
                record = pool.records[int(generator.integers(len(pool.records)))]

        return _first_whole(attempts(), self.skips)

    def _sample(self, pool: Pool, record: Record, generator: np.random.Generator) -> RestorationSample:
        low, high = pool.severity
        severity = low + (high - low) * float(generator.random())
        seed = int(generator.integers(2**31))
        mirror, turn = self.geometry.flips(generator)
        if pool.kind == CLEAN_KIND:
            photo = self.cache.read(record.clean or record.path)
            resized, crop = self.geometry.plan(photo.shape, generator)
            clean = self.geometry.resized_crop(photo, resized, crop)
            clean = degraded = change_gamma(clean, record.gamma, generator)
        elif record.made:
            photo = self.cache.read(record.path)
            resized, crop = self.geometry.plan(photo.shape, generator)
            photo = change_gamma(resize(photo, resized, self.geometry.resize_filter), record.gamma, generator)
            depth = read_depth(record.depth, resized) if record.depth is not None else None
            degraded, _ = degrade(photo, pool.kind, severity, seed, crop=crop, depth=depth)
            clean = cut(photo, crop)
        else:
            degraded, clean = read_pair(record, self.cache.read)
            resized, crop = self.geometry.plan(clean.shape, generator)
            degraded, clean = (self.geometry.resized_crop(image, resized, crop) for image in (degraded, clean))
        if mirror:
            degraded, clean = degraded[:, ::-1], clean[:, ::-1]
        if turn:
            degraded, clean = degraded[::-1], clean[::-1]
        if self.permute_colors:
            order = generator.permutation(3)
            degraded, clean = degraded[..., order], clean[..., order]
        if self.jpeg_share and generator.random() < self.jpeg_share:
            low, high = self.jpeg_quality
            degraded = through_jpeg(degraded, int(generator.integers(low, high + 1)))
        sample: RestorationSample = {
            "degraded": to_tensor(degraded),
            "clean": to_tensor(clean),
            "kind": short_kind(pool.kind),
            "dataset": record.dataset,
            "path": record.path,
        }
        if self.with_keys:
            sample["clean_key"] = hashlib.sha256(np.ascontiguousarray(clean).data).hexdigest()
        return sample


class FixedDataset(Dataset[RestorationSample]):
    """Samples that are the same in every epoch, on every machine.

    Args:
        records: One a sample; each has a kind.
        geometry: A crop from the middle; None keeps the photo's own size.
        with_clean: Hand out clean images where there are any.
        skips: Counts samples of broken files, which are replaced by the next; None raises instead.
    """

    def __init__(
        self,
        records: Sequence[Record],
        geometry: Geometry | None,
        with_clean: bool = True,
        skips: Skips | None = None,
    ) -> None:
        self.records, self.geometry, self.with_clean, self.skips = list(records), geometry, with_clean, skips

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> RestorationSample:
        first = self.records[index]  # ends iteration where there is none
        following = (self.records[(index + attempt) % len(self.records)] for attempt in range(1, ATTEMPTS))
        records = itertools.chain([first], following)
        return _first_whole(((record, functools.partial(self._sample, record)) for record in records), self.skips)

    def _sample(self, record: Record) -> RestorationSample:
        kind = record.kind or CLEAN_KIND
        parameters: dict[str, Any] = {}
        severity = math.nan if record.severity is None else record.severity
        clean: Pixels | None = None
        if record.made:
            photo = read_image(record.path)
            crop = (0, 0, *photo.shape[:2])
            if self.geometry is not None:
                resized, crop = self.geometry.plan(photo.shape, None)
                photo = resize(photo, resized, self.geometry.resize_filter)
            clean = cut(photo, crop)
            if kind == CLEAN_KIND:
                degraded, severity = clean, 0.0
            else:
                depth = read_depth(record.depth, photo.shape[:2]) if record.depth is not None else None
                degraded, parameters = degrade(photo, kind, severity, record.seed, crop=crop, depth=depth)
        elif record.clean is not None:
            degraded, clean = (self._cropped(image) for image in read_pair(record))
        else:
            degraded = self._cropped(read_image(record.path))
        sample: RestorationSample = {
            "degraded": to_tensor(degraded),
            "kind": short_kind(kind),
            "dataset": record.dataset,
            "path": record.path,
            "severity": severity,
            "parameters": _json(kind, parameters),
        }
        if clean is not None and self.with_clean:
            sample["clean"] = to_tensor(clean)
        return sample

    def _cropped(self, image: Pixels) -> Pixels:
        if self.geometry is None:
            return image
        return self.geometry.resized_crop(image, *self.geometry.plan(image.shape, None))


def _first_whole(
    attempts: Iterable[tuple[Record, Callable[[], RestorationSample]]], skips: Skips | None
) -> RestorationSample:
    """The first of several samples that can be made.

    Args:
        attempts: Up to `ATTEMPTS` records and what makes their samples; the next is asked for when one has failed.
        skips: Counts samples that another record was taken for; None takes none.

    Raises:
        UserError: What is wrong with the last record tried.
    """
    for number, (record, make) in enumerate(attempts, 1):
        try:
            sample = make()
        except UserError as error:
            located = _located(error, record)
            if skips is None or number == ATTEMPTS:
                raise located from None
            _warn_once(f"skipped: {located}")
        else:
            if skips is not None and number > 1:
                skips.add()
            return sample
    raise AssertionError("unreachable")


def _located(error: UserError, record: Record) -> UserError:
    """The error with the photo's path, and the manifest's file and row if it has one."""
    message = str(error) if record.path in str(error) or str(record.clean) in str(error) else f"{record.path}: {error}"
    return UserError(f"{record.origin}: {message}" if record.origin is not None else message)


def _json(kind: str, parameters: dict[str, Any]) -> str:
    try:
        return json.dumps(parameters, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"degradation {kind!r} returned parameters that are not fit for JSON ({error}); expected plain numbers and"
            " texts, such as float(value)"
        ) from None


def short_kind(kind: str) -> str:
    """A kind's name; the last part of an import path."""
    return kind.rpartition(".")[2]


def read_image(reference: str) -> Pixels:
    """(H, W, 3) uint8 RGB of a file, or of an image inside a shard."""
    return read_member(reference) if is_member(reference) else read_rgb(reference)


def read_pair(record: Record, read: Callable[[str], Pixels] = read_image) -> tuple[Pixels, Pixels]:
    """Degraded and clean image of a record.

    Args:
        record: A pair.
        read: Reads an image.

    Raises:
        UserError: One cannot be read, or their sizes differ.
    """
    assert record.clean is not None
    degraded, clean = read(record.path), read(record.clean)
    if not sizes_fit(degraded.shape, clean.shape, record.center_crop):
        raise UserError(
            f"{record.path}: {degraded.shape[1]} x {degraded.shape[0]} pixels, but its clean image {record.clean} has"
            f" {clean.shape[1]} x {clean.shape[0]}; expected equal sizes"
        )
    border = (clean.shape[0] - degraded.shape[0]) // 2
    return degraded, cut(clean, (border, border, *degraded.shape[:2]))


def resize(image: Pixels, size: tuple[int, int], resize_filter: ResizeFilter = "lanczos") -> Pixels:
    """To (height, width), antialiased; enlarged on either axis with Lanczos always, as `area` would repeat pixels."""
    if image.shape[:2] == size:
        return image
    if resize_filter == "area" and not _enlarges(image, size):
        return np.asarray(cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_AREA), np.uint8)
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.LANCZOS))


def _enlarges(image: Pixels, size: tuple[int, int]) -> bool:
    return size[0] > image.shape[0] or size[1] > image.shape[1]


def through_jpeg(image: Pixels, quality: int) -> Pixels:
    """(H, W, 3) uint8 RGB as a JPEG file of a quality from 1 to 100 would give it back."""
    _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.cvtColor(np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR)), cv2.COLOR_BGR2RGB), np.uint8)


def change_gamma(image: Pixels, gamma: tuple[float, float], generator: np.random.Generator) -> Pixels:
    """(H, W, 3) uint8, its values in [0, 1] raised to a power drawn log-uniformly; (1, 1) draws nothing."""
    low, high = gamma
    if low == high == 1:
        return image
    exponent = low * (high / low) ** generator.random()
    table = np.rint(255 * (np.arange(256) / 255) ** exponent).astype(np.uint8)
    return np.asarray(cv2.LUT(image, table))


def cut(image: Pixels, crop: Crop) -> Pixels:
    """The crop (top, left, height, width); a view."""
    top, left, height, width = crop
    return image[top : top + height, left : left + width]


@functools.cache
def _warn_once(message: str) -> None:
    logger.warning(message)
