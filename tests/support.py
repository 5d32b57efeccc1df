"""What several test modules share: optional peers."""

import importlib
import os
from types import ModuleType

import pytest

REQUIRED = frozenset(filter(None, os.environ.get("FASTCONV_REQUIRE", "").split(",")))
"""Names whose absence is a failure rather than a skip; ``.ci/run`` sets it."""


def require(name: str) -> ModuleType:
    """Import an optional peer; without it the test is skipped, or fails where ``FASTCONV_REQUIRE`` names it."""
    try:
        return importlib.import_module(name)
    except ImportError:
        if name in REQUIRED:
            pytest.fail(f"FASTCONV_REQUIRE names {name}, which cannot be imported")
        pytest.skip(f"needs {name} (pip install {name}); FASTCONV_REQUIRE={name} makes this a failure")
