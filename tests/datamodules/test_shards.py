import io
import json
import tarfile

import cv2
import numpy as np
import pytest
from PIL import Image

from restorevar.datamodules.kinds import KINDS
from restorevar.datamodules.manifest import Row
from restorevar.datamodules.shards import INDEX, index_shards, read_index, read_member, write_shards
from restorevar.datamodules.sources import Shards
from restorevar.errors import UserError
from restorevar.restoration.photo import read_rgb

ROWS = [Row(f"input/{i:03}.png", f"target/{i:03}.png", "low_light", "S") for i in range(5)]


def test_members_are_the_files(pairs, tmp_path):
    Image.open(pairs / "input" / "001.png").convert("L").save(pairs / "input" / "001.png")
    turned = Image.open(pairs / "target" / "002.png")
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(pairs / "target" / "002.jpg", exif=exif, quality=95)
    rows = [*ROWS[:2], ROWS[2]._replace(target_path="target/002.jpg")]
    write_shards(rows, pairs, tmp_path / "shards")
    samples = read_index(tmp_path / "shards")
    assert len(samples) == 3
    for row, (degraded, clean, fields) in zip(rows, samples, strict=True):
        np.testing.assert_array_equal(read_member(degraded), read_rgb(pairs / row.image_path))
        np.testing.assert_array_equal(read_member(clean), read_rgb(pairs / row.target_path))
        assert fields == {"path": row.image_path, "degradation": "low_light", "dataset": "S"}


def test_collections_larger_than_a_shard_are_split(pairs, tmp_path, monkeypatch):
    count = write_shards(ROWS, pairs, tmp_path / "shards", shard_megabytes=0.02)
    assert count > 1
    assert len(list((tmp_path / "shards").glob("*.tar"))) == count
    assert len(Shards("shards").collect(tmp_path).records) == 5
    with pytest.raises(UserError, match=r"has a file index\.json already"):
        write_shards(ROWS, pairs, tmp_path / "shards")


@pytest.mark.parametrize("name", ["000000.tar", "000007.tar", "mine.tar", ".000001.x.part.tar"])
def test_no_tar_file_is_replaced_indexed_or_deleted(pairs, tmp_path, name):
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / name).write_bytes(b"of an interrupted run, or something else")
    for rows in (ROWS, [ROWS[0]._replace(image_path="none.png")]):
        with pytest.raises(UserError, match=f"has a file {name} already; choose another folder"):
            write_shards(rows, pairs, tmp_path / "shards")
    assert [path.read_bytes()[:2] for path in (tmp_path / "shards").iterdir()] == [b"of"]


def test_a_bad_file_leaves_no_shards_behind(pairs, tmp_path):
    (pairs / "target" / "004.png").unlink()
    for folder in (tmp_path / "shards", tmp_path):
        with pytest.raises(UserError, match=r"004\.png: no such file"):
            write_shards(ROWS, pairs, folder, shard_megabytes=0.02)
        assert not list(tmp_path.rglob("*.tar"))
        assert not (tmp_path / "shards").exists()


def test_clean_photos_are_degraded_on_the_fly(photos, tmp_path):
    write_shards([Row(str(path), "", "clean", "P") for path in sorted(photos.iterdir())], photos, tmp_path / "shards")
    collection = Shards("shards", {"haze": 1.0}, (0.2, 0.4)).collect(tmp_path)
    assert len(collection.records) == 12
    assert all(record.made and record.kind is None for record in collection.records)
    assert (dict(collection.kinds), collection.severity) == ({"haze": 1.0}, (0.2, 0.4))


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("", {"kinds": ["haze"]}, r"kinds: found \['haze'\], but \S+ holds clean photos; leave it out"),
        ("", {"weight": 1.0}, "weight: found 1.0, but .* holds clean photos"),
        ("target/000.png", {"degradations": {"haze": 1.0}}, "degradations: found {'haze': 1.0}, but .* holds pairs"),
        ("target/000.png", {"severity": (0.0, 1.0)}, "severity: found .* holds pairs"),
        ("target/000.png", {"kinds": ["haze"]}, "no pair of the `kinds`"),
        ("target/000.png", {"weight": 0.0}, "none above 0"),
    ],
)
def test_options_for_another_sort_of_shards_are_refused(pairs, tmp_path, target, options, message):
    write_shards([ROWS[0]._replace(target_path=target)], pairs, tmp_path / "shards")
    with pytest.raises(UserError, match=message):
        Shards("shards", **options).collect(tmp_path)
    every = Shards("shards").collect(tmp_path)
    assert dict(every.kinds) == ({"low_light": 1.0} if target else dict.fromkeys(KINDS, 1.0))
    assert every.severity == (0.0, 1.0)


def test_a_changed_or_missing_shard_is_noticed(pairs, tmp_path):
    write_shards(ROWS, pairs, tmp_path)
    shard = tmp_path / "000000.tar"
    data = shard.read_bytes()
    shard.write_bytes(data[:-512])
    with pytest.raises(UserError, match=rf"{shard}: {len(data) - 512} bytes, but the index says {len(data)}"):
        read_index(tmp_path)
    shard.unlink()
    with pytest.raises(UserError, match="missing, but the index says"):
        read_index(tmp_path)
    (tmp_path / INDEX).write_text("[]")
    with pytest.raises(UserError, match="not an index of version 1"):
        read_index(tmp_path)
    (tmp_path / INDEX).unlink()
    with pytest.raises(UserError, match="manifest index"):
        read_index(tmp_path)


@pytest.mark.parametrize(
    "shards",
    [
        None,
        3,
        [{}],
        [3],
        [{"name": 3}],
        [{"samples": None}],
        [{"samples": [{}]}],
        [{"samples": [{"key": "1", "fields": {}}]}],
        [{"samples": [{"key": "1", "fields": [], "clean": [512, 10]}]}],
        [{"samples": [{"key": "1", "fields": {}, "clean": 512}]}],
        [{"samples": [{"key": "1", "fields": {}, "clean": [512, -1]}]}],
        [{"samples": [{"key": "1", "fields": {}, "clean": [512, 10**9]}]}],
        [{"samples": [{"key": "1", "fields": {}, "clean": ["x", None]}]}],
        [{"samples": [{"fields": {}, "clean": [512, 10]}]}],
    ],
)
def test_a_damaged_index_is_a_user_error(pairs, tmp_path, shards):
    write_shards(ROWS, pairs, tmp_path)
    (whole,) = json.loads((tmp_path / INDEX).read_text())["shards"]
    if isinstance(shards, list) and isinstance(shards[0], dict) and shards[0]:
        shards = [{**whole, **shards[0]}]
    (tmp_path / INDEX).write_text(json.dumps({"version": 1} | ({} if shards is None else {"shards": shards})))
    with pytest.raises(UserError, match=rf"index\.json: damaged, an entry .*; write it anew .* index {tmp_path}"):
        read_index(tmp_path)
    (tmp_path / INDEX).write_text("[" * 200_000)
    with pytest.raises(UserError, match=r"index\.json: not JSON"):
        read_index(tmp_path)


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    archive.addfile(entry, io.BytesIO(data))


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("1.clean.pkl", b"x", "found '1.clean.pkl'"),
        ("1.py", b"x", r"found '1\.py'"),
        ("../1.clean.png", b"x", r"\.\./1|found"),
        ("1.json", b"{", "is not JSON"),
        ("1.json", b"[]", "is a list; expected an object"),
        ("1.json", b"[" * 200_000, "is not JSON"),
        ("1.degraded.png", b"x", "has no clean image"),
        ("0.clean.jpg", b"x", r"found '0\.clean\.jpg' and another 0\.clean"),
    ],
)
def test_only_images_and_json_are_accepted(tmp_path, name, data, message):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        add(archive, "0.clean.png", b"x")
        add(archive, name, data)
    with pytest.raises(UserError, match=message):
        index_shards(tmp_path)
    assert not (tmp_path / INDEX).exists()


def saved(image: Image.Image, kind: str, orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    image.save(file, kind, **({"exif": exif} if orientation > 1 else {}))
    return file.getvalue()


def test_members_made_by_hand_are_read_as_files_are(photos, tmp_path):
    photo = Image.open(photos / "000.png")
    deep = np.asarray(photo, np.uint16) * 257
    contents = {
        "grey.png": saved(Image.fromarray(deep[..., 0]), "PNG"),
        "deep.png": cv2.imencode(".png", deep)[1].tobytes(),
        "turned.png": saved(photo, "PNG", 6),
        "turned.jpg": saved(photo, "JPEG", 8),
        "turned.webp": saved(photo, "WEBP", 3),
        "cmyk.jpg": saved(photo.convert("CMYK"), "JPEG"),
        "a#b.png": saved(photo, "PNG"),
    }
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for number, (name, content) in enumerate(contents.items()):
            (tmp_path / name).write_bytes(content)
            add(archive, f"{number}{name.replace('.', '.clean.')}", content)
    index_shards(tmp_path)
    for name, (_, clean, _) in zip(contents, read_index(tmp_path), strict=True):
        np.testing.assert_array_equal(read_member(clean), read_rgb(tmp_path / name), err_msg=name)
    assert read_rgb(tmp_path / "turned.png").shape == (60, 40, 3)
    np.testing.assert_array_equal(read_rgb(tmp_path / "grey.png")[..., 1], np.asarray(photo)[..., 0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (saved(Image.new("RGB", (20, 20)), "JPEG")[:300], "damaged or truncated"),
        (b"", r"an empty file \(0 bytes\)"),
        (b"text", "cannot be read as an image"),
    ],
)
def test_a_damaged_image_names_shard_and_member(tmp_path, content, message):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        add(archive, "1.clean.jpg", content)
        add(archive, "1.json", json.dumps({"dataset": "S"}).encode())
    index_shards(tmp_path)
    ((_, clean, _),) = read_index(tmp_path)
    with pytest.raises(UserError, match=rf"a\.tar#\S*1\.clean: {message}") as caught:
        read_member(clean)
    assert "BytesIO" not in str(caught.value)


def test_what_is_no_tar_file_is_named(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x.tar").write_bytes(b"no tar" * 200)
    with pytest.raises(UserError, match=r"x\.tar: not an uncompressed tar"):
        index_shards(tmp_path / "b")
