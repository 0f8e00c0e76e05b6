import dataclasses
import json
import logging
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from restorevar.datamodules import dataset as dataset_module
from restorevar.datamodules.batch import collate, to_tensor
from restorevar.datamodules.dataset import (
    FixedDataset,
    Geometry,
    Pool,
    Skips,
    TrainingDataset,
    cut,
    resize,
)
from restorevar.datamodules.degradations import degrade
from restorevar.datamodules.kinds import KINDS
from restorevar.datamodules.manifest import Row, write_manifest
from restorevar.datamodules.sampler import Draw
from restorevar.datamodules.sources import CleanPhotos, FixedDegradations, Manifest, PairedFolders, Record, read_depth
from restorevar.errors import UserError
from restorevar.restoration.photo import read_rgb


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 200), st.integers(1, 200), st.integers(1, 64), st.integers(1, 64),
    st.sampled_from([None, (1.0, 1.0), (1.125, 1.125), (1.0, 3.0)]), st.integers(0, 9),
)  # fmt: skip
def test_the_crop_lies_in_the_resized_photo(height, width, crop_height, crop_width, short_side, seed):
    geometry = Geometry((crop_height, crop_width), short_side)
    for generator in (None, np.random.default_rng(seed)):
        size, (top, left, *cropped) = geometry.plan((height, width, 3), generator)
        assert tuple(cropped) == (crop_height, crop_width)
        assert 0 <= top <= size[0] - crop_height
        assert 0 <= left <= size[1] - crop_width
        if short_side == (1.125, 1.125) and height == width and crop_height == crop_width:
            assert size == (max(crop_height, round(crop_height * 1.125)),) * 2
        if short_side is None and height >= crop_height and width >= crop_width:
            assert size == (height, width)


def test_photos_are_not_enlarged_more_than_the_lower_end_asks_for():
    geometry = Geometry((64, 64), (1.0, 4.0))
    sizes = [geometry.plan((100, 150, 3), np.random.default_rng(seed))[0] for seed in range(200)]
    assert min(sizes)[0] < 70
    assert 95 < max(sizes)[0] <= 100


@pytest.mark.parametrize("resize_filter", ["lanczos", "area"])
def test_resizing_a_crop_equals_cropping_the_resized_photo(photos, resize_filter):
    photo = np.asarray(Image.open(photos / "000.png"))
    geometry = Geometry((1, 1), resize_filter=resize_filter)
    sizes = [(25, 37), (80, 120), (40, 60), (30, 61)]
    for size, crop in zip(sizes, [(3, 5, 16, 20), (64, 0, 16, 120), (1, 2, 3, 4), (2, 8, 16, 20)], strict=True):
        if resize_filter == "area" and size == (25, 37):
            whole = cv2.resize(photo, size[::-1], interpolation=cv2.INTER_AREA)
        else:  # `area` would repeat pixels on an axis that is enlarged
            whole = np.asarray(Image.fromarray(photo).resize(size[::-1], Image.Resampling.LANCZOS))
        assert (resize(photo, size, resize_filter) == whole).all()
        difference = geometry.resized_crop(photo, size, crop).astype(int) - cut(whole, crop)
        assert np.abs(difference).max() <= 2  # both passes round to 8 bits


def pool_of(folder, kind="clean", **options) -> Pool:
    records = [Record(str(path), None, None, "P", made=True) for path in sorted(folder.iterdir())]
    return Pool(kind, records, options.get("severity", (0.2, 0.8)))


def test_a_sample_hangs_on_seed_epoch_and_position_only(photos):
    pool = pool_of(photos, "low_light")
    make = [TrainingDataset([pool], Geometry((16, 16), (1.0, 2.0)), seed) for seed in (0, 0, 1)]
    one = make[0][Draw(2, 7, 0, 3)]
    assert one["degraded"].shape == (3, 16, 16)
    assert (one["kind"], one["dataset"]) == ("low_light", "P")
    assert one["clean"].min() >= -1
    assert one["clean"].max() <= 1
    assert (one["degraded"] == make[1][Draw(2, 7, 0, 3)]["degraded"]).all()
    for other in (make[2][Draw(2, 7, 0, 3)], make[0][Draw(3, 7, 0, 3)], make[0][Draw(2, 8, 0, 3)]):
        assert (one["degraded"] != other["degraded"]).any()


def test_the_cache_keeps_the_photos_read_last_and_changes_no_sample(photos, monkeypatch):
    reads = []
    monkeypatch.setattr(dataset_module, "read_image", lambda path: reads.append(path) or read_rgb(path))
    draws = [Draw(0, position, 0, record) for position, record in enumerate((0, 1, 0, 1, 2, 0))]
    plain = TrainingDataset([pool_of(photos, "haze")], Geometry((16, 16)), 0)
    without = [plain[draw]["degraded"].tolist() for draw in draws]
    reads.clear()
    cached = TrainingDataset([pool_of(photos, "haze")], Geometry((16, 16)), 0)
    cached.cache._limit = 2 * 40 * 60 * 3  # two photos
    assert [cached[draw]["degraded"].tolist() for draw in draws] == without
    assert [int(path[-7:-4]) for path in reads] == [0, 1, 2, 0]


def test_the_cache_keeps_both_images_of_pairs(pairs, monkeypatch):
    reads = []
    monkeypatch.setattr(dataset_module, "read_image", lambda path: reads.append(path) or read_rgb(path))
    records = PairedFolders("input", "target", "low_light").collect(pairs).records
    pool = Pool("low_light", records, (0, 1))
    draws = [Draw(epoch, position, 0, position % 5) for epoch in range(2) for position in range(5)]
    # crops of the photo's own size are views of what is kept
    for geometry in (Geometry((40, 60), None, vertical_flip=True), Geometry((16, 24))):
        kept, plain = (TrainingDataset([pool], geometry, 0, None, megabytes) for megabytes in (1, 0))
        reads.clear()
        found = [kept[draw] for draw in draws]
        assert not kept.cache.read(records[0].clean).flags.writeable
        assert len(reads) == len(set(reads)) == 10
        for sample, draw in zip(found, draws, strict=True):
            expected = plain[draw]
            assert all(torch.equal(sample[name], expected[name]) for name in ("degraded", "clean"))


@pytest.mark.parametrize("kind", [*KINDS, "clean"])
def test_what_is_kept_is_not_written_to(photos, kind):
    records = CleanPhotos([str(photos)], gamma=(1.0, 1.0)).collect(photos).records
    kept, plain = (
        TrainingDataset([Pool(kind, records, (0.5, 0.5))], Geometry((40, 60), None), 0, None, megabytes)
        for megabytes in (1, 0)
    )
    for position in range(4):
        draw = Draw(0, position, 0, position % 2)
        assert torch.equal(kept[draw]["degraded"], plain[draw]["degraded"])
        assert torch.equal(kept[draw]["clean"], plain[draw]["clean"])


def test_pairs_are_cropped_and_flipped_together(pairs):
    records = PairedFolders("input", "target", "low_light").collect(pairs).records
    dataset = TrainingDataset([Pool("low_light", records, (0, 1))], Geometry((16, 24), None, True, True), 0)
    crops = set()
    for position in range(12):
        sample = dataset[Draw(0, position, 0, 1)]
        degraded, clean = (np.round((sample[key].numpy() + 1) * 127.5).astype(int) for key in ("degraded", "clean"))
        assert (degraded == clean // 2).all()
        crops.add(clean.tobytes())
    assert len(crops) == 12


def test_clean_pairs_are_equal_for_both_kinds_of_record(photos, pairs):
    records = PairedFolders("input", "target", "rain").collect(pairs).records
    for pool in (pool_of(photos), Pool("clean", records, (0.0, 0.0))):
        sample = TrainingDataset([pool], Geometry((16, 16)), 0)[Draw(0, 0, 0, 0)]
        assert sample["kind"] == "clean"
        assert (sample["degraded"] == sample["clean"]).all()


@pytest.mark.parametrize("kind", ["clean", "snow"])
def test_gamma_darkens_the_photo_before_it_is_degraded(photos, kind):
    def samples(gamma, position):
        records = CleanPhotos([str(photos)], gamma=gamma).collect(photos).records
        dataset = TrainingDataset([Pool(kind, records, (0.5, 0.5))], Geometry((16, 16)), 0)
        sample = dataset[Draw(0, position, 0, 3)]
        return ((sample[key].numpy() + 1) / 2 for key in ("degraded", "clean"))

    exponents = []
    for position in range(8):
        _, plain = samples((1.0, 1.0), position)
        _, squared = samples((2.0, 2.0), position)
        assert np.abs(squared - plain**2).max() <= 0.5 / 255 + 1e-6
        degraded, clean = samples((1.5, 3.0), position)
        if kind == "clean":
            assert (degraded == clean).all()
            middle = (plain > 0.3) & (plain < 0.7)  # where rounding matters least
            exponents.append(np.median(np.log(clean[middle]) / np.log(plain[middle])))
        else:
            assert (degraded != clean).any()
    if kind == "clean":
        assert 1.4 < min(exponents) < 2.1 < max(exponents) < 3.1


def test_fixed_samples_store_their_parameters_and_can_be_made_again(photos):
    source = FixedDegradations([str(photos)], ["haze", "low_light"], [0.0, 0.6], limit=2)
    records = source.collect(photos).records
    dataset = FixedDataset(records, None)
    for record, sample in zip(records, dataset, strict=True):
        photo = np.asarray(Image.open(record.path))
        parameters = json.loads(sample["parameters"])
        again, used = degrade(photo, record.kind, record.severity, record.seed)
        assert parameters == json.loads(json.dumps(used))
        assert sample["severity"] == record.severity
        assert sample["degraded"].shape == (3, 40, 60)
        assert ((sample["degraded"] - to_tensor(again)).abs() <= 2 / 255 + 1e-6).float().mean() >= 0.999
        assert (sample["clean"] == to_tensor(photo)).all()
    cropped = FixedDataset(records, Geometry((24, 24)))[2]
    assert cropped["degraded"].shape == cropped["clean"].shape == (3, 24, 24)
    assert (FixedDataset(records, Geometry((24, 24)))[2]["degraded"] == cropped["degraded"]).all()


@pytest.mark.parametrize("parameters", ["{'drops': __import__('numpy').int64(3)}", "{'drops': 1, 2: 3}"])
def test_parameters_that_are_not_fit_for_json_are_told(photos, tmp_path, monkeypatch, parameters):
    module = f"weather_{len(parameters)}"
    (tmp_path / f"{module}.py").write_text(f"def dust(view, severity):\n    return view.display(), {parameters}\n")
    monkeypatch.syspath_prepend(tmp_path)
    records = FixedDegradations([str(photos)], [f"{module}.dust"], limit=1).collect(photos).records
    with pytest.raises(UserError, match=rf"000\.png: degradation '{module}\.dust' returned .* not fit for JSON \(.*\)"):
        FixedDataset(records, None)[0]


def broken(folder):
    names = sorted(folder.iterdir())
    names[0].write_bytes(b"")
    names[1].write_bytes(names[1].read_bytes()[:60])
    return names[:2]


def test_a_broken_file_stops_training_or_is_skipped_and_counted(photos, caplog):
    bad = broken(photos)
    draws = [Draw(0, position, 0, position % 12) for position in range(24)]
    strict = TrainingDataset([pool_of(photos)], Geometry((16, 16)), 0)
    with pytest.raises(UserError, match=bad[0].name):
        strict[draws[0]]
    skips = Skips()
    dataset = TrainingDataset([pool_of(photos)], Geometry((16, 16)), 0, skips)
    with caplog.at_level(logging.WARNING):
        paths = [dataset[draw]["path"] for draw in draws]
    assert skips.count == 4, "samples are counted, not the files tried for them"
    assert not {str(path) for path in bad} & set(paths)
    warned = [record.message for record in caplog.records if "skipped" in record.message]
    assert len(warned) == len(set(warned)) == 2
    workers = DataLoader(dataset, batch_size=4, sampler=draws, num_workers=2, collate_fn=collate)
    before = skips.count
    assert [path for batch in workers for path in batch["path"]] == paths
    assert skips.count == 2 * before, "skips in workers are counted too"


def test_a_broken_file_of_a_fixed_set_stops_or_is_replaced_by_the_next(photos, caplog):
    bad = broken(photos)
    records = FixedDegradations([str(photos)], ["rain"]).collect(Path(".")).records
    index = [record.path for record in records].index(str(bad[0]))
    with pytest.raises(UserError, match=bad[0].name):
        FixedDataset(records, Geometry((16, 16)))[index]
    skips = Skips()
    dataset = FixedDataset(records, Geometry((16, 16)), skips=skips)
    sample = dataset[index]
    good = next(r for r in (*records[index:], *records) if r.path not in {str(path) for path in bad})
    assert sample["path"] == good.path
    assert torch.equal(sample["clean"], dataset[records.index(good)]["clean"])
    assert skips.count == 1  # though the next is broken too
    assert bad[0].name in caplog.text


def test_errors_name_the_row_of_the_manifest(pairs):
    rows = [Row(f"input/{i:03}.png", f"target/{i:03}.png", "rain", "mine") for i in range(5)]
    write_manifest(pairs / "list.json", rows)
    (pairs / "target" / "003.png").write_bytes(b"")
    records = Manifest("list.json").collect(pairs).records
    message = r"list\.json, row 4: .*target.003\.png: an empty file \(0 bytes\)"
    with pytest.raises(UserError, match=message):
        FixedDataset(records, None)[3]
    with pytest.raises(UserError, match=message):
        TrainingDataset([Pool("rain", records, (0, 1))], Geometry((16, 16)), 0)[Draw(0, 0, 0, 3)]


@pytest.mark.parametrize("size", [(1, 12_000), (12_000, 1)])
def test_a_photo_that_would_become_enormous_is_named(tmp_path, size):
    Image.new("RGB", size).save(tmp_path / "line.png")
    records = CleanPhotos([str(tmp_path)], {"rain": 1}).collect(Path(".")).records
    dataset = TrainingDataset([Pool("rain", records, (0, 1))], Geometry((256, 256)), 0)
    with pytest.raises(UserError, match=r"line\.png: \d+ x \d+ pixels would be .*leave this photo out"):
        dataset[Draw(0, 0, 0, 0)]


def test_a_depth_map_may_have_holes(photos, tmp_path):
    depth = np.linspace(0, 1, 40 * 60, dtype=np.float32).reshape(40, 60)
    depth[:10], depth[10:12] = np.nan, np.inf
    np.save(tmp_path / "map.npy", depth)
    read = read_depth(str(tmp_path / "map.npy"), (80, 120))
    assert np.isfinite(read).mean() > 0.6
    photo = np.zeros((80, 120, 3), np.uint8)
    far = degrade(photo, "haze", 1.0, 0, depth=read)[0][:8].mean()
    assert far > degrade(photo, "haze", 1.0, 0, depth=read)[0][30:40].mean()
    np.save(tmp_path / "map.npy", np.full((40, 60), np.nan))
    with pytest.raises(UserError, match=r"map\.npy: no depth map; .*finite"):
        read_depth(str(tmp_path / "map.npy"), (80, 120))


def test_a_file_that_is_no_depth_map_is_named(tmp_path):
    np.savez(tmp_path / "several.npz", np.ones((4, 4)))
    (tmp_path / "several.npz").rename(tmp_path / "several.npy")
    np.save(tmp_path / "cut.npy", np.ones((4, 4)))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:-8])
    for name in ("empty.npy", "empty.png"):
        (tmp_path / name).touch()
    for name in ("several.npy", "cut.npy", "empty.npy", "empty.png", "missing.npy"):
        with pytest.raises(UserError, match=rf"{name}: cannot be read as a depth map"):
            read_depth(str(tmp_path / name), (8, 8))


def test_a_pool_of_broken_files_ends_in_an_error(photos):
    for path in photos.iterdir():
        path.write_bytes(b"broken")
    with pytest.raises(UserError, match="cannot be read"):
        TrainingDataset([pool_of(photos)], Geometry((16, 16)), 0, Skips())[Draw(0, 0, 0, 0)]


def test_unequal_sizes_and_borders(tmp_path):
    clean = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(clean).save(tmp_path / "clean.png")
    Image.fromarray(clean[10:-10, 10:-10]).save(tmp_path / "hazy.png")
    record = Record(str(tmp_path / "hazy.png"), str(tmp_path / "clean.png"), "haze", "S")
    with pytest.raises(UserError, match=r"44 x 28 pixels, but its clean image .* 64 x 48"):
        FixedDataset([record], None)[0]
    bordered = Record(record.path, record.clean, "haze", "S", center_crop=True)
    sample = FixedDataset([bordered], None)[0]
    assert (sample["degraded"] == sample["clean"]).all()


@pytest.mark.parametrize("suffix", [".npy", ".png"])
def test_a_depth_map_beside_the_photo_is_used(photos, tmp_path, suffix):
    ramp = np.tile(np.linspace(0, 60000, 60), (40, 1)).astype(np.uint16)
    (tmp_path / "depth").mkdir()
    for number in (0, 1):
        target = tmp_path / "depth" / f"{number:03}{suffix}"
        np.save(target, ramp) if suffix == ".npy" else Image.fromarray(ramp).save(target)
    records = CleanPhotos([str(photos)], {"haze": 1.0}, depth=str(tmp_path / "depth")).collect(tmp_path).records
    assert [record.depth is not None for record in records[:3]] == [True, True, False]
    record = dataclasses.replace(records[0], kind="haze", severity=0.8, seed=1)
    photo = np.asarray(Image.open(record.path))
    expected = to_tensor(degrade(photo, "haze", 0.8, 1, depth=ramp.astype(np.float32))[0])
    assert (FixedDataset([record], None)[0]["degraded"] == expected).all()
    assert (FixedDataset([dataclasses.replace(record, depth=None)], None)[0]["degraded"] != expected).any()
    sample = TrainingDataset([Pool("haze", records, (0.5, 1))], Geometry((16, 16)), 0)[Draw(0, 0, 0, 0)]
    assert sample["degraded"].shape == (3, 16, 16)
    (tmp_path / "depth" / f"000{suffix}").write_bytes(b"no map")
    with pytest.raises(UserError, match=rf"000\{suffix}"):
        FixedDataset([record], None)[0]


ODD = {
    "grey.png": lambda: Image.new("L", (30, 20), 77),
    "deep.png": lambda: Image.fromarray(np.full((20, 30), 30000, np.uint16)),
    "alpha.png": lambda: Image.new("RGBA", (30, 20), (9, 99, 199, 100)),
    "cmyk.jpg": lambda: Image.new("CMYK", (30, 20), (0, 50, 100, 10)),
    "palette.png": lambda: Image.new("RGB", (30, 20), (200, 30, 60)).convert("P"),
    "one pixel.png": lambda: Image.new("RGB", (1, 1), (1, 2, 3)),
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("kind", ["haze", "rain", "snow", "low_light", "motion_blur", "mixed"])
def test_odd_photos_become_ordinary_samples(tmp_path, name, kind):
    ODD[name]().save(tmp_path / name)
    pool = pool_of(tmp_path, kind)
    sample = TrainingDataset([pool], Geometry((16, 16)), 0)[Draw(0, 0, 0, 0)]
    assert sample["degraded"].shape == sample["clean"].shape == (3, 16, 16)
    assert sample["degraded"].isfinite().all()


def test_a_share_of_degraded_images_went_through_jpeg(tmp_path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    pools = [Pool("clean", [Record(str(tmp_path / "a.png"), None, None, "set")], (0.0, 0.0))]
    geometry = Geometry((32, 32), None)
    plain, some, fine, coarse = (
        TrainingDataset(pools, geometry, 0, jpeg_share=share, jpeg_quality=quality)
        for share, quality in ((0.0, (50, 95)), (0.5, (50, 95)), (1.0, (95, 95)), (1.0, (50, 50)))
    )

    def loss(dataset, position):
        sample = dataset[Draw(0, position, 0, 0)]
        assert torch.equal(sample["clean"], plain[Draw(0, position, 0, 0)]["clean"])
        return float((sample["degraded"] - sample["clean"]).abs().mean())

    assert 5 < sum(loss(some, position) > 0 for position in range(20)) < 15
    assert loss(plain, 0) == 0 < loss(fine, 0) < loss(coarse, 0)


def test_colours_are_permuted_alike_in_both_images(tmp_path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    records = [Record(str(tmp_path / "a.png"), None, None, "set")]
    geometry = Geometry((32, 32), None, horizontal_flip=False)
    pools = [Pool("clean", records, (0.0, 0.0))]
    plain, permuted = (TrainingDataset(pools, geometry, 0, permute_colors=flag) for flag in (False, True))
    orders = set()
    for position in range(20):
        draw = Draw(0, position, 0, 0)
        before, after = plain[draw]["clean"], permuted[draw]
        assert (after["clean"] == after["degraded"]).all()
        order = tuple(next(i for i in range(3) if (before[i] == channel).all()) for channel in after["clean"])
        assert sorted(order) == [0, 1, 2]
        orders.add(order)
    assert len(orders) > 3
