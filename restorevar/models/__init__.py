"""Networks in pure torch; nothing here knows of Lightning."""

from restorevar.models.config import (
    DetailConfig,
    GateConfig,
    RefinerConfig,
    RestoreVARConfig,
    TokenizerConfig,
    TransformerConfig,
)
from restorevar.models.restorevar import Generation, RestoreVAR, RollOut
from restorevar.models.scales import PAPER_SCALES_256, PAPER_SCALES_512, ScaleSchedule

__all__ = [
    "PAPER_SCALES_256",
    "PAPER_SCALES_512",
    "DetailConfig",
    "GateConfig",
    "Generation",
    "RefinerConfig",
    "RestoreVAR",
    "RestoreVARConfig",
    "RollOut",
    "ScaleSchedule",
    "TokenizerConfig",
    "TransformerConfig",
]
