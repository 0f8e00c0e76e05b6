"""Training, validation and test data: photos degraded on the fly, paired sets, manifests and shards."""

from restorevar.datamodules.batch import RestorationBatch
from restorevar.datamodules.restoration import RestorationDataModule
from restorevar.datamodules.sources import (
    CleanPhotos,
    FixedDegradations,
    Manifest,
    PairedFolders,
    Photos,
    PublicSet,
    Shards,
    Source,
)

__all__ = [
    "CleanPhotos",
    "FixedDegradations",
    "Manifest",
    "PairedFolders",
    "Photos",
    "PublicSet",
    "RestorationBatch",
    "RestorationDataModule",
    "Shards",
    "Source",
]
