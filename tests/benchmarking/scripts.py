"""Scripts of `benchmarks/` as modules."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).parents[2] / "benchmarks"


def load_script(name: str) -> ModuleType:
    """A script that may import those beside it, as it may when it is run."""
    if name not in sys.modules:
        if str(FOLDER) not in sys.path:
            sys.path.append(str(FOLDER))
        specification = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        sys.modules[name] = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(sys.modules[name])
    return sys.modules[name]
