"""LightningModules: one a training stage, and one for test and predict."""

from restorevar.modules.base import StageModule
from restorevar.modules.detail import DetailModule
from restorevar.modules.gate import GateModule
from restorevar.modules.refiner import RefinerModule
from restorevar.modules.restoration import RestorationModule
from restorevar.modules.tokenizer import TokenizerModule
from restorevar.modules.transformer import TransformerModule

__all__ = [
    "DetailModule",
    "GateModule",
    "RefinerModule",
    "RestorationModule",
    "StageModule",
    "TokenizerModule",
    "TransformerModule",
]
