"""Weather, darkness and shake for clean photos: one file a kind, applied by ``degrade``."""

from restorevar.datamodules.degradations.registry import KINDS, degrade, get_degradation
from restorevar.datamodules.degradations.view import DegradationFunction, Parameters, View, Window

__all__ = ["KINDS", "DegradationFunction", "Parameters", "View", "Window", "degrade", "get_degradation"]
