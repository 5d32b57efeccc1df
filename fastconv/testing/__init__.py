"""The public referee: the named suites of shapes, exact data, and the checks that every kernel has to pass.

>>> from fastconv import testing
>>> case = testing.cases("resnet")[0]
>>> case.name, case.problem(batch=1).flops
('resnet/64x56-64k3', 231211008)

It is meant for your kernels too: hold them to the same shapes, data and bounds.
"""

from .checks import assert_matches, assert_rms, check_grads, integers
from .referee import check_row
from .suites import BATCHES, SUITES, Case, cases

__all__ = [
    "BATCHES",
    "SUITES",
    "Case",
    "assert_matches",
    "assert_rms",
    "cases",
    "check_grads",
    "check_row",
    "integers",
]
