"""Names of what can be wrong with a photo."""

from restorevar.datamodules.degradations import KINDS

__all__ = ["CLEAN_KIND", "KINDS", "PAIRED_KINDS"]

PAIRED_KINDS = (*KINDS, "other")
"""Kinds of degradation that a pair can have: those that we make, and all else."""

CLEAN_KIND = "clean"
"""Kind of a pair whose degraded image is the clean one."""
