"""Training, validation and test data: photos degraded on the fly, paired sets, manifests and shards."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from restorevar.datamodules.batch import RestorationBatch as RestorationBatch
    from restorevar.datamodules.restoration import RestorationDataModule as RestorationDataModule
    from restorevar.datamodules.sources import CleanPhotos as CleanPhotos
    from restorevar.datamodules.sources import FixedDegradations as FixedDegradations
    from restorevar.datamodules.sources import Manifest as Manifest
    from restorevar.datamodules.sources import PairedFolders as PairedFolders
    from restorevar.datamodules.sources import Photos as Photos
    from restorevar.datamodules.sources import PublicSet as PublicSet
    from restorevar.datamodules.sources import Shards as Shards
    from restorevar.datamodules.sources import Source as Source

SOURCES = ("CleanPhotos", "FixedDegradations", "Manifest", "PairedFolders", "Photos", "PublicSet", "Shards", "Source")
__all__ = ["RestorationBatch", "RestorationDataModule", *SOURCES]


def __getattr__(name: str) -> Any:
    # Lightning takes seconds to import, and `restorevar degrade` and `manifest` do without it
    if name == "RestorationDataModule":
        return getattr(import_module("restorevar.datamodules.restoration"), name)
    if name == "RestorationBatch":
        return getattr(import_module("restorevar.datamodules.batch"), name)
    if name in SOURCES:
        return getattr(import_module("restorevar.datamodules.sources"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
