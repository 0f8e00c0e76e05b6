"""The DataModule of all stages."""

import dataclasses
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import lightning as L
import numpy as np
from torch.utils.data import DataLoader

from restorevar.datamodules.batch import RestorationBatch, RestorationSample
from restorevar.datamodules.dataset import FixedDataset, Geometry, Pool, ResizeFilter, Skips, TrainingDataset
from restorevar.datamodules.kinds import CLEAN_KIND
from restorevar.datamodules.loader import FixedSampler, TrainingLoader, fixed_loader
from restorevar.datamodules.sampler import EpochSampler, Task
from restorevar.datamodules.sources import Collection, Record, Source
from restorevar.errors import UserError

__all__ = ["RestorationDataModule"]

logger = logging.getLogger(__name__)


class RestorationDataModule(L.LightningDataModule):
    """Any mixture of photos degraded on the fly and paired sets.

    An epoch is as long as the sum of the sources' counts. All samples of one kind form a task; tasks are drawn equally
    often (or by the weights that sources give them) in stratified order. See `EpochSampler` for what that means on
    several processes and on resume.

    Relative paths of all sources start from `root`, else from the environment variable `RESTOREVAR_DATA`, else from
    the working folder.

    Args:
        train: Sources to train on.
        val: Sources to validate on: crops from the middle, the same in every epoch.
        test: Sources to test on: whole photos at their own size, one a batch. Scoring needs their clean images.
        predict: Photos to restore, at their own size, one a batch; they need no ground truth.
        root: Folder that relative paths start from.
        image_size: Side of the training and validation crops in pixels, or height and width.
        batch_size: Samples in a batch of one process.
        val_batch_size: Samples in a validation batch; `batch_size` if not given.
        num_workers: Worker processes that load data; any number gives the same samples.
        seed: Fixes order, crops and degradations.
        clean_share: Share of training samples whose degraded image is the clean one, so that a model learns to leave
            good photos alone; in [0, 1).
        resize_short_side: Before cropping, the short side is resized to the crop's size times a factor from
            this range, drawn log-uniformly and at most the photo's own size unless the lower end asks for more.
            (1.125, 1.125) is the published recipe; (1.0, 2.5) gives a small model a range of scales; null crops from
            the photo as it is.
        resize_filter: How: `lanczos`, as published, or `area`, three times as fast and a little softer. Photos are
            enlarged with `lanczos` always.
        random_crop: Draw scale and place of training crops; False takes the middle of both, as in validation, the same
            in every epoch.
        horizontal_flip: Mirror half of the training samples.
        vertical_flip: Turn half of the training samples upside down.
        permute_colors: Exchange the colour channels of training samples at random: for a handful of photos, whose
            colours a model would learn by heart.
        jpeg_share: Share of training samples whose degraded image went through JPEG, as photos do that come from a
            phone or the web; in [0, 1].
        jpeg_quality: Least and greatest quality of these, 1 to 100.
        skip_broken: Replace a sample for training or validation whose file cannot be read, with a warning and a
            count, instead of stopping. Tests always stop: their scores must be those of the whole set.
        cache_megabytes: Memory of each worker for decoded training photos; pays where they are few.
        pin_memory: Hand out batches in page-locked memory; for GPUs.
    """

    def __init__(
        self,
        train: list[Source] | None = None,
        val: list[Source] | None = None,
        test: list[Source] | None = None,
        predict: list[Source] | None = None,
        root: str | None = None,
        image_size: int | tuple[int, int] = 512,
        batch_size: int = 8,
        val_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        clean_share: float = 0.0,
        resize_short_side: tuple[float, float] | None = (1.125, 1.125),
        resize_filter: ResizeFilter = "lanczos",
        random_crop: bool = True,
        horizontal_flip: bool = True,
        vertical_flip: bool = False,
        permute_colors: bool = False,
        jpeg_share: float = 0.0,
        jpeg_quality: tuple[int, int] = (50, 95),
        skip_broken: bool = False,
        cache_megabytes: int = 0,
        pin_memory: bool = False,
    ) -> None:
        super().__init__()
        self.sources = {"train": train or [], "val": val or [], "test": test or [], "predict": predict or []}
        self.root = root
        self.image_size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        self.batch_size = batch_size
        self.val_batch_size = val_batch_size or batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.clean_share = clean_share
        self.resize_short_side = resize_short_side
        self.resize_filter = resize_filter
        self.random_crop = random_crop
        self.horizontal_flip, self.vertical_flip = horizontal_flip, vertical_flip
        self.permute_colors = permute_colors
        self.jpeg_share, self.jpeg_quality = jpeg_share, jpeg_quality
        self.skip_broken = skip_broken
        self.cache_megabytes = cache_megabytes
        self.pin_memory = pin_memory
        self.skips: Skips | None = None
        self._collections: dict[str, list[Collection]] = {}
        self._train_loader: TrainingLoader | None = None

    def setup(self, stage: str | None = None) -> None:
        """Finds the files of the sources that the stage needs; `None` takes all.

        Raises:
            UserError: A source is missing or an option makes no sense.
        """
        self._check_options()
        if self.skip_broken and self.skips is None:
            self.skips = Skips()
        root = Path(self.root or os.environ.get("RESTOREVAR_DATA") or ".").expanduser()
        wanted = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("predict",)}
        for part in wanted.get(stage or "", tuple(self.sources)):
            if part not in self._collections:
                self._collections[part] = [source.collect(root) for source in self.sources[part]]

    @property
    def moving_crops(self) -> list[str]:
        """Settings because of which a photo's training crop is another one in every epoch; empty if it is the same.

        Known from `setup` on.
        """
        settings = ("random_crop", "horizontal_flip", "vertical_flip", "permute_colors")
        records = (record for collection in self._collections.get("train", []) for record in collection.records)
        has_gamma = any(record.gamma != (1, 1) for record in records)
        return [name for name in settings if getattr(self, name)] + ["train.gamma"] * has_gamma

    def train_dataloader(self) -> TrainingLoader:
        """Endless variety, resumable at any batch.

        Raises:
            UserError: There is no training source, or not enough samples for one batch.
        """
        collections = self._of("train")
        pools, tasks = training_tasks(collections, self.clean_share)
        length = sum(len(collection.records) * collection.repeat for collection in collections)
        rank, world_size = self._place()
        sampler = EpochSampler(tasks, length, self.batch_size, self.seed, rank, world_size)
        dataset = TrainingDataset(
            pools,
            self._geometry(),
            self.seed,
            self.skips,
            self.cache_megabytes,
            self.permute_colors,
            self.jpeg_share,
            self.jpeg_quality,
            with_keys=not self.moving_crops,
        )
        self._train_loader = TrainingLoader(
            dataset,
            sampler,
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
            in_flight=self._batches_in_flight,
            on_load=self._restate_progress,
        )
        return self._train_loader

    def val_dataloader(self) -> DataLoader[RestorationSample] | list[RestorationBatch]:
        """Crops from the middle of fixed samples; nothing if there is no source."""
        if not self._collections.get("val"):
            return []
        return self._fixed("val", self._geometry(), self.val_batch_size)

    def test_dataloader(self) -> DataLoader[RestorationSample]:
        """Whole photos, one a batch.

        Raises:
            UserError: There is no test source.
        """
        return self._fixed("test", None, 1)

    def predict_dataloader(self) -> DataLoader[RestorationSample]:
        """Whole photos, one a batch, without `clean`.

        Raises:
            UserError: There is no source to predict.
        """
        return self._fixed("predict", None, 1)

    def teardown(self, stage: str | None = None) -> None:
        """Ends the worker processes."""
        if self._train_loader is not None:
            self._train_loader.shutdown()
        if self.skips is not None and self.skips.count:
            logger.warning("%d samples were replaced because their files could not be read", self.skips.count)

    def _fixed(self, part: str, geometry: Geometry | None, batch_size: int) -> DataLoader[RestorationSample]:
        collections = self._of(part)
        records = fixed_records(collections, self.seed)
        if part in ("val", "test"):
            _check_clean(part, records)
        rank, world_size = self._place()
        sampler = FixedSampler(len(records), rank, world_size, equal=self._is_sharded())
        return fixed_loader(
            FixedDataset(records, geometry, part != "predict", self.skips if part == "val" else None),
            batch_size,
            self.num_workers,
            sampler,
            self.pin_memory,
        )

    def _of(self, part: str) -> list[Collection]:
        collections = self._collections.get(part)
        if not collections:
            raise UserError(f"data.{part}: no source given; expected at least one, such as CleanPhotos or Manifest")
        return collections

    def _geometry(self) -> Geometry:
        height, width = self.image_size
        return Geometry(
            (height, width),
            self.resize_short_side,
            self.horizontal_flip,
            self.vertical_flip,
            self.resize_filter,
            self.random_crop,
        )

    def _place(self) -> tuple[int, int]:
        """Rank and number of processes."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)

    def _is_sharded(self) -> bool:
        from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy

        return self.trainer is not None and isinstance(self.trainer.strategy, FSDPStrategy | ModelParallelStrategy)

    def _batches_in_flight(self) -> int:
        """Batches handed out that no optimizer step has taken in: a checkpoint of now has nothing of them."""
        if self.trainer is None or self._train_loader is None:
            return 0
        progress = cast(Any, self.trainer.fit_loop.epoch_loop.batch_progress.current)
        batches = min(len(self._train_loader), self.trainer.num_training_batches)  # the latter by limit_train_batches
        whole_epoch = progress.processed >= batches  # its last step is taken whatever was gathered
        gathered = 0 if whole_epoch else progress.processed % self.trainer.accumulate_grad_batches
        return progress.ready - progress.processed + gathered

    def _restate_progress(self, loader: TrainingLoader) -> None:
        """Tells Lightning how many batches of this epoch are done, in today's batches.

        Its checkpoint counts them in those of the run that saved it, which may have had more processes or larger
        batches, and counts those that no optimizer step had taken in. Unchanged otherwise.
        """
        if self.trainer is None:
            return
        sampler = loader.epoch_sampler
        done = sampler.batches - sampler.batches_left
        current = cast(Any, self.trainer.fit_loop.epoch_loop.batch_progress.current)
        shift = done - current.processed
        current.ready += shift
        current.started += shift
        current.processed += shift
        current.completed += shift

    def _check_options(self) -> None:
        if min(self.image_size) < 1 or len(self.image_size) != 2:
            raise UserError(f"image_size: found {self.image_size}; expected one or two positive numbers")
        for name in ("batch_size", "val_batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}: found {getattr(self, name)}; expected 1 or more")
        for name in ("num_workers", "seed", "cache_megabytes"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}: found {getattr(self, name)}; expected 0 or more")
        if not 0 <= self.clean_share < 1:
            raise UserError(f"clean_share: found {self.clean_share}; expected a number from 0 to below 1")
        if not 0 <= self.jpeg_share <= 1:
            raise UserError(f"jpeg_share: found {self.jpeg_share}; expected a number from 0 to 1")
        if not 1 <= self.jpeg_quality[0] <= self.jpeg_quality[1] <= 100:
            found = " to ".join(map(str, self.jpeg_quality))
            raise UserError(f"jpeg_quality: found {found}; expected 1 <= least <= greatest <= 100")
        if self.resize_short_side is not None:
            low, high = self.resize_short_side
            if not 1 <= low <= high:
                raise UserError(f"resize_short_side: found {low} to {high}; expected 1 <= lowest <= highest, or null")


def training_tasks(collections: Sequence[Collection], clean_share: float) -> tuple[list[Pool], list[Task]]:
    """Groups the records of all sources by kind.

    A task's share is in proportion to the largest weight that a source gives its kind; inside a task each record has
    the same chance, times its source's `repeat`.

    Args:
        collections: What the sources hold.
        clean_share: Share of clean pairs, made of all sources' clean images.

    Returns:
        Pools, and tasks that refer to them by index.
    """
    pools: list[Pool] = []
    weights: dict[str, float] = {}
    members: dict[str, list[tuple[int, int]]] = {}

    def add(kind: str, records: Sequence[Record], severity: tuple[float, float], repeat: int) -> None:
        members.setdefault(kind, []).append((len(pools), len(records) * repeat))
        pools.append(Pool(kind, records, severity))

    for collection in collections:
        if collection.testing is not None:
            raise UserError(f"data.train: {collection.testing}; expected sets to train on")
        _check_clean("train", collection.records)
        for kind, weight in collection.kinds.items():
            records = [record for record in collection.records if record.kind in (None, kind)]
            if records:
                weights[kind] = max(weight, weights.get(kind, 0.0))
                add(kind, records, collection.severity, collection.repeat)
    if clean_share > 0:
        weights.pop(CLEAN_KIND, None)
        if not weights:
            raise UserError("clean_share: every source is clean already; leave it out")
        for collection in collections:
            held = (None, CLEAN_KIND) if CLEAN_KIND in collection.kinds else ()  # by its own pool of clean pairs
            records = [record for record in collection.records if record.kind not in held]
            if records:
                add(CLEAN_KIND, records, (0.0, 0.0), collection.repeat)
    total = sum(weights.values())
    shares = {kind: (1 - clean_share) * weight / total for kind, weight in weights.items()}
    if clean_share > 0:
        shares[CLEAN_KIND] = clean_share
    tasks = []
    for kind, share in shares.items():
        indices = tuple(index for index, _ in members[kind])
        counts = tuple(count for _, count in members[kind])
        tasks.append(Task(kind, share, indices, counts, tuple(len(pools[index].records) for index in indices)))
    return pools, tasks


def fixed_records(collections: Sequence[Collection], seed: int) -> list[Record]:
    """Records of a fixed set; photos without a kind get one of their source's kinds in turn, and a drawn severity.

    Args:
        collections: What the sources hold.
        seed: Fixes the severities and degradations.

    Returns:
        Records that all have a kind.
    """
    records = []
    for number, collection in enumerate(collections):
        kinds = list(collection.kinds)
        low, high = collection.severity
        for index, record in enumerate(collection.records):
            if record.kind is None:
                generator = np.random.default_rng([seed, number, index])
                record = dataclasses.replace(
                    record,
                    kind=kinds[index % len(kinds)],
                    severity=low + (high - low) * float(generator.random()),
                    seed=int(generator.integers(2**31)),
                )
            records.append(record)
    return records


def _check_clean(part: str, records: Sequence[Record]) -> None:
    for record in records:
        if record.clean is None and not record.made:
            where = "" if record.origin is None else f" ({record.origin})"
            use = "FixedDegradations; `restorevar predict` does without" if part == "test" else "CleanPhotos"
            raise UserError(f"data.{part}: {record.path} has no clean image{where}; expected pairs or {use}")
