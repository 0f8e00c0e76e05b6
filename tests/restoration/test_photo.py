import dataclasses
import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageCms
from PIL.TiffImagePlugin import IFDRational, ImageFileDirectory_v2

from restorevar.errors import UserError
from restorevar.restoration.photo import Photo, kept_info, read_photo, read_rgb, to_8_bits, write_photo

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def noise(height=13, width=17, channels=3, dtype=np.uint8, seed=0):
    shape = (height, width, channels) if channels else (height, width)
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, shape, dtype)


def exif_with(orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    exif[ExifTags.Base.Make] = "Maker"
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ISOSpeedRatings] = 400
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ExifImageWidth] = 17
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ExifImageHeight] = 13
    return exif


def round_trip(source, target):
    write_photo(target, read_photo(source))
    return Image.open(target)


@pytest.mark.parametrize("suffix", ["png", "tif", "webp", "bmp"])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA"])
def test_lossless_files_come_back_with_the_same_pixels_and_channels(tmp_path, suffix, mode):
    image = Image.fromarray(noise(channels=4)).convert(mode)
    path = tmp_path / f"a.{suffix}"
    try:
        image.save(path, **({"lossless": True, "exact": True} if suffix == "webp" else {}))
    except (OSError, KeyError):
        pytest.skip(f"Pillow writes no {suffix} in mode {mode}")
    before = Image.open(path)
    after = round_trip(path, tmp_path / f"b.{suffix}")
    assert after.format == before.format
    transparent = before.mode in ("LA", "PA", "RGBA") or "transparency" in before.info
    grey = before.mode in ("1", "L", "LA")
    assert after.mode == (("LA" if transparent else "L") if grey and suffix != "webp" else after.mode)
    assert after.has_transparency_data == transparent
    np.testing.assert_array_equal(np.asarray(after.convert("RGBA")), np.asarray(before.convert("RGBA")))
    np.testing.assert_array_equal(read_rgb(path), np.asarray(before.convert("RGBA"))[..., :3])


@pytest.mark.parametrize("channels", [0, 3, 4])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_come_back_as_16_bits(tmp_path, suffix, channels):
    pixels = noise(channels=channels, dtype=np.uint16)
    source, target = tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}"
    cv2.imwrite(str(source), pixels)
    photo = read_photo(source)
    assert photo.pixels.dtype == np.uint16
    assert photo.grey == (channels == 0)
    rich = Photo(**{**photo.__dict__, "icc_profile": SRGB, "exif": exif_with(1).tobytes(), "resolution": (300, 300)})
    write_photo(target, rich)
    np.testing.assert_array_equal(cv2.imread(str(target), cv2.IMREAD_UNCHANGED), pixels)
    with Image.open(target) as written:
        written.load()
        assert written.info["icc_profile"] == SRGB
        assert written.getexif()[ExifTags.Base.Make] == "Maker"
        assert written.getexif().get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ISOSpeedRatings] == 400
        assert round(written.info["dpi"][0]) == 300
    again = read_photo(target)
    np.testing.assert_array_equal(again.pixels, photo.pixels)
    colours = np.round(again.pixels / 257).astype(np.uint8)
    np.testing.assert_array_equal(read_rgb(target), colours)


def test_grey_16_bits_with_alpha(tmp_path):
    grey, alpha = noise(channels=0, dtype=np.uint16), noise(channels=0, dtype=np.uint16, seed=1)
    write_photo(tmp_path / "a.png", Photo(np.repeat(grey[..., None], 3, 2), alpha, grey=True))
    again = read_photo(tmp_path / "a.png")
    assert again.grey
    np.testing.assert_array_equal(again.pixels[..., 0], grey)
    np.testing.assert_array_equal(again.alpha, alpha)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_orientation_is_applied_and_reset(tmp_path, suffix, orientation):
    pixels = cv2.resize(noise(4, 5), (20, 16), interpolation=cv2.INTER_NEAREST)
    options = {"lossless": True} if suffix == "webp" else {"quality": 95, "subsampling": 0} if suffix == "jpg" else {}
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(pixels).save(path, exif=exif_with(orientation).tobytes(), icc_profile=SRGB, **options)
    from PIL import ImageOps

    upright = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
    np.testing.assert_array_equal(read_rgb(path), upright)
    after = round_trip(path, tmp_path / f"b.{suffix}")
    assert after.size == upright.shape[1::-1]
    assert np.abs(np.asarray(after).astype(int) - upright).mean() < 3
    assert after.getexif()[ExifTags.Base.Orientation] == 1
    assert after.getexif()[ExifTags.Base.Make] == "Maker"
    assert after.info["icc_profile"] == SRGB
    details = after.getexif().get_ifd(ExifTags.IFD.Exif)
    assert details[ExifTags.Base.ISOSpeedRatings] == 400
    assert details[ExifTags.Base.ExifImageWidth] == (17 if orientation < 5 else 13)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_are_turned_upright_too(kind, orientation, tmp_path):
    pixels = noise(dtype=np.uint16)
    write_photo(tmp_path / "a", Photo(pixels, exif=exif_with(orientation).tobytes(), format=kind))
    turns = {
        1: pixels,
        2: np.fliplr(pixels),
        3: np.rot90(pixels, 2),
        4: np.flipud(pixels),
        5: np.rot90(np.fliplr(pixels), 1),
        6: np.rot90(pixels, -1),
        7: np.rot90(np.fliplr(pixels), -1),
        8: np.rot90(pixels, 1),
    }
    np.testing.assert_array_equal(read_photo(tmp_path / "a").pixels, turns[orientation])


def test_jpeg_is_written_at_quality_95_with_full_colour_resolution(tmp_path):
    Image.fromarray(noise(64, 64)).save(tmp_path / "a.jpg", quality=60, subsampling=2)
    after = round_trip(tmp_path / "a.jpg", tmp_path / "b.jpg")
    assert [component[1:3] for component in after.layer] == [(1, 1)] * 3
    reference = io.BytesIO()
    Image.new("RGB", (8, 8)).save(reference, "JPEG", quality=95)
    assert after.quantization == Image.open(reference).quantization


def test_cmyk_comes_back_as_rgb_without_its_profile(tmp_path):
    Image.new("CMYK", (8, 6), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)
    photo = read_photo(tmp_path / "a.jpg")
    assert photo.pixels[0, 0, 0] > 200
    assert photo.pixels[0, 0, 1] < 60
    assert photo.notes
    assert round_trip(tmp_path / "a.jpg", tmp_path / "b.jpg").mode == "RGB"


def test_a_wrong_suffix_keeps_what_the_file_holds(tmp_path):
    Image.fromarray(noise(channels=4)).save(tmp_path / "a.jpg", "PNG")
    assert round_trip(tmp_path / "a.jpg", tmp_path / "b.jpg").format == "PNG"


def test_the_first_of_several_frames_is_read_with_a_note(tmp_path):
    frames = [Image.fromarray(noise(seed=seed)) for seed in range(3)]
    for suffix in ("png", "tif", "webp"):
        path = tmp_path / f"a.{suffix}"
        options = {"lossless": True} if suffix == "webp" else {}
        frames[0].save(path, save_all=True, append_images=frames[1:], **options)
        photo = read_photo(path)
        np.testing.assert_array_equal(photo.pixels, np.asarray(frames[0]))
        assert "3 frames" in photo.notes[0]


def test_webp_stays_lossless_or_lossy(tmp_path):
    for lossless in (True, False):
        Image.fromarray(noise()).save(tmp_path / "a.webp", lossless=lossless, exif=exif_with(1))
        assert read_photo(tmp_path / "a.webp").lossless is lossless
        round_trip(tmp_path / "a.webp", tmp_path / "b.webp")
        assert read_photo(tmp_path / "b.webp").lossless is lossless


@pytest.mark.parametrize("suffix", [".tif", ".png", ".jpg"])
def test_a_resolution_of_nothing_is_left_out(tmp_path, suffix):
    path = tmp_path / "scan.tif"
    nothing = IFDRational(0, 0)
    Image.new("RGB", (8, 6), "red").save(path, tiffinfo={282: nothing, 283: nothing, 296: 2})
    photo = read_photo(path)
    assert photo.resolution is None
    assert "dpi" not in kept_info(Image.open(path))
    format = {".tif": "TIFF", ".png": "PNG", ".jpg": "JPEG"}[suffix]
    write_photo(tmp_path / f"again{suffix}", dataclasses.replace(photo, format=format))
    assert read_photo(tmp_path / f"again{suffix}").pixels.shape == (6, 8, 3)


def test_xmp_and_resolution_are_kept(tmp_path):
    packet = b'<x tiff:Orientation="6" rating="5"/>'
    for suffix in ("jpg", "png", "webp", "tif"):
        photo = Photo(
            noise(),
            format={"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper()),
            xmp=packet,
            resolution=(300, 300),
        )
        write_photo(tmp_path / f"a.{suffix}", photo)
        again = read_photo(tmp_path / f"a.{suffix}")
        assert b'Orientation="1" rating="5"' in again.xmp
        if suffix != "webp":
            assert again.resolution == pytest.approx((300, 300), abs=0.1)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["jpg", "png", "webp", "bmp", "tif"]),
    st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16"]),
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(0, 9),
)
def test_any_size_and_mode_is_read_and_written(tmp_path_factory, suffix, mode, height, width, orientation):
    folder = tmp_path_factory.mktemp("photos")
    path = folder / f"a.{suffix}"
    if mode == "I;16":
        image = Image.fromarray(noise(height, width, 0, np.uint16))
    else:
        image = Image.fromarray(noise(height, width, 4)).convert(mode)
    try:
        image.save(path, **({} if suffix == "bmp" else {"exif": exif_with(orientation)}))
    except (OSError, KeyError, ValueError):
        return  # the format has no such mode
    photo = read_photo(path)
    size = (height, width) if orientation < 5 or orientation == 9 or suffix == "bmp" else (width, height)
    assert photo.pixels.shape == (*size, 3)
    assert photo.grey == (Image.open(path).mode in ("1", "L", "LA", "I;16"))
    np.testing.assert_array_equal(read_rgb(path), to_8_bits(photo.pixels))
    write_photo(folder / f"b.{suffix}", photo)
    again = read_photo(folder / f"b.{suffix}")
    assert again.pixels.shape == photo.pixels.shape
    assert again.grey == photo.grey
    if suffix in ("png", "bmp", "tif"):
        np.testing.assert_array_equal(again.pixels, photo.pixels)
        if photo.alpha is not None:
            np.testing.assert_array_equal(again.alpha, photo.alpha)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "bmp"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.6, 0.95])
def test_truncated_files_are_refused(tmp_path, suffix, share):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(noise(64, 64)).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    for read in (read_rgb, read_photo):
        with pytest.raises(UserError, match=r"a\."):
            read(path)


def test_truncated_16_bit_files_are_refused(tmp_path):
    for suffix in ("png", "tif"):
        path = tmp_path / f"a.{suffix}"
        cv2.imwrite(str(path), noise(64, 64, dtype=np.uint16))
        path.write_bytes(path.read_bytes()[:-3000])
        with pytest.raises(UserError):
            read_photo(path)


def test_a_decompression_bomb_is_refused(tmp_path):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    path = tmp_path / "bomb.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )
    for read in (read_rgb, read_photo):
        with pytest.raises(UserError, match="decompression bomb"):
            read(path)


def test_other_bad_inputs_are_short_errors(tmp_path):
    (tmp_path / "text.png").write_text("not an image")
    Image.fromarray(noise()).save(tmp_path / "a.gif")
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "float.tif")
    for path, words in {
        "missing.png": "no such file",
        "text.png": "cannot be read",
        "a.gif": "expected a JPEG",
        "float.tif": "32-bit",
        "": "folder",
    }.items():
        with pytest.raises(UserError, match=words) as error:
            read_photo(tmp_path / path)
        assert str(tmp_path / path) in str(error.value)


def test_what_a_format_cannot_hold_is_refused_and_leaves_nothing(tmp_path):
    for photo in (
        Photo(noise(dtype=np.uint16), format="JPEG"),
        Photo(noise(), noise(channels=0), format="JPEG"),
        Photo(noise(dtype=np.uint16), format="WEBP"),
    ):
        with pytest.raises(UserError, match="cannot hold"):
            write_photo(tmp_path / "a.out", photo)
    assert list(tmp_path.iterdir()) == []


def test_what_a_format_has_no_room_for_is_a_short_error_and_leaves_nothing(tmp_path):
    with pytest.raises(UserError, match="cannot be written as JPEG"):
        write_photo(tmp_path / "a.jpg", Photo(noise(), format="JPEG", exif=b"Exif\0\0" + bytes(70000)))
    assert list(tmp_path.iterdir()) == []


def test_damaged_exif_does_not_stop_a_photo(tmp_path):
    path = tmp_path / "a.jpg"
    Image.fromarray(noise()).save(path, exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(range(40)))
    photo = read_photo(path)
    assert photo.pixels.shape == (13, 17, 3)
    round_trip(path, tmp_path / "b.jpg").load()


def test_a_transparent_value_of_deep_grey_becomes_alpha(tmp_path):
    values = np.random.default_rng(0).integers(0, 65536, (6, 8)).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png", transparency=int(values[2, 3]))
    photo = read_photo(tmp_path / "a.png")
    np.testing.assert_array_equal(photo.pixels[..., 0], values)
    np.testing.assert_array_equal(photo.alpha == 0, values == values[2, 3])


def write_tiff(path, samples, **tags):
    """An uncompressed TIFF of 16-bit samples, with tags that no library at hand writes."""
    height, width, channels = samples.shape if samples.ndim == 3 else (*samples.shape, 1)
    given = {int(tag[1:]): value for tag, value in tags.items()}
    directory = ImageFileDirectory_v2()
    for tag, value in (
        {256: width, 257: height, 258: (16,) * channels, 259: 1, 277: channels, 278: height} | given
    ).items():
        directory[tag] = value
    data = samples.astype("<u2").tobytes()
    directory[273], directory[279] = 0, len(data)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8) + directory.tobytes(8) + data)
    return path


def test_deep_tiffs_of_other_kinds(tmp_path):
    grey = noise(channels=0, dtype=np.uint16)
    path = write_tiff(tmp_path / "white_is_zero.tif", grey, t262=0)
    np.testing.assert_array_equal(read_photo(path).pixels[..., 0], 65535 - grey)

    colours = noise(channels=4, dtype=np.uint16)
    alpha = colours[..., 3:] = np.maximum(colours[..., 3:], 40000)
    colours[..., :3] = np.minimum(colours[..., :3], alpha)
    read = read_photo(write_tiff(tmp_path / "multiplied.tif", colours, t262=2, t338=1))
    again = np.rint(read.pixels * (alpha / 65535))
    assert np.abs(again - colours[..., :3]).max() <= 1
    np.testing.assert_array_equal(read.alpha, alpha[..., 0])


def test_what_would_be_scrambled_or_a_preview_is_refused(tmp_path):
    colours = noise(channels=3, dtype=np.uint16)
    for name, tags, told in (
        ("planes.tif", {"t262": 2, "t284": 2}, "lie apart"),
        ("thumbnail.nef", {"t262": 2, "t254": 1}, "raw file"),
        ("a.dng", {"t262": 2, "t50706": b"\1\4\0\0"}, "raw file"),
    ):
        path = write_tiff(tmp_path / name, colours, **tags)
        with pytest.raises(UserError, match=told) as caught:
            read_photo(path)
        assert name in str(caught.value)


def test_a_tiff_that_states_no_resolution_gets_none(tmp_path):
    path = write_tiff(tmp_path / "a.tif", noise(dtype=np.uint16), t262=2)
    assert read_photo(path).resolution is None
    assert 282 not in round_trip(path, tmp_path / "b.tif").tag_v2


def test_captions_comments_and_texts_are_kept(tmp_path):
    caption = b"\x1c\x02\x78\x00\x07caption"
    thumbnail = struct.pack(">4sHHI", b"8BIM", 0x040C, 0, 6) + b"before"
    resource = struct.pack(">4sHHI", b"8BIM", 0x0404, 0, len(caption)) + caption
    segment = b"Photoshop 3.0\0" + thumbnail + resource
    extra = b"\xff\xed" + struct.pack(">H", len(segment) + 2) + segment
    Image.fromarray(noise()).save(tmp_path / "a.jpg", extra=extra, comment=b"a comment")
    after = round_trip(tmp_path / "a.jpg", tmp_path / "b.jpg")
    assert after.info["photoshop"] == {0x0404: caption}
    assert after.info["comment"] == b"a comment"
    assert read_photo(tmp_path / "b.jpg").iptc == caption


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_pngs_texts_and_colour_chunks_are_kept(tmp_path, dtype):
    chunks = ((b"gAMA", struct.pack(">I", 100000)), (b"tEXt", b"Title\0Autumn"))
    write_photo(tmp_path / "a.png", Photo(noise(dtype=dtype), png_chunks=chunks))
    after = round_trip(tmp_path / "a.png", tmp_path / "b.png")
    after.load()
    assert after.info["gamma"] == 1.0
    assert after.text["Title"] == "Autumn"


def test_lossless_animations_stay_lossless(tmp_path):
    frames = [Image.fromarray(noise(seed=seed)) for seed in (1, 2)]
    for lossless in (True, False):
        path = tmp_path / f"{lossless}.webp"
        frames[0].save(path, save_all=True, append_images=frames[1:], lossless=lossless)
        assert read_photo(path).lossless == lossless


@pytest.mark.parametrize("kind", ["JPEG", "BMP", "PNG", "WEBP", "TIFF"])
def test_a_full_disk_leaves_nothing(tmp_path, kind):
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    photo = Photo(noise(200, 200), format=kind, lossless=True)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))  # as if there were no more room
    try:
        with pytest.raises(OSError, match="too large"):
            write_photo(tmp_path / "a", photo)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []
