"""The argument tables that a call writes its addresses into."""

from importlib import import_module

import numpy as np
import pytest

from fastconv.kernels.cpu.bound import ADDRESSES, CALL
from fastconv.registry import rows_for

COMPOSED = "fastconv.kernels.cpu.winograd_phases"  # copies, and leaves the correlation to ``winograd``
MODULES = sorted(
    {row.target.partition(":")[0] for row in rows_for("conv", "forward", "cpu") if ".kernels.cpu." in row.target}
    - {COMPOSED}
)


@pytest.mark.parametrize("module", MODULES)
def test_every_table_begins_with_the_fields_of_a_call(module):
    """``bound`` writes to places, not names: a Layout that began otherwise would be given wrong addresses."""
    assert import_module(module).Layout._fields[: len(CALL)] == CALL


def test_addresses_go_to_their_names():
    assert [CALL[place] for place in ADDRESSES] == ["x", "out", "residual", "bias", "weights", "scratch"]


def test_addresses_are_numpys():
    from fastconv.kernels.cpu.arrays import address

    for array in (np.zeros((3, 4))[1:, ::-2], np.empty(0, np.float32), np.arange(5)[::-1]):
        assert address(array) == array.__array_interface__["data"][0]
