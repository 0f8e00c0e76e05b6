"""Where samples come from: typed records that a configuration file can list, each looked up only when asked."""

import fnmatch
import importlib.util
import itertools
import os
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from restorevar.datamodules.degradations import get_degradation
from restorevar.datamodules.kinds import CLEAN_KIND, KINDS, PAIRED_KINDS
from restorevar.datamodules.layouts import find_layout, is_held_out, match_files
from restorevar.datamodules.manifest import located, read_manifest
from restorevar.datamodules.shards import read_index
from restorevar.errors import UserError
from restorevar.restoration.photo import SUFFIXES

__all__ = [
    "CleanPhotos",
    "Collection",
    "FixedDegradations",
    "Manifest",
    "PairedFolders",
    "Photos",
    "PublicSet",
    "Record",
    "Shards",
    "Source",
    "check_kind",
    "depth_maps",
    "list_photos",
    "read_depth",
    "resolve",
]


T = TypeVar("T")


def _equal_weights() -> dict[str, float]:
    return dict.fromkeys(KINDS, 1.0)


@dataclass(frozen=True, slots=True)
class Record:
    """One sample before it is read.

    Attributes:
        path: File of the degraded image, or of the photo to degrade.
        clean: File of the clean image; None for a photo to degrade, and where there is no ground truth.
        kind: Kind of degradation; None for photos that are degraded as the sampler asks.
        dataset: Name of the set.
        made: Whether `path` is a clean photo to degrade.
        severity: Severity in [0, 1] of a fixed made degradation.
        seed: Seed of a fixed made degradation.
        center_crop: The clean image has a border that the degraded one lacks.
        depth: File of the photo's depth map, for the kinds that depend on it.
        gamma: Range of the exponent that the clean photo's values are raised to; (1, 1) leaves them as they are.
        origin: Where a manifest lists it (file and row), for errors.
    """

    path: str
    clean: str | None
    kind: str | None
    dataset: str
    made: bool = False
    severity: float | None = None
    seed: int = 0
    center_crop: bool = False
    depth: str | None = None
    gamma: tuple[float, float] = (1.0, 1.0)
    origin: str | None = None


@dataclass(frozen=True)
class Collection:
    """What a source holds.

    Attributes:
        records: Its records.
        kinds: Weight of each task that it serves. For records without a kind: every record serves every task.
        severity: Range of the severity of records without a kind.
        repeat: How often each record counts in an epoch.
        testing: Why the records are not for training, if they are not.
    """

    records: list[Record]
    kinds: Mapping[str, float]
    severity: tuple[float, float] = (0.0, 1.0)
    repeat: int = 1
    testing: str | None = None


class Source(ABC):
    """A set of samples. Nothing is looked up before `collect`."""

    @abstractmethod
    def collect(self, root: Path) -> Collection:
        """Finds the files.

        Args:
            root: Folder that relative paths start from.

        Returns:
            What was found, in a fixed order.

        Raises:
            UserError: A folder or file is missing, or empty, or an option makes no sense.
        """


@dataclass
class CleanPhotos(Source):
    """Good photos, degraded on the fly.

    Args:
        folders: Folders of photos, searched with their sub-folders, or single files.
        degradations: Kinds and their weights. In an epoch each task (kind) is drawn in proportion to its weight.
        severity: Lowest and highest severity, both in [0, 1]; drawn uniformly.
        repeat: How often each photo counts in an epoch.
        include: File name patterns to take, such as `astronaut.png` or `*.jpg`.
        limit: Take the first so many photos only.
        dataset: Name of the set in batches; the folder's name if not given.
        depth: Folder of depth maps with the photos' names: images of 8 or 16 bits or .npy, larger is farther. They lie
            in the same sub-folders as the photos, or anywhere if no name comes twice. Photos without one have their
            depth estimated.
        gamma: Lowest and highest exponent, drawn log-uniformly, that a training photo's values in [0, 1] are raised to
            before it is degraded; above 1 darkens. Photos that are meant to be dark are rare, and without some a model
            takes all darkness for a fault. It applies to every kind of the source, so make it a source of its own
            without `low_light`, whose darkness is to be undone.
    """

    folders: list[str]
    degradations: dict[str, float] = field(default_factory=_equal_weights)
    severity: tuple[float, float] = (0.0, 1.0)
    repeat: int = 1
    include: list[str] = field(default_factory=lambda: ["*"])
    limit: int | None = None
    dataset: str | None = None
    depth: str | None = None
    gamma: tuple[float, float] = (1.0, 1.0)

    def collect(self, root: Path) -> Collection:
        """See `Source.collect`."""
        weights, gamma = check_made(self.degradations), check_gamma(self.gamma)
        photos = _photos_of(self.folders, root, self.include, self.limit)
        maps = depth_maps(photos, resolve(self.depth, root)) if self.depth is not None else {}
        records = [
            Record(str(path), None, None, self.dataset or name, made=True, depth=maps.get(path), gamma=gamma)
            for path, name, _ in photos
        ]
        return Collection(records, weights, check_severity(self.severity), check_repeat(self.repeat))


@dataclass
class PairedFolders(Source):
    """Two folders whose files have the same names, endings aside.

    Args:
        degraded: Folder of degraded images.
        clean: Folder of clean images.
        kind: Kind of degradation.
        weight: Weight of the kind as a task.
        repeat: How often each pair counts in an epoch.
        limit: Take the first so many pairs only.
        dataset: Name of the set in batches; the degraded folder's name if not given.
    """

    degraded: str
    clean: str
    kind: str = "other"
    weight: float = 1.0
    repeat: int = 1
    limit: int | None = None
    dataset: str | None = None

    def collect(self, root: Path) -> Collection:
        """See `Source.collect`."""
        check_kind(self.kind)
        degraded_folder, clean_folder = resolve(self.degraded, root), resolve(self.clean, root)
        for folder in (degraded_folder, clean_folder):
            if os.path.isfile(folder):
                raise UserError(f"{folder}: a file; expected a folder of images, give the one that it lies in")
        partners: dict[Path, list[Path]] = {}
        for path in list_photos(clean_folder):
            partners.setdefault(path.relative_to(clean_folder).with_suffix(""), []).append(path)
        name = self.dataset or self._name(degraded_folder)
        records, missing = [], []
        for path in limited(list_photos(degraded_folder), self.limit):
            found = partners.get(path.relative_to(degraded_folder).with_suffix(""), [])
            if len(found) > 1:  # a.png and a.jpg are two photos, each with a partner of its own
                found = [partner for partner in found if partner.suffix.lower() == path.suffix.lower()] or found
            if len(found) > 1:
                raise UserError(f"{path}: found two clean images, {found[0]} and {found[1]}; keep one of them")
            if found:
                records.append(Record(str(path), str(found[0]), self.kind, name))
            else:
                missing.append(path)
        if missing:
            raise UserError(
                f"{missing[0]}: no file of that name in {clean_folder} ({len(missing)} such); give each degraded image"
                " a clean one of the same name, or build a manifest with `restorevar manifest`"
            )
        return Collection(records, check_weights({self.kind: self.weight}), repeat=check_repeat(self.repeat))

    @staticmethod
    def _name(folder: Path) -> str:
        generic = {"degraded", "input", "lq", "low", "train", "test", "hazy", "rain", "blur"}
        return folder.parent.name if folder.name.lower() in generic and folder.parent.name else folder.name


@dataclass
class Manifest(Source):
    """A list of pairs in a JSON or CSV file, such as `restorevar manifest` writes.

    Args:
        path: The file.
        root: Folder that its relative paths start from; the file's own folder if not given.
        kinds: Take these kinds only.
        datasets: Take these sets only.
        weight: Weight of each of its kinds as a task.
        repeat: How often each pair counts in an epoch.
        limit: Take the first so many pairs only.
    """

    path: str
    root: str | None = None
    kinds: list[str] | None = None
    datasets: list[str] | None = None
    weight: float = 1.0
    repeat: int = 1
    limit: int | None = None

    def collect(self, root: Path) -> Collection:
        """See `Source.collect`."""
        for kind in self.kinds or ():
            check_kind(kind)
        path = resolve(self.path, root)
        base = resolve(self.root, root) if self.root is not None else path.parent
        rows = read_manifest(path)
        there = {row.dataset for row in rows}
        for name in self.datasets or ():
            if name not in there:
                raise UserError(f"{path}: no pair of data set '{name}'; it has: {', '.join(sorted(there))}")
        records = [
            Record(
                str(located(base, row.image_path)),
                str(located(base, row.target_path)) if row.target_path else None,
                row.kind,
                row.dataset,
                center_crop=row.center_crop,
                origin=f"{path}, row {number}",
            )
            for number, row in enumerate(rows, 1)
            if (self.kinds is None or row.kind in self.kinds)
            and (self.datasets is None or row.dataset in self.datasets)
        ]
        held_out = sorted({record.dataset for record in records if is_held_out(record.dataset)})
        testing = f"{path} lists pairs of {held_out[0]}, a test set" if held_out else None
        return _pairs(path, records, self.weight, self.repeat, self.limit, testing)


@dataclass
class PublicSet(Source):
    """A public set as it lies on disk after unpacking; `restorevar manifest layouts` lists those that are known.

    Args:
        layout: Name of the layout, such as `gopro_train`.
        folder: The set's folder, or any folder above it.
        kinds: Take these kinds only.
        weight: Weight of each of its kinds as a task.
        repeat: How often each pair counts in an epoch.
        limit: Take the first so many pairs only.
    """

    layout: str
    folder: str
    kinds: list[str] | None = None
    weight: float = 1.0
    repeat: int = 1
    limit: int | None = None

    def collect(self, root: Path) -> Collection:
        """See `Source.collect`."""
        layout = find_layout(self.layout)
        for kind in self.kinds or ():
            check_kind(kind)
        folder = resolve(self.folder, root)
        matches = match_files(layout, list_photos(Path(os.path.abspath(folder))))
        if not matches:
            raise UserError(f"{folder}: no file as in {self.layout}; expected .../{' or .../'.join(layout.degraded)}")
        alone = [match for match in matches if match.fault]
        if alone:
            raise UserError(
                f"{alone[0].degraded}: {alone[0].fault} ({len(alone)} such). `restorevar manifest build` leaves"
                " them out"
            )
        records = [
            Record(
                str(match.degraded),
                str(match.clean) if match.clean is not None else None,
                match.kind,
                layout.dataset,
                center_crop=layout.center_crop,
            )
            for match in matches
            if self.kinds is None or match.kind in self.kinds
        ]
        testing = None if layout.split == "train" else f"{self.layout} is a {layout.split} set"
        return _pairs(folder, records, self.weight, self.repeat, self.limit, testing)


@dataclass
class Shards(Source):
    """Tar files with an index, as `restorevar manifest pack` writes them.

    Args:
        folder: Folder of the shards.
        degradations: For shards of clean photos: kinds and their weights, as in `CleanPhotos`; all if not given.
        severity: For shards of clean photos: lowest and highest severity; 0 to 1 if not given.
        kinds: For shards of pairs: take these kinds only.
        weight: For shards of pairs: weight of each kind as a task; 1 if not given.
        repeat: How often each sample counts in an epoch.
        limit: Take the first so many samples only.
    """

    folder: str
    degradations: dict[str, float] | None = None
    severity: tuple[float, float] | None = None
    kinds: list[str] | None = None
    weight: float | None = None
    repeat: int = 1
    limit: int | None = None

    def collect(self, root: Path) -> Collection:
        """See `Source.collect`."""
        for kind in self.kinds or ():
            check_kind(kind)
        folder = resolve(self.folder, root)
        pairs, photos = [], []
        for degraded, clean, fields in read_index(folder):
            dataset, kind = fields.get("dataset", folder.name), fields.get("degradation", "other")
            check_kind(kind)
            if degraded is None:
                photos.append(Record(clean, None, None, dataset, made=True))
            else:
                pairs.append(Record(degraded, clean, kind, dataset))
        if pairs and photos:
            raise UserError(f"{folder}: found pairs and single photos; expected one or the other in a folder of shards")
        found, useless = ("clean photos", ("kinds", "weight")) if photos else ("pairs", ("degradations", "severity"))
        for name in useless:
            if getattr(self, name) is not None:
                raise UserError(f"{name}: found {getattr(self, name)}, but {folder} holds {found}; leave it out")
        if photos:
            weights = check_made(_equal_weights() if self.degradations is None else self.degradations)
            severity = check_severity((0.0, 1.0) if self.severity is None else self.severity)
            return Collection(limited(photos, self.limit), weights, severity, check_repeat(self.repeat))
        chosen = [record for record in pairs if self.kinds is None or record.kind in self.kinds]
        return _pairs(folder, chosen, 1.0 if self.weight is None else self.weight, self.repeat, self.limit)


@dataclass
class FixedDegradations(Source):
    """A fixed validation or test set: every photo in every kind and severity.

    The randomness of each sample hangs on its place below the folder given, kind, severity and `seed` only, so leaving
    photos out does not change the others.

    Args:
        folders: Folders of photos, searched with their sub-folders, or single files.
        kinds: Kinds of degradation.
        severities: Severities in [0, 1].
        include: File name patterns to take.
        limit: Take the first so many photos only.
        seed: Another number gives other degradations.
        dataset: Name of the set in batches; the folder's name if not given.
        depth: Folder of depth maps, as in `CleanPhotos`.
    """

    folders: list[str]
    kinds: list[str] = field(default_factory=lambda: list(KINDS))
    severities: list[float] = field(default_factory=lambda: [0.5])
    include: list[str] = field(default_factory=lambda: ["*"])
    limit: int | None = None
    seed: int = 0
    dataset: str | None = None
    depth: str | None = None

    def collect(self, root: Path) -> Collection:
        """See `Source.collect`."""
        check_made(dict.fromkeys(self.kinds, 1.0))
        if not self.severities:
            raise UserError("severities: found none; expected at least one number from 0 to 1")
        for severity in self.severities:
            if not 0 <= severity <= 1:
                raise UserError(f"severities: found {severity}; expected numbers from 0 to 1")
        photos = _photos_of(self.folders, root, self.include, self.limit)
        maps = depth_maps(photos, resolve(self.depth, root)) if self.depth is not None else {}
        records = []
        for path, name, place in photos:
            for kind in self.kinds:
                for severity in self.severities:
                    key = f"{place.with_name(path.name).as_posix()} {kind} {severity:.6f} {self.seed}"
                    seed = zlib.crc32(key.encode())
                    record = Record(str(path), None, kind, self.dataset or name, True, severity, seed)
                    records.append(replace(record, depth=maps.get(path)))
        return Collection(records, dict.fromkeys(self.kinds, 1.0))


@dataclass
class Photos(Source):
    """Degraded photos without ground truth, for `restorevar predict`.

    Args:
        folders: Folders of photos, searched with their sub-folders, or single files.
        kind: Kind of degradation, if it is known.
        include: File name patterns to take.
        limit: Take the first so many photos only.
        dataset: Name of the set in batches; the folder's name if not given.
    """

    folders: list[str]
    kind: str = "other"
    include: list[str] = field(default_factory=lambda: ["*"])
    limit: int | None = None
    dataset: str | None = None

    def collect(self, root: Path) -> Collection:
        """See `Source.collect`."""
        check_kind(self.kind)
        found = _photos_of(self.folders, root, self.include, self.limit)
        records = [Record(str(path), None, self.kind, self.dataset or name) for path, name, _ in found]
        return Collection(records, {self.kind: 1.0})


def _pairs(
    place: Path, records: list[Record], weight: float, repeat: int, limit: int | None, testing: str | None = None
) -> Collection:
    """The collection of what is left of the pairs in `place`, a task of the weight for each of their kinds."""
    records = limited(records, limit)
    if not records:
        raise UserError(f"{place}: no pair of the `kinds` or `datasets` asked for; correct them or leave them out")
    kinds = sorted({record.kind for record in records if record.kind is not None})  # pairs have one
    return Collection(records, check_weights(dict.fromkeys(kinds, weight)), (0.0, 1.0), check_repeat(repeat), testing)


def resolve(path: str, root: Path) -> Path:
    """Where a path of a configuration file points.

    `$NAME` and `~` are expanded; `package:NAME/FOLDER` is a folder inside an installed Python package (scikit-image
    ships photographs in `package:skimage/data`); other relative paths start from `root`.

    Args:
        path: As written.
        root: Folder that relative paths start from.

    Returns:
        The path; it need not exist.

    Raises:
        UserError: An environment variable or package is not there.
    """
    if path.startswith("package:"):
        package, _, inside = path.removeprefix("package:").partition("/")
        try:
            spec = importlib.util.find_spec(package)
        except (ImportError, ValueError):  # of the package around it, or no name at all
            spec = None
        if spec is None or not spec.submodule_search_locations:
            raise UserError(f"{path}: no package '{package}' is installed; install it or give another folder")
        return Path(next(iter(spec.submodule_search_locations))) / inside
    expanded = os.path.expanduser(os.path.expandvars(path))
    if "$" in expanded:
        raise UserError(f"{path}: this environment variable is not set; set it or write the folder itself")
    return root / expanded


def list_photos(folder: Path, include: Sequence[str] = ("*",)) -> list[Path]:
    """Photo files of a folder and its sub-folders, sorted by path.

    Args:
        folder: A folder, or one file.
        include: File name patterns, of which one must match.

    Returns:
        The files.

    Raises:
        UserError: It does not exist, or holds no photo, or none that matches; the message names what is there.
    """
    if os.path.isfile(folder):  # pathlib raises if the name is too long to exist
        return [folder]
    if not os.path.isdir(folder):
        there = folder
        while not os.path.exists(there) and there != there.parent:
            there = there.parent
        names = sorted(entry.name for entry in there.iterdir())[:8] if there.is_dir() else []
        raise UserError(
            f"{folder}: no such folder; {there} has: {', '.join(names) or 'nothing'}. Correct the path, or set the root"
            " (data.root or RESTOREVAR_DATA)"
        )
    photos = [path for path in _walk(folder) if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")]
    if not photos:
        raise UserError(f"{folder}: no photo in it; expected files ending in {', '.join(SUFFIXES)}")
    found = [photo for photo in photos if any(fnmatch.fnmatchcase(photo.name, pattern) for pattern in include)]
    if not found:
        shown = [photo.name for photo in sorted(photos)[:5]] + ["..."] * (len(photos) > 5)
        raise UserError(
            f"{folder}: none of its {len(photos)} photos matches `include` ({', '.join(include)}); it has:"
            f" {', '.join(shown)}"
        )
    return sorted(found)


def _walk(folder: Path, around: tuple[str, ...] = ()) -> Iterator[Path]:
    """Files of a folder and all below it but hidden folders, through links as data sets are often put together from.

    Two links to one folder are two folders; a link to one of those `around` it is none.
    """
    real = os.path.realpath(folder)
    if real in around:
        return
    for _, below, names in itertools.islice(os.walk(folder), 1):  # nothing where it cannot be read
        yield from (folder / name for name in names)
        for name in sorted(name for name in below if not name.startswith(".")):
            yield from _walk(folder / name, (*around, real))


def _photos_of(
    folders: Sequence[str], root: Path, include: Sequence[str], limit: int | None
) -> list[tuple[Path, str, Path]]:
    """(file, set name, place in its folder without ending) of several folders."""
    if not folders:
        raise UserError("folders: found none; expected at least one folder or photo")
    found = []
    for folder in folders:
        path = resolve(folder, root)
        base = path if path.is_dir() else path.parent
        name = os.path.basename(os.path.abspath(base))  # of `..` and `.` too
        found += [(photo, name, photo.relative_to(base).with_suffix("")) for photo in list_photos(path, include)]
    return limited(found, limit)


def depth_maps(photos: Sequence[tuple[Path, str, Path]], folder: Path) -> dict[Path, str]:
    """Depth map of each photo that has one: that at its place, else the only one of its name.

    Args:
        photos: (file, set name, place in its folder without ending) of each photo.
        folder: Folder of the maps.

    Raises:
        UserError: The folder has no map, or it is not clear which is whose.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected depth maps with the photos' names")
    at_place: dict[Path, list[Path]] = {}
    of_name: dict[str, list[Path]] = {}
    for path in sorted(_walk(folder)):
        if path.suffix.lower() in (".npy", ".png", ".tif", ".tiff"):
            at_place.setdefault(path.relative_to(folder).with_suffix(""), []).append(path)
            of_name.setdefault(path.stem, []).append(path)
    if not of_name:
        raise UserError(f"{folder}: no depth map in it; expected .npy, .png or .tif files")
    placed = {path for _, _, place in photos for path in at_place.get(place, [])}
    owners: dict[Path, Path] = {}
    maps = {}
    for photo, _, place in photos:
        found = at_place.get(place) or of_name.get(place.name, [])
        if place not in at_place and placed.issuperset(found):  # none, or those of photos elsewhere
            continue
        advice = "lay the maps out in sub-folders as the photos are, or give each photo and map a name of its own"
        if len(found) > 1:
            raise UserError(f"{photo}: found two depth maps, {found[0]} and {found[1]}; {advice}")
        owner = owners.setdefault(found[0], photo)
        if owner != photo:
            raise UserError(f"{owner} and {photo}: found one depth map for both, {found[0]}; {advice}")
        maps[photo] = str(found[0])
    return maps


def read_depth(path: str, size: tuple[int, int]) -> NDArray[np.float32]:
    """(H, W) float32 of a depth map, resized to (height, width); larger is farther, in any unit.

    Values that are not finite (nothing was measured there) stay so, and degradations take them for far.

    Raises:
        UserError: It is missing, no map, or has no finite value.
    """
    depth: NDArray[Any] | None
    try:
        if path.lower().endswith(".npy"):
            with open(path, "rb") as file:
                depth = np.lib.format.read_array(file, allow_pickle=False)
        else:
            depth = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    except (OSError, ValueError, cv2.error) as error:
        raise UserError(f"{path}: cannot be read as a depth map ({error})") from None
    if depth is None or depth.ndim != 2 or depth.dtype.kind not in "uif" or not np.isfinite(depth).any():
        raise UserError(f"{path}: no depth map; expected one channel of numbers, some of them finite")
    return np.asarray(cv2.resize(depth.astype(np.float32), (size[1], size[0]), interpolation=cv2.INTER_LINEAR))


def limited(found: list[T], limit: int | None) -> list[T]:
    """The first so many; all if there is no limit. A `UserError` if the limit is below 1."""
    if limit is not None and limit < 1:
        raise UserError(f"limit: found {limit}; expected 1 or more, or null for all")
    return found[:limit]


def check_kind(kind: str) -> None:
    """Raises a `UserError` unless `kind` is known, or is the import path of a degradation that can be imported."""
    kinds = (*PAIRED_KINDS, CLEAN_KIND)
    if "." in kind:
        get_degradation(kind)
    elif kind not in kinds:
        raise UserError(f"kind: found '{kind}'; expected one of {', '.join(kinds)}")


def check_severity(severity: tuple[float, float]) -> tuple[float, float]:
    """The range, or a `UserError` unless 0 <= lowest <= highest <= 1."""
    low, high = severity
    if not 0 <= low <= high <= 1:
        raise UserError(f"severity: found {low} to {high}; expected 0 <= lowest <= highest <= 1")
    return low, high


def check_gamma(gamma: tuple[float, float]) -> tuple[float, float]:
    """The range, or a `UserError` unless 0.1 <= lowest <= highest <= 10."""
    low, high = gamma
    if not 0.1 <= low <= high <= 10:
        raise UserError(f"gamma: found {low} to {high}; expected 0.1 <= lowest <= highest <= 10")
    return low, high


def check_weights(weights: Mapping[str, float]) -> dict[str, float]:
    """The kinds with a weight above 0.

    Raises:
        UserError: A kind is unknown, a weight negative, or no weight is left.
    """
    for kind, weight in weights.items():
        check_kind(kind)
        if not 0 <= weight < float("inf"):
            raise UserError(f"weight of {kind}: found {weight}; expected a number from 0 up")
    kept = {kind: float(weight) for kind, weight in weights.items() if weight > 0}
    if not kept:
        raise UserError("weights: found none above 0; expected at least one kind with a weight")
    return kept


def check_made(weights: Mapping[str, float]) -> dict[str, float]:
    """`check_weights` for kinds that have to be made from clean photos."""
    if "other" in weights:
        raise UserError(f"degradations: 'other' cannot be made; expected {', '.join(KINDS)}, {CLEAN_KIND} or your own")
    return check_weights(weights)


def check_repeat(repeat: int) -> int:
    """`repeat`, or a `UserError` if it is below 1."""
    if repeat < 1:
        raise UserError(f"repeat: found {repeat}; expected 1 or more")
    return repeat
