"""All-in-one image restoration by visual autoregression."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from restorevar.models import RestoreVAR as RestoreVAR
    from restorevar.models import RestoreVARConfig as RestoreVARConfig

__version__ = "0.1.0"
__all__ = ["RestoreVAR", "RestoreVARConfig", "__version__"]


def __getattr__(name: str) -> Any:
    # torch takes over a second to import: only when a model is asked for
    if name in ("RestoreVAR", "RestoreVARConfig"):
        return getattr(import_module("restorevar.models"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
