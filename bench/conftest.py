"""Options of ``pytest bench``."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--batch", type=int, default=1, help="batch size of the cases that have none of their own")
