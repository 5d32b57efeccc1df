"""Optional dependencies: imported where they are needed, with an error that says how to get them."""

from __future__ import annotations

import importlib
from types import ModuleType


def extra(module: str, extra_name: str, purpose: str) -> ModuleType:
    """Import an optional module; without it say which extra of fastconv's brings it.

    >>> extra("json", "examples", "reading JSON").__name__
    'json'
    >>> extra("no_such_module", "examples", "this example")
    Traceback (most recent call last):
    ...
    ImportError: this example needs no_such_module: python -m pip install "fastconv[examples]"
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ImportError(
            f'{purpose} needs {module.split(".")[0]}: python -m pip install "fastconv[{extra_name}]"'
        ) from None
