"""Side outputs of training and evaluation; the modules know nothing of them."""

from restorevar.callbacks.codebook import CodebookReport
from restorevar.callbacks.export import ExportModel
from restorevar.callbacks.images import ImageGrids

__all__ = ["CodebookReport", "ExportModel", "ImageGrids"]
