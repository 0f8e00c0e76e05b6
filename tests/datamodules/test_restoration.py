import json
import os
import subprocess
import sys
from collections import Counter
from itertools import chain, pairwise
from pathlib import Path

import pytest
import torch

from restorevar.datamodules import (
    CleanPhotos,
    FixedDegradations,
    Manifest,
    PairedFolders,
    Photos,
    PublicSet,
    RestorationDataModule,
    Shards,
)
from restorevar.datamodules.manifest import Row, write_manifest
from restorevar.datamodules.restoration import training_tasks
from restorevar.datamodules.shards import write_shards
from restorevar.errors import UserError

from .conftest import write_photos
from .resume_script import run

KINDS = ("haze", "rain", "snow", "low_light", "motion_blur")


def module(folder, **options) -> RestorationDataModule:
    defaults = {
        "train": [CleanPhotos(["photos"]), PairedFolders("set/input", "set/target", "low_light")],
        "root": str(folder),
        "image_size": 16,
        "batch_size": 4,
    }
    data = RestorationDataModule(**(defaults | options))
    data.setup()
    return data


def fingerprints(batches):
    return [
        (kind, Path(path).name, float(image.double().sum()))
        for batch in batches
        for kind, path, image in zip(batch["kind"], batch["path"], batch["degraded"], strict=True)
    ]


def test_without_random_crops_every_epoch_has_the_same_crops(photos, pairs):
    still = module(photos.parent, random_crop=False, horizontal_flip=False, resize_short_side=(1.0, 2.0))
    assert still.moving_crops == []
    loader = still.train_dataloader()
    keys: dict[str, set[str]] = {}
    crops = {}
    for epoch in range(2):
        loader.epoch_sampler.set_epoch(epoch)
        for batch in loader:
            for path, key, clean in zip(batch["path"], batch["clean_key"], batch["clean"], strict=True):
                keys.setdefault(path, set()).add(key)
                crops.setdefault(key, clean)
                assert torch.equal(crops[key], clean)
    assert all(len(found) == 1 for found in keys.values())
    assert len(crops) == len(keys)


def test_what_moves_crops(photos, pairs):
    moving = module(photos.parent, permute_colors=True)
    assert moving.moving_crops == ["random_crop", "horizontal_flip", "permute_colors"]
    assert "clean_key" not in next(iter(moving.train_dataloader()))
    # clean pixels that are new in every epoch would fill a cache of latents for ever
    train = [CleanPhotos(["photos"]), CleanPhotos(["photos"], gamma=(1.2, 3.0))]
    dark = module(photos.parent, train=train, random_crop=False, horizontal_flip=False)
    assert dark.moving_crops == ["train.gamma"]
    assert "clean_key" not in next(iter(dark.train_dataloader()))


def test_batches_have_the_fixed_keys(photos, pairs):
    fixed = [FixedDegradations(["photos"], ["haze", "rain"], [0.5], limit=2)]
    data = module(photos.parent, val=fixed, test=fixed, predict=[Photos(["photos"])])
    batch = next(iter(data.train_dataloader()))
    assert set(batch) == {"degraded", "clean", "kind", "dataset", "path"}
    assert batch["degraded"].shape == batch["clean"].shape == (4, 3, 16, 16)
    assert batch["degraded"].dtype == torch.float32
    assert -1 <= batch["degraded"].min() < 0 < batch["clean"].max() <= 1
    val = next(iter(data.val_dataloader()))
    assert val["degraded"].shape == (4, 3, 16, 16)
    assert val["kind"] == ["haze", "rain", "haze", "rain"]
    assert val["severity"] == [0.5] * 4
    assert json.loads(val["parameters"][0])
    test = next(iter(data.test_dataloader()))
    assert test["degraded"].shape == test["clean"].shape == (1, 3, 40, 60)
    predict = next(iter(data.predict_dataloader()))
    assert predict["degraded"].shape == (1, 3, 40, 60)
    assert "clean" not in predict


def test_all_loaders_pin_memory_if_asked(photos):
    fixed = [FixedDegradations(["photos"], ["haze"])]
    for flag in (False, True):
        data = module(photos.parent, train=[], val=fixed, test=fixed, predict=[Photos(["photos"])], pin_memory=flag)
        loaders = (data.val_dataloader(), data.test_dataloader(), data.predict_dataloader())
        assert [loader.pin_memory for loader in loaders] == [flag] * 3


def test_an_epoch_is_the_sum_of_counts_with_tasks_equal_and_a_share_of_clean_pairs(photos, pairs):
    data = module(photos.parent, train=[
        CleanPhotos(["photos"], {"haze": 1.0, "rain": 1.0}, repeat=10),
        PairedFolders("set/input", "set/target", "low_light", repeat=4),
    ], clean_share=0.1, batch_size=1)  # fmt: skip
    loader = data.train_dataloader()
    assert len(loader) == 12 * 10 + 5 * 4
    seen = Counter(kind for kind, _, _ in fingerprints(loader))
    assert seen == {"haze": 42, "rain": 42, "low_light": 42, "clean": 14}


def test_clean_pairs_come_from_all_clean_images_each_counted_once(photos, pairs):
    rows = [Row(f"input/{i:03}.png", f"target/{i:03}.png", "haze" if i else "clean", "set") for i in range(5)]
    write_manifest(pairs / "list.json", rows)
    sources = [Manifest("set/list.json", repeat=2), CleanPhotos(["photos"], {"haze": 1.0, "clean": 1.0})]
    collections = [source.collect(photos.parent) for source in sources]
    pools, tasks = training_tasks(collections, clean_share=0.1)
    (clean,) = [task for task in tasks if task.name == "clean"]
    drawn = Counter()
    for pool, count in zip(clean.pools, clean.counts, strict=True):
        records = pools[pool].records
        drawn.update({record.clean or record.path: count // len(records) for record in records})
    assert drawn == {str(pairs / row.target_path): 2 for row in rows} | {str(path): 1 for path in photos.iterdir()}


def test_weights_set_the_shares(photos):
    data = module(photos.parent, train=[CleanPhotos(["photos"], {"haze": 3.0, "rain": 1.0}, repeat=2)], batch_size=1)
    assert Counter(kind for kind, _, _ in fingerprints(data.train_dataloader())) == {"haze": 18, "rain": 6}


def test_a_degradation_of_the_users_own_is_an_import_path(photos):
    own = "restorevar.datamodules.degradations.haze.haze"
    data = module(photos.parent, train=[CleanPhotos(["photos"], {own: 1.0, "rain": 1.0})], batch_size=1)
    assert Counter(kind for kind, _, _ in fingerprints(data.train_dataloader())) == {"haze": 6, "rain": 6}


def test_five_paired_sets_of_very_different_size_are_drawn_equally(tmp_path):
    counts = dict(zip(KINDS, (1, 10, 25, 5, 60), strict=True))
    for kind, count in counts.items():
        write_photos(tmp_path / kind / "input", count, size=(8, 8))
        write_photos(tmp_path / kind / "target", count, size=(8, 8))
    sources = [PairedFolders(f"{kind}/input", f"{kind}/target", kind) for kind in counts]
    data = module(tmp_path, train=sources, image_size=8, batch_size=1)
    seen = Counter(kind for kind, _, _ in fingerprints(data.train_dataloader()))
    assert sum(seen.values()) == sum(counts.values())
    assert max(seen.values()) - min(seen.values()) <= 1


def test_any_number_of_workers_gives_the_same_samples_in_every_epoch(photos, pairs):
    runs = []
    for workers in (0, 1, 3):
        data = module(photos.parent, num_workers=workers, clean_share=0.1)
        loader = data.train_dataloader()
        epochs = []
        for epoch in (0, 1):
            loader.batch_sampler.sampler.set_epoch(epoch)
            epochs.append(fingerprints(loader))
        data.teardown()
        runs.append(epochs)
    assert runs[0] == runs[1] == runs[2]
    assert runs[0][0] != runs[0][1]


def test_fixed_sets_are_the_same_in_every_pass_and_for_any_worker(photos):
    passes = []
    for workers in (0, 2):
        loader = module(photos.parent, train=[], num_workers=workers, val=[CleanPhotos(["photos"])]).val_dataloader()
        passes += [fingerprints(loader), fingerprints(loader)]
    assert all(one == other for one, other in pairwise(passes))
    assert len({kind for kind, _, _ in passes[0]}) == 6


def test_shards_are_sampled_like_folders(pairs, tmp_path):
    rows = [Row(f"input/{i:03}.png", f"target/{i:03}.png", "low_light", "set") for i in range(5)]
    write_shards(rows, pairs, tmp_path / "shards", shard_megabytes=0.02)
    folder = module(tmp_path, train=[PairedFolders("set/input", "set/target", "low_light", repeat=4)])
    shards = module(tmp_path, train=[Shards("shards", repeat=4)])
    ours, theirs = ([total for _, _, total in fingerprints(data.train_dataloader())] for data in (folder, shards))
    assert ours == theirs


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 0}, "image_size"),
        ({"batch_size": 0}, "batch_size: found 0"),
        ({"num_workers": -1}, "num_workers"),
        ({"seed": -1}, "seed"),
        ({"clean_share": 1.0}, "clean_share: found 1.0"),
        ({"jpeg_share": 1.5}, "jpeg_share: found 1.5"),
        ({"jpeg_quality": (90, 50)}, "jpeg_quality: found 90 to 50"),
        ({"resize_short_side": (0.5, 1.0)}, r"resize_short_side: found 0\.5 to 1\.0"),
        ({"train": []}, r"data\.train: no source"),
        ({"train": [Photos(["photos"])]}, r"data\.train: .*has no clean image"),
        ({"train": [CleanPhotos(["photos"], {"clean": 1.0})], "clean_share": 0.5}, "every source is clean already"),
        ({"batch_size": 200}, "fewer than the 200 of one step"),
        ({"train": [PublicSet("lol_v1_test", "eval15")]}, r"lol_v1_test is a test set"),
    ],
)
def test_mistakes_are_named(photos, pairs, options, message):
    write_photos(photos.parent / "eval15" / "low", 1)
    write_photos(photos.parent / "eval15" / "high", 1)
    with pytest.raises(UserError, match=message):
        module(photos.parent, **options).train_dataloader()


def test_a_broken_file_is_skipped_and_counted_or_ends_in_one_line(photos, caplog):
    (photos / "003.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"^[^\n]*003\.png[^\n]*$"):
        list(module(photos.parent, train=[CleanPhotos(["photos"])], num_workers=2).train_dataloader())
    data = module(photos.parent, train=[CleanPhotos(["photos"])], num_workers=2, skip_broken=True)
    seen = fingerprints(data.train_dataloader())
    assert len(seen) == 12
    assert "003.png" not in {name for _, name, _ in seen}
    data.teardown("fit")
    assert data.skips.count >= 1
    assert f"{data.skips.count} samples were replaced" in caplog.text


def test_nothing_is_looked_up_in_the_constructor():
    RestorationDataModule(train=[CleanPhotos(["/no/such/folder"])])


def test_root_comes_from_the_environment(photos, monkeypatch):
    monkeypatch.setenv("RESTOREVAR_DATA", str(photos.parent))
    data = RestorationDataModule(train=[CleanPhotos(["photos"])], image_size=16, batch_size=2)
    data.setup("fit")
    assert len(data.train_dataloader()) == 6


def test_stopping_in_an_epoch_and_resuming_changes_nothing(tmp_path):
    """On one process with prefetching workers, on two processes, and from one to two."""
    photos = write_photos(tmp_path / "photos", 18, size=(16, 20))[0].parent
    one = tmp_path / "1.ckpt"
    whole = list(chain(*run(photos, 1, steps=18)["seen"]))  # two epochs of 18 photos
    begun = run(photos, 1, steps=18, workers=2, stop_after=5, save=one)
    resumed = run(photos, 1, steps=18, workers=2, checkpoint=one)
    assert list(chain(*begun["seen"], *resumed["seen"])) == whole
    assert (resumed["step"], resumed["epoch"]) == (18, 2)

    words = [sys.executable, Path(__file__).with_name("resume_script.py"), photos, tmp_path, one]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": os.getcwd()}
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, env=environment, timeout=250)
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]

    def steps(name: str) -> list[list[str]]:
        """What the two processes saw together at each step, in no order."""
        return [sorted(first + second) for first, second in zip(*(rank[name]["seen"] for rank in ranks), strict=True)]

    # an epoch of two processes has 4 steps of 4, and drops 2
    expected = [sorted(whole[start : start + 4]) for start in (0, 4, 8, 12, 18, 22, 26, 30)]
    assert steps("begun") == expected[:5]
    assert steps("resumed") == expected[5:]
    # each validation photo once, though Lightning would put a sampler of its own over a plain loader
    validated = [rank["resumed"]["validated"] for rank in ranks]
    assert validated == [["000.png", "002.png", "004.png"], ["001.png", "003.png"]]
    # one process stopped after 10 of 18: two processes go on with the other 8, then begin the next epoch
    assert steps("taken over") == [sorted(whole[start : start + 4]) for start in (10, 14, 18, 22)]


def test_fewer_processes_and_other_batches_can_carry_on(tmp_path):
    """A checkpoint of two processes is a number of samples: here one process with batches of 4 takes over."""
    photos = write_photos(tmp_path / "photos", 18, size=(16, 20))[0].parent
    whole = list(chain(*run(photos, 1, steps=18)["seen"]))
    run(photos, 1, steps=99, stop_after=7, save=tmp_path / "a.ckpt")
    other = run(photos, 1, steps=9, batch_size=4, checkpoint=tmp_path / "a.ckpt")
    # 14 of 18 done, 4 left; then a whole epoch of 4 steps would follow, of which one is taken
    assert list(chain(*other["seen"])) == whole[14:18] + whole[18:22]


def test_batches_that_no_step_has_taken_in_come_again(tmp_path):
    """With 4 batches a step, stopped after 6 batches: the gradients of two are not in the checkpoint."""
    photos = write_photos(tmp_path / "photos", 20, size=(16, 20))[0].parent
    whole = run(photos, 1, steps=6, accumulate=4)["seen"]  # 10 batches an epoch: steps of 4, 4 and 2
    assert len(whole) == 20
    run(photos, 1, steps=6, accumulate=4, stop_after=6, save=tmp_path / "a.ckpt")
    resumed = run(photos, 1, steps=6, accumulate=4, checkpoint=tmp_path / "a.ckpt")
    assert resumed["seen"] == whole[4:]
    assert (resumed["step"], resumed["epoch"]) == (6, 2)
    run(photos, 1, steps=6, accumulate=4, stop_after=10, save=tmp_path / "b.ckpt")
    assert run(photos, 1, steps=6, accumulate=4, checkpoint=tmp_path / "b.ckpt")["seen"] == whole[10:]


def test_the_last_step_of_a_limited_epoch_does_not_come_again(tmp_path):
    """Of 8 batches 6 are taken, in steps of 4 and 2: all of them are in a checkpoint of the epoch's end."""
    photos = write_photos(tmp_path / "photos", 8, size=(16, 20))[0].parent
    limited = {"steps": 4, "batch_size": 1, "accumulate": 4, "limit": 6}
    whole = run(photos, 1, **limited)["seen"]
    assert len(whole) == 12
    run(photos, 1, **limited, stop_after=6, save=tmp_path / "a.ckpt")
    resumed = run(photos, 1, **limited, checkpoint=tmp_path / "a.ckpt")
    assert resumed["seen"] == whole[6:]
    assert (resumed["step"], resumed["epoch"]) == (4, 2)
