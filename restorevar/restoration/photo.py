"""Reading a photo file for restoration, and writing the result back alike.

Policy, the same everywhere in the package:

* The EXIF orientation is applied to the pixels and the tag is reset. All other EXIF entries, the ICC profile, the
  resolution, XMP, IPTC, a JPEG's comment, and a PNG's texts and colour chunks are kept; the embedded thumbnail, which
  would show the photo before restoration, is dropped.
* Pixel values are taken as they are stored, in the colour space of the embedded profile.
* Grey comes back grey. Alpha is kept aside and put back, but for BMP, which is left without. A palette becomes RGB
  (with alpha where it had transparency).
* 16-bit PNG and TIFF are worked on as floating point and come back with 16 bits, 12-bit grey as well. 32-bit samples,
  16-bit TIFFs whose channels lie apart, and raw files of cameras are refused.
* CMYK is converted to sRGB, through the embedded profile if there is one, and comes back as RGB.
* Of a file with several frames the first is read, with a note.
* More pixels than Pillow's decompression bomb limit (178 million) are refused.
"""

import contextlib
import io
import itertools
import os
import re
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, PngImagePlugin, TiffImagePlugin

from restorevar.errors import UserError
from restorevar.files import atomic_write

__all__ = [
    "SUFFIXES",
    "Photo",
    "cmyk_to_rgb",
    "kept_info",
    "orientation_of",
    "read_photo",
    "read_rgb",
    "to_8_bits",
    "upright",
    "write_photo",
]

SUFFIXES = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".png": "PNG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}
"""File name endings (lower case) that are read and written, and the format that each stands for."""

_OPENED = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
_JPEG_SEGMENT = 65533
_IPTC = 0x0404  # among Photoshop's resources
_PNG_KEPT = (b"gAMA", b"cHRM", b"sRGB", b"cICP", b"tEXt", b"zTXt", b"iTXt")
_ROWS = 256
_DEFLATE = 4  # photographs come out as small as with level 6
_ORIENTATION = ExifTags.Base.Orientation
# TIFF keeps its own bookkeeping among the EXIF entries: it belongs to the old file's layout
_TIFF_LAYOUT = {
    *(254, 255, 256, 257, 258, 259, 262, 263, 264, 265, 266, 273, 277, 278, 279, 280, 281, 284, 288, 289, 290, 291),
    *(292, 293, 297, 301, 317, 320, 322, 323, 324, 325, 330, 332, 338, 339, 340, 341, 347, 512, 513, 514, 519, 520),
    *(521, 529, 530, 531, 532, 700, 34377, 34675, 37724),
}


@dataclass(frozen=True, eq=False)
class Photo:
    """The pixels of a photo and all that is needed to write them back alike.

    Attributes:
        pixels: (H, W, 3) RGB, uint8 or uint16, upright; a grey photo has three equal channels.
        alpha: (H, W) of the same type, or None.
        grey: Whether the file holds one channel (besides alpha).
        format: `JPEG`, `PNG`, `WEBP`, `BMP` or `TIFF`: what the file holds, whatever its name says.
        lossless: Whether a WebP file is of the lossless kind.
        exif: EXIF block with the orientation reset, or empty.
        icc_profile: ICC profile, or empty.
        xmp: XMP packet, or empty.
        resolution: Horizontal and vertical dots per inch, or None.
        iptc: IPTC record of a JPEG (captions, keywords), or empty; a TIFF's is among its EXIF entries.
        comment: A JPEG's comment, or empty.
        png_chunks: Name and content of a PNG's chunks of text and colour (gAMA, cHRM, sRGB, cICP).
        notes: What the user should know about how the file was read.
    """

    pixels: NDArray[Any]
    alpha: NDArray[Any] | None = None
    grey: bool = False
    format: str = "PNG"
    lossless: bool = False
    exif: bytes = b""
    icc_profile: bytes = b""
    xmp: bytes = b""
    resolution: tuple[float, float] | None = None
    iptc: bytes = b""
    comment: bytes = b""
    png_chunks: tuple[tuple[bytes, bytes], ...] = ()
    notes: tuple[str, ...] = ()


def to_8_bits(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """uint8 as it is, uint16 rounded to 8 bits."""
    if pixels.dtype == np.uint8:
        return pixels
    return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def read_rgb(path: str | os.PathLike[str], content: bytes | None = None) -> NDArray[np.uint8]:
    """Reads only the pixels of a photo: upright, 8 bits, RGB, alpha dropped.

    Args:
        path: A JPEG, PNG, WebP, BMP or TIFF file.
        content: What the file holds, if it is no file of its own; `path` is only its name then.

    Returns:
        (H, W, 3) uint8.

    Raises:
        UserError: The file is missing, damaged, too large or of another kind; the message names it.
    """
    with _opened(Path(path), content) as image:
        pixels, _, _ = _pixels(image, Path(path), content)
        return np.ascontiguousarray(to_8_bits(pixels))


def read_photo(path: str | os.PathLike[str]) -> Photo:
    """Reads a photo with all that is needed to write it back alike.

    Args:
        path: A JPEG, PNG, WebP, BMP or TIFF file.

    Returns:
        The photo, upright.

    Raises:
        UserError: The file is missing, damaged, too large or of another kind; the message names it.
    """
    path = Path(path)
    with _opened(path) as image:
        frames = getattr(image, "n_frames", 1)
        notes = []
        if frames > 1 and image.format != "MPO":  # a phone's MPO is a JPEG followed by previews
            notes.append(f"{frames} frames, the first is taken")
        exif, xmp = b"", b""
        try:  # before the pixels: decoding a TIFF turns it and forgets how it was
            exif, xmp = _exif(image), _xmp(image)
        except Exception:  # Pillow raises what it likes on a damaged block, and the pixels are fine
            notes.append("damaged EXIF left out")
        if image.format in ("JPEG", "MPO") and len(exif) > _JPEG_SEGMENT:
            notes.append("EXIF longer than a JPEG can hold left out")
            exif = b""
        pixels, alpha, grey = _pixels(image, path)
        if image.format == "BMP" and alpha is not None:  # Pillow reads it and writes none
            notes.append("alpha left out, choose PNG to keep it")
            alpha = None
        icc_profile = image.info.get("icc_profile") or b""
        if image.mode == "CMYK":
            deep = isinstance(image, TiffImagePlugin.TiffImageFile) and max(image.tag_v2.get(258, (8,))) > 8
            notes.append(f"CMYK converted to RGB{' of 8 bits' if deep else ''}")
            icc_profile = b""
        iptc, comment = _iptc(image), image.info.get("comment", b"") if image.format in ("JPEG", "MPO") else b""
        if max(len(iptc), len(comment)) > _JPEG_SEGMENT - 32:
            notes.append("IPTC or comment longer than a JPEG segment left out")
            iptc, comment = (data if len(data) <= _JPEG_SEGMENT - 32 else b"" for data in (iptc, comment))
        return Photo(
            pixels=np.ascontiguousarray(pixels),
            alpha=None if alpha is None else np.ascontiguousarray(alpha),
            grey=grey,
            format="JPEG" if image.format == "MPO" else str(image.format),
            lossless=image.format == "WEBP" and _webp_is_lossless(path),
            exif=exif,
            icc_profile=icc_profile,
            xmp=xmp,
            resolution=_resolution(image),
            iptc=iptc,
            comment=comment,
            png_chunks=tuple(_png_chunks(path)) if image.format == "PNG" else (),
            notes=tuple(notes),
        )


def _resolution(image: Image.Image) -> tuple[float, float] | None:
    """Dots per inch, if they are numbers that all formats can hold; scanners write 0/0."""
    stored = image.info.get("dpi")
    if not stored or (isinstance(image, TiffImagePlugin.TiffImageFile) and 282 not in image.tag_v2):
        return None  # Pillow says 1 of a TIFF that says nothing
    across, down = float(stored[0]), float(stored[1])
    return (across, down) if 0.01 <= across < 60000 and 0.01 <= down < 60000 else None


def write_photo(
    path: str | os.PathLike[str], photo: Photo, on_complete: Callable[[Path], object] | None = None
) -> None:
    """Writes a photo in its own format, whole or not at all.

    JPEG has quality 95 and full colour resolution (4:4:4); WebP is lossless or of quality 95 as it was; TIFF is
    deflated.

    Args:
        path: The file to write; its folder is created if needed.
        photo: The photo.
        on_complete: Called with the complete file before it takes its place.

    Raises:
        UserError: The format cannot hold 16 bits or alpha.
    """
    path = Path(path)
    high = photo.pixels.dtype == np.uint16
    if (high and photo.format not in ("PNG", "TIFF")) or (photo.alpha is not None and photo.format == "JPEG"):
        what = "16 bits a channel" if high else "alpha"
        raise UserError(f"{path}: {photo.format} cannot hold {what}; choose PNG or TIFF")
    write = _write_tiff if photo.format == "TIFF" else _write_png_16 if high else _write_8
    try:
        with atomic_write(path) as temporary:
            with temporary.open("wb") as file:
                write(file, photo)
            if on_complete is not None:
                on_complete(temporary)
    except (ValueError, OverflowError, struct.error) as error:  # what a format's fields cannot hold
        raise UserError(f"{path}: cannot be written as {photo.format} ({error})") from None


@contextlib.contextmanager
def _opened(path: Path, content: bytes | None = None) -> Iterator[Image.Image]:
    """Opens an image file; whatever goes wrong inside becomes a `UserError` that names the file."""
    kinds = "a JPEG, PNG, WebP, BMP or TIFF photo"
    try:
        with warnings.catch_warnings():
            # Pillow warns at half of its limit, which real cameras reach, and of blocks whose damage is reported below
            warnings.simplefilter("ignore")
            # not by its path: Pillow scrambles a memory-mapped TIFF that has to be turned
            with _stream(path, content) as file, Image.open(file, formats=_OPENED) as image:
                _refuse_raw(image, path)
                yield image
    except (UserError, MemoryError):
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise UserError(f"{path}: a folder; expected {kinds}") from None
    except PermissionError:
        raise UserError(f"{path}: no permission to read it") from None
    except Image.DecompressionBombError as error:
        raise UserError(f"{path}: refused as a decompression bomb ({error})") from None
    except Image.UnidentifiedImageError:
        if (path.stat().st_size if content is None else len(content)) == 0:
            raise UserError(f"{path}: an empty file (0 bytes); expected {kinds}") from None
        raise UserError(f"{path}: cannot be read as an image, damaged or of another kind; expected {kinds}") from None
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, ... on damaged files
        raise UserError(f"{path}: damaged or truncated ({error})") from None


def _refuse_raw(image: Image.Image, path: Path) -> None:
    """Raw files of cameras are TIFFs whose first picture is a small preview."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        tags = image.tag_v2
        if 50706 in tags or int(tags.get(254, 0)) & 1:  # DNG's version, or a reduced picture
            raise UserError(f"{path}: a camera's raw file or a preview; develop it first, to TIFF, PNG or JPEG")


def kept_info(image: Image.Image) -> dict[str, Any]:
    """What the `info` of a PIL image should say of its restored, upright copy: profile, resolution, EXIF, XMP.

    Args:
        image: The given image, before its pixels are loaded: decoding a TIFF turns it and forgets how it was.

    Returns:
        `icc_profile` (not of CMYK, which becomes sRGB), `dpi`, and `exif` and `xmp` with the orientation reset; only
        what there is.
    """
    kept = {"icc_profile": image.info.get("icc_profile"), "dpi": _resolution(image)}
    if image.mode == "CMYK":
        kept["icc_profile"] = None
    with contextlib.suppress(Exception):  # Pillow raises what it likes on a damaged block
        kept |= {"exif": _exif(image), "xmp": _xmp(image)}
    return {key: value for key, value in kept.items() if value}


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) to 8; 1 where there is none."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # a damaged block: take the pixels as they are
        return 1
    return value if value in range(1, 9) else 1


def upright(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Turns (H, W, ...) as the EXIF orientation 1 to 8 says; a view."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _stream(path: Path, content: bytes | None) -> IO[bytes]:
    return path.open("rb") if content is None else io.BytesIO(content)


def _bytes(path: Path, content: bytes | None) -> NDArray[np.uint8]:
    return np.fromfile(path, np.uint8) if content is None else np.frombuffer(content, np.uint8)


def _pixels(
    image: Image.Image, path: Path, content: bytes | None = None
) -> tuple[NDArray[Any], NDArray[Any] | None, bool]:
    """Decodes into upright RGB (H, W, 3), alpha (H, W) or None, and whether it is grey."""
    orientation = orientation_of(image)
    deep = not image.mode.startswith("I;16") and _samples_of_16_bits(image, path, content)
    grey = image.mode in ("1", "L", "LA", "La") or image.mode.startswith("I;16") or deep == "grey"
    if image.mode in ("I", "F"):
        raise UserError(f"{path}: 32-bit samples; expected 8 or 16 bits a channel, convert it first")
    if image.mode == "LAB":
        raise UserError(f"{path}: CIELAB colour; expected RGB, grey, palette or CMYK, convert it first")
    if image.format == "JPEG" and image.mode in ("RGB", "L"):
        decoded = _whole_jpeg(_bytes(path, content))
        if decoded is not None:
            return upright(decoded, orientation), None, grey
    if deep:
        image.load()  # Pillow notices a truncated file, OpenCV does not
        pixels = _read_16_bits(path, _bytes(path, content))
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            orientation = 1  # OpenCV turns deep TIFFs while it decodes, whatever it is told
            if image.tag_v2.get(338) == (1,):
                pixels = _unmultiplied(pixels)
    else:
        image.load()
        orientation = orientation_of(image)  # Pillow turns a TIFF while it decodes
        pixels = _read_with_pillow(image)
    pixels = upright(pixels, orientation)
    alpha = np.ascontiguousarray(pixels[..., 3]) if pixels.shape[2] == 4 else None
    return np.ascontiguousarray(pixels[..., :3]), alpha, grey


def _whole_jpeg(data: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
    """Decodes a JPEG with OpenCV, three times as fast as Pillow; None where it should not be trusted with it."""
    if data[-2:].tobytes() != b"\xff\xd9":  # OpenCV takes a truncated file for a whole one
        return None
    decoded = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    return None if decoded is None else np.asarray(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB, decoded), np.uint8)


def _read_16_bits(path: Path, data: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """Decodes a 16-bit colour or grey-alpha file into (H, W, 3 or 4)."""
    decoded = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    if decoded is None or decoded.dtype != np.uint16 or decoded.ndim != 3 or decoded.shape[2] not in (3, 4):
        raise UserError(f"{path}: this kind of 16-bit file cannot be read; expected grey, RGB or RGBA")
    code = cv2.COLOR_BGR2RGB if decoded.shape[2] == 3 else cv2.COLOR_BGRA2RGBA
    return np.asarray(cv2.cvtColor(decoded, code, decoded), np.uint16)


def _read_with_pillow(image: Image.Image) -> NDArray[Any]:
    """(H, W, 3 or 4) uint8, or uint16 for 16-bit grey."""
    if image.mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.uint16)
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            if image.tag_v2.get(258) == (12,):
                grey = np.rint(grey * (65535 / 4095)).astype(np.uint16)
            if image.tag_v2.get(262) == 0:  # white is 0; Pillow turns those of 8 bits alone
                grey = 65535 - grey
        channels = [grey, grey, grey]
        if "transparency" in image.info:
            channels.append(np.where(grey == image.info["transparency"], 0, 65535).astype(np.uint16))
        return np.stack(channels, axis=2)
    if image.mode == "CMYK":
        return np.array(cmyk_to_rgb(image))
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        return np.array(image.convert("RGBA"))
    return np.array(image.convert("RGB"))


def _unmultiplied(pixels: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Colours (H, W, 4) that were stored times alpha as they are without."""
    colours, alpha = pixels[..., :3].astype(np.float64), np.maximum(pixels[..., 3:], 1)
    colours = np.minimum(np.rint(colours * (65535 / alpha)), 65535).astype(np.uint16)
    return np.concatenate([colours, pixels[..., 3:]], axis=2)


def _samples_of_16_bits(image: Image.Image, path: Path, content: bytes | None) -> Literal["", "grey", "colour"]:
    """Tells 16-bit files by their headers: Pillow gives only 8 bits of all but plain grey."""
    if image.format == "PNG":
        with _stream(path, content) as file:
            depth, kind = file.read(26)[24:]
        return "" if depth != 16 else "grey" if kind in (0, 4) else "colour"
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        tags = image.tag_v2
        if set(tags.get(258, ())) == {16} and tags.get(262) in (1, 2) and set(tags.get(339, (1,))) == {1}:
            if tags.get(284, 1) != 1:  # OpenCV scrambles them, Pillow has no 16-bit colour
                raise UserError(f"{path}: 16-bit channels that lie apart; expected interleaved ones, convert it first")
            return "grey" if tags[262] == 1 else "colour"
    return ""


def cmyk_to_rgb(image: Image.Image) -> Image.Image:
    """SRGB of a CMYK image, through its embedded profile if there is one."""
    profile = image.info.get("icc_profile")
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
            if converted is not None:
                return converted
        except ImageCms.PyCMSError:
            pass  # a damaged profile: as without one
    return image.convert("RGB")


def _exif(image: Image.Image) -> bytes:
    """The EXIF block without thumbnail, its orientation 1."""
    source = image.getexif()
    kept = Image.Exif()
    for tag, value in source.items():
        if tag not in _TIFF_LAYOUT or (image.format != "TIFF" and tag not in (512, 513, 514, 330)):
            kept[tag] = value
    for tag in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
        if entries := source.get_ifd(tag):
            # the interoperability directory is an offset into the old block
            kept[tag] = {key: entry for key, entry in entries.items() if key != ExifTags.IFD.Interop}
    if _ORIENTATION in source:
        if source[_ORIENTATION] in (5, 6, 7, 8) and isinstance(details := kept.get(ExifTags.IFD.Exif), dict):
            width, height = ExifTags.Base.ExifImageWidth, ExifTags.Base.ExifImageHeight
            if width in details and height in details:
                details[width], details[height] = details[height], details[width]
        kept[_ORIENTATION] = 1
    return kept.tobytes() if len(kept) else b""


def _xmp(image: Image.Image) -> bytes:
    """The XMP packet with its copy of the orientation set to 1."""
    packet = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or b""
    packet = packet.encode() if isinstance(packet, str) else bytes(packet)
    packet = re.sub(rb'tiff:Orientation="\d"', b'tiff:Orientation="1"', packet)
    return re.sub(rb"<tiff:Orientation>\d</", b"<tiff:Orientation>1</", packet)


def _iptc(image: Image.Image) -> bytes:
    """The IPTC record among a JPEG's Photoshop resources; their thumbnail would show the old photo."""
    resources = image.info.get("photoshop") if image.format in ("JPEG", "MPO") else None
    record = resources.get(_IPTC) if isinstance(resources, dict) else None
    return record if isinstance(record, bytes) else b""


def _png_chunks(path: Path) -> Iterator[tuple[bytes, bytes]]:
    """Chunks that say how to show the colours, and texts; EXIF and XMP, which texts may hold, have their own place."""
    with path.open("rb") as file:
        file.seek(8)
        while len(header := file.read(8)) == 8:
            size, name = struct.unpack(">I4s", header)
            if name not in _PNG_KEPT:
                file.seek(size + 4, os.SEEK_CUR)
                continue
            data = file.read(size)
            file.seek(4, os.SEEK_CUR)
            if len(data) == size and not data.startswith((b"XML:com.adobe.xmp\0", b"Raw profile type ")):
                yield name, data


def _webp_is_lossless(path: Path) -> bool:
    """Walks the RIFF chunks for the lossless bitstream's name."""
    with path.open("rb") as file:
        file.seek(12)
        while len(header := file.read(8)) == 8:
            name, size = struct.unpack("<4sI", header)
            if name in (b"VP8L", b"VP8 "):
                return name == b"VP8L"
            if name == b"ANMF":  # a frame: its own chunks follow 16 bytes on
                size = 16
            file.seek(size + size % 2, os.SEEK_CUR)
    return False


def _channels(photo: Photo, rows: slice = slice(None)) -> NDArray[Any]:
    """The stored channels of some rows: (H, W) grey, (H, W, 2) with alpha, (H, W, 3) or (H, W, 4)."""
    colours = photo.pixels[rows]
    if photo.grey:
        colours = cv2.cvtColor(np.ascontiguousarray(colours), cv2.COLOR_RGB2GRAY)[..., None]
    if photo.alpha is not None:
        colours = np.concatenate([colours, photo.alpha[rows, :, None]], axis=2)
    return colours[..., 0] if colours.shape[2] == 1 else colours


def _blocks(photo: Photo) -> Iterator[NDArray[Any]]:
    """The stored channels, (rows, W, C), a few rows at a time: the whole in one more copy is a lot for 16 bits."""
    for top in range(0, len(photo.pixels), _ROWS):
        block = _channels(photo, slice(top, top + _ROWS))
        yield block[..., None] if block.ndim == 2 else block


def _write_8(file: IO[bytes], photo: Photo) -> None:
    # through memory: given a file, Pillow's encoders take no notice of a full disk
    buffer = io.BytesIO()
    _encode_8(buffer, photo)
    file.write(buffer.getbuffer())


def _encode_8(file: IO[bytes], photo: Photo) -> None:
    image = Image.fromarray(np.ascontiguousarray(_channels(photo)))
    options: dict[str, Any] = {"icc_profile": photo.icc_profile or None, "exif": photo.exif or b""}
    if photo.resolution and photo.format != "WEBP":
        options["dpi"] = photo.resolution
    if photo.format == "JPEG":
        if photo.iptc:
            resource = struct.pack(">4sHHI", b"8BIM", _IPTC, 0, len(photo.iptc)) + photo.iptc
            segment = b"Photoshop 3.0\0" + resource + b"\0" * (len(resource) % 2)
            options["extra"] = b"\xff\xed" + struct.pack(">H", len(segment) + 2) + segment
        if photo.comment:
            options["comment"] = photo.comment
        image.save(file, "JPEG", quality=95, subsampling=0, xmp=photo.xmp or None, **options)
    elif photo.format == "WEBP":
        # `exact` keeps the colours under transparent pixels
        image.save(file, "WEBP", quality=95, lossless=photo.lossless, exact=True, method=4, xmp=photo.xmp, **options)
    elif photo.format == "PNG":
        chunks = PngImagePlugin.PngInfo()
        for name, data in photo.png_chunks:
            chunks.add(name, data)
        if photo.xmp:
            chunks.add_itxt("XML:com.adobe.xmp", photo.xmp.decode("utf-8", "replace"))
        image.save(file, "PNG", pnginfo=chunks, compress_level=_DEFLATE, **options)
    else:
        image.save(file, photo.format, **({"dpi": photo.resolution} if photo.resolution else {}))


def _write_png_16(file: IO[bytes], photo: Photo) -> None:
    """Pillow writes no 16-bit colour, OpenCV neither grey with alpha nor EXIF and profile in all its releases."""
    height, width = photo.pixels.shape[:2]
    samples = (1 if photo.grey else 3) + (photo.alpha is not None)
    file.write(b"\x89PNG\r\n\x1a\n")
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[samples]
    _write_png_chunk(file, b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0))
    for name, data in photo.png_chunks:
        _write_png_chunk(file, name, data)
    if photo.icc_profile:
        _write_png_chunk(file, b"iCCP", b"ICC Profile\0\0" + zlib.compress(photo.icc_profile))
    if photo.resolution:
        per_metre = [round(dots / 0.0254) for dots in photo.resolution]
        _write_png_chunk(file, b"pHYs", struct.pack(">IIB", *per_metre, 1))
    if photo.exif:
        _write_png_chunk(file, b"eXIf", photo.exif.removeprefix(b"Exif\0\0"))
    if photo.xmp:
        _write_png_chunk(file, b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + photo.xmp)
    compressor = zlib.compressobj(_DEFLATE)
    for block in _blocks(photo):
        rows = block.astype(">u2").view(np.uint8)
        lines = np.empty((len(rows), 1 + width * 2 * samples), np.uint8)
        lines[:, 0] = 1  # each line is stored as differences from the pixel on the left
        differences = rows.copy()
        differences[:, 1:] -= rows[:, :-1]
        lines[:, 1:] = differences.reshape(len(rows), -1)
        if part := compressor.compress(lines.data):
            _write_png_chunk(file, b"IDAT", part)
    _write_png_chunk(file, b"IDAT", compressor.flush())
    _write_png_chunk(file, b"IEND", b"")


def _write_png_chunk(file: IO[bytes], name: bytes, data: bytes) -> None:
    file.write(struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)))


def _write_tiff(file: IO[bytes], photo: Photo) -> None:
    """A directory and deflated strips: Pillow writes no 16-bit RGB, and no EXIF beside compressed pixels."""
    height, width = photo.pixels.shape[:2]
    samples = (1 if photo.grey else 3) + (photo.alpha is not None)
    kind = photo.pixels.dtype
    strips = [zlib.compress(block.astype(kind.newbyteorder("<")).data, _DEFLATE) for block in _blocks(photo)]
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    if photo.exif:
        block = Image.Exif()
        block.load(photo.exif)
        for tag, value in block.items():
            directory[tag] = block.get_ifd(tag) if tag in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo) else value
    directory[256], directory[257] = width, height
    directory[258] = (8 * kind.itemsize,) * samples
    directory[259] = 8  # deflate
    directory[262] = 1 if photo.grey else 2
    directory[277], directory[278], directory[284] = samples, _ROWS, 1
    if photo.alpha is not None:
        directory[338] = 2  # not premultiplied
    if photo.resolution:
        directory[282], directory[283], directory[296] = *photo.resolution, 2
    for tag, content in ((34675, photo.icc_profile), (700, photo.xmp)):
        if content:
            directory.tagtype[tag] = 7
            directory[tag] = content
    lengths = tuple(len(strip) for strip in strips)
    # Pillow adds the directory's own length to the offsets
    directory[273], directory[279] = (0, *itertools.accumulate(lengths[:-1])), lengths
    start = 8
    file.write(b"II*\0" + struct.pack("<I", start) + directory.tobytes(start))
    file.writelines(strips)
