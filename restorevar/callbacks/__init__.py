"""Side outputs of training and evaluation, and what keeps a run safe; the modules know nothing of them."""

from restorevar.callbacks.acceleration import Acceleration
from restorevar.callbacks.averages import ExponentialMovingAverage
from restorevar.callbacks.checkpoint import NewestCheckpoint
from restorevar.callbacks.codebook import CodebookReport
from restorevar.callbacks.export import ExportModel
from restorevar.callbacks.images import ImageGrids
from restorevar.callbacks.monitor import TrainingMonitor
from restorevar.callbacks.nan_guard import NanGuard
from restorevar.callbacks.predictions import RestoredPhotoWriter
from restorevar.callbacks.preflight import Preflight
from restorevar.callbacks.progress import TrainingProgress
from restorevar.callbacks.requeue import RequeueOnSignal
from restorevar.callbacks.scores import ReportWriter, ScoreWriter
from restorevar.callbacks.total_batch import TotalBatch

__all__ = [
    "Acceleration",
    "CodebookReport",
    "ExponentialMovingAverage",
    "ExportModel",
    "ImageGrids",
    "NanGuard",
    "NewestCheckpoint",
    "Preflight",
    "ReportWriter",
    "RequeueOnSignal",
    "RestoredPhotoWriter",
    "ScoreWriter",
    "TotalBatch",
    "TrainingMonitor",
    "TrainingProgress",
]
