"""Large collections as tar files with an index, read at random like folders."""

import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from restorevar.datamodules.manifest import Row, located
from restorevar.errors import UserError
from restorevar.files import atomic_write
from restorevar.restoration.photo import read_rgb

__all__ = ["INDEX", "index_shards", "is_member", "read_index", "read_member", "write_shards"]

INDEX = "index.json"
"""Name of the index in a folder of shards."""

VERSION = 1
IMAGES = (".jpg", ".jpeg", ".png", ".webp")
PARTS = ("degraded", "clean")


def write_shards(
    rows: Sequence[Row], base: Path, folder: Path, shard_megabytes: int = 512, progress: Iterable[int] | None = None
) -> int:
    """Packs pairs into tar files of about equal size, and writes their index.

    A sample `000042` is `000042.degraded.png`, `000042.clean.png` and `000042.json` with its manifest fields. 8-bit
    RGB JPEG and PNG files that need no turning go in as they are, all others as upright 8-bit RGB PNG.

    Args:
        rows: Rows of a manifest; a row without a target is a clean photo to be degraded on the fly.
        base: Folder that their relative paths start from.
        folder: Where the shards go; must hold neither an index nor a tar file yet.
        shard_megabytes: A shard is closed when it is this large.
        progress: Row numbers, such as from a progress bar; counted silently if not given.

    Returns:
        Number of shards.

    Raises:
        UserError: There are shards already, or a file cannot be read; nothing is left behind then.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: a file; expected a folder for the shards, choose another")
    for there in (folder / INDEX, *sorted(folder.glob("*.tar"))):  # of an interrupted run, or the user's own
        if there.exists():
            raise UserError(f"{folder}: has a file {there.name} already; choose another folder or remove it")
    if shard_megabytes <= 0:
        raise UserError(f"a shard of {shard_megabytes} megabytes; expected a number above 0")
    numbers = iter(progress if progress is not None else range(len(rows)))
    number = next(numbers, None)
    written: list[Path] = []
    is_new = not folder.exists()
    try:
        while number is not None:
            path = folder / f"{len(written):06d}.tar"
            with atomic_write(path) as temporary, tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as archive:
                while number is not None and archive.offset < shard_megabytes * 1_000_000:
                    _add_sample(archive, f"{number:09d}", rows[number], base)
                    number = next(numbers, None)
            written.append(path)
        index_shards(folder)
    except BaseException:
        for path in written:
            path.unlink()
        if is_new and folder.exists():
            folder.rmdir()
        raise
    return len(written)


def index_shards(folder: Path) -> Path:
    """Reads the headers of a folder's tar files and writes where each sample's members lie.

    Args:
        folder: A folder of tar files in the form that `write_shards` writes.

    Returns:
        The index.

    Raises:
        UserError: There is no tar file, or one holds anything but images and JSON, or a sample is incomplete.
    """
    shards = sorted(folder.glob("*.tar"))
    if not shards:
        raise UserError(f"{folder}: no .tar file in it; expected shards such as `restorevar manifest pack` writes")
    content = {
        "version": VERSION,
        "shards": [{"name": path.name, "bytes": path.stat().st_size, "samples": _samples(path)} for path in shards],
    }
    with atomic_write(folder / INDEX) as temporary:
        temporary.write_text(json.dumps(content, separators=(",", ":")))
    return folder / INDEX


def read_index(folder: Path) -> list[tuple[str | None, str, Mapping[str, str]]]:
    """References of a folder's samples.

    Args:
        folder: A folder of shards with an index.

    Returns:
        (degraded or None, clean, fields) of each sample; the first two are for `read_member`.

    Raises:
        UserError: The index is missing, damaged, of another version, or older than its shards.
    """
    path = folder / INDEX
    advice = f"write it anew with `restorevar manifest index {folder}`"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; write it with `restorevar manifest index {folder}`") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error}); {advice}") from None
    if not isinstance(content, dict) or content.get("version") != VERSION:
        raise UserError(f"{path}: not an index of version {VERSION}; {advice}")
    try:
        return [sample for shard in content["shards"] for sample in _references(folder, shard, advice)]
    except (KeyError, TypeError, ValueError, AttributeError, OSError) as error:  # whatever a damaged entry leads to
        raise UserError(f"{path}: damaged, an entry is missing or wrong ({error}); {advice}") from None


def _references(folder: Path, shard: Any, advice: str) -> Iterator[tuple[str | None, str, Mapping[str, str]]]:
    file = folder / shard["name"]
    size = file.stat().st_size if file.exists() else None
    if size is None or size != shard["bytes"]:
        found = "missing" if size is None else f"{size} bytes"
        raise UserError(f"{file}: {found}, but the index says {shard['bytes']} bytes; copy it again, or {advice}")
    for sample in shard["samples"]:
        members = {}
        for part in PARTS:
            if part in sample:
                offset, length = map(int, sample[part])
                if not 0 <= offset <= offset + length <= size:
                    raise ValueError(f"{sample['key']} lies outside of {file.name}")
                members[part] = f"{file}#{offset}+{length}#{sample['key']}.{part}"
        fields = {key: str(value) for key, value in sample["fields"].items()}
        yield members.get("degraded"), members["clean"], fields


def is_member(reference: str) -> bool:
    """Whether a path is a reference into a shard."""
    return ".tar#" in reference


def read_member(reference: str) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB of an image inside a shard.

    Args:
        reference: As `read_index` gives it.

    Raises:
        UserError: The shard is missing or the image damaged.
    """
    file, _, rest = reference.partition(".tar#")  # folders and names of samples can have a # too
    offset, size = (int(number) for number in rest.partition("#")[0].split("+"))
    try:
        with open(f"{file}.tar", "rb") as shard:
            shard.seek(offset)
            data = shard.read(size)
    except OSError as error:
        raise UserError(f"{reference}: cannot be read ({error.strerror})") from None
    return read_rgb(reference, data)


def _add_sample(archive: tarfile.TarFile, key: str, row: Row, base: Path) -> None:
    sources = {"degraded": row.image_path, "clean": row.target_path} if row.target_path else {"clean": row.image_path}
    for part, name in sources.items():
        suffix, data = _encoded(located(base, name))
        _add(archive, f"{key}.{part}{suffix}", data)
    fields = {"path": row.image_path, "degradation": row.kind, "dataset": row.dataset}
    _add(archive, f"{key}.json", json.dumps(fields).encode())


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    archive.addfile(entry, io.BytesIO(data))


def _encoded(path: Path) -> tuple[str, bytes]:
    """Ending and content of a member."""
    pixels = read_rgb(path)  # also the check that it can be read
    with Image.open(path) as image:
        plain = image.mode == "RGB" and image.format in ("JPEG", "PNG") and image.getexif().get(0x0112, 1) == 1
        suffix = ".jpg" if image.format == "JPEG" else ".png"
        with path.open("rb") as file:
            deep = suffix == ".png" and file.read(25)[24:] == b"\x10"  # a PNG's bit depth
    if plain and not deep:
        return suffix, path.read_bytes()
    encoded = cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))[1]
    return ".png", encoded.tobytes()


def _samples(path: Path) -> list[dict[str, Any]]:
    samples: dict[str, dict[str, Any]] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                key, _, rest = member.name.partition(".")
                part, _, ending = rest.rpartition(".")
                sample = samples.setdefault(key, {"key": key, "fields": {}})
                if not member.isreg() or "/" in key:
                    raise UserError(f"{path}: '{member.name}' is no plain file; expected KEY.clean.png, KEY.json, ...")
                if rest == "json":
                    file = archive.extractfile(member)
                    assert file is not None  # a plain file
                    sample["fields"] = _fields(path, member.name, file.read())
                elif part not in PARTS or f".{ending}" not in IMAGES:
                    expected = "KEY.degraded, KEY.clean (" + ", ".join(IMAGES) + ") and KEY.json"
                    raise UserError(f"{path}: found '{member.name}'; expected {expected} only")
                elif part in sample:
                    raise UserError(f"{path}: found '{member.name}' and another {key}.{part}; expected one of them")
                else:
                    sample[part] = [member.offset_data, member.size]
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"{path}: not an uncompressed tar file ({error})") from None
    for sample in samples.values():
        if "clean" not in sample:
            raise UserError(f"{path}: sample {sample['key']} has no clean image; pack the shard again")
    return list(samples.values())


def _fields(path: Path, name: str, data: bytes) -> dict[str, str]:
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: '{name}' is not JSON ({error})") from None
    if not isinstance(fields, dict):
        raise UserError(f"{path}: '{name}' is a {type(fields).__name__}; expected an object")
    return {key: str(value) for key, value in fields.items()}
