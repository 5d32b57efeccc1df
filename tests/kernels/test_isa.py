"""Kernels compiled for other instruction sets than the host's own.

    python -m tests.kernels.test_isa avx2        every CPU row of the registry on its edges, in that form

Numba is told what to compile for by the environment, before it is imported: each form needs a process of its own.
``.ci/run`` runs every form whole; plain pytest runs one convolution and one pooling in each.
"""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SSE4 = "+sse,+sse2,+sse3,+ssse3,+sse4.1,+sse4.2"
FORMS = {
    "avx2": ("haswell", f"{SSE4},+avx,+avx2,+fma,+bmi,+bmi2,+popcnt,+lzcnt,+f16c,+movbe", 32),
    "generic": ("x86-64", "+sse,+sse2", 16),
}
"""Form: CPU name and features for Numba, and the vector length in bytes that kernels must then use."""
LIMIT = 180  # seconds; a form takes 40 to 60

SMOKE = """
import numpy as np
from fastconv.problem import conv_problem, pool_problem
from fastconv.registry import rows_for
from fastconv.testing import check_row
for op, problem in (
    ("conv", conv_problem("conv2d", 2, (2, 17, 7, 18), (49, 17, 3, 3), padding=1)),
    ("max_pool", pool_problem("max_pool2d", 2, "max_pool", (2, 17, 9, 11), 3, stride=2, padding=1)),
):
    check_row(rows_for(op, "forward", "cpu")[0], problem, rng=np.random.default_rng(0), integers=True)
from fastconv.kernels.cpu import simd
print(simd.VECTOR_BYTES)
"""


def run(form: str, *arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Python with Numba compiling for a form."""
    cpu, features, vector = FORMS[form]
    told = {"NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": features, "FASTCONV_EXPECT_VECTOR_BYTES": str(vector)}
    return subprocess.run(  # type: ignore[call-overload, no-any-return]  # its options are passed on
        [sys.executable, *arguments], env=os.environ | told, cwd=ROOT, text=True, check=False, **options
    )


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="names x86 instruction sets")
@pytest.mark.parametrize("form", FORMS)
def test_one_convolution_and_one_pooling(form: str) -> None:
    done = run(form, "-c", SMOKE, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == FORMS[form][2]


def test_this_process_compiles_for_the_form_it_was_told() -> None:
    """Guards ``main``: were the environment ignored, it would test the host's form again and pass."""
    expected = os.environ.get("FASTCONV_EXPECT_VECTOR_BYTES")
    if expected is not None:
        from fastconv.kernels.cpu import simd

        assert int(expected) == simd.VECTOR_BYTES


def main(form: str) -> int:
    """Every CPU row of the registry on its edges, held to its own bounds, in a form; at most ``LIMIT`` seconds."""
    itself = "tests/kernels/test_isa.py::test_this_process_compiles_for_the_form_it_was_told"
    rows = ("tests/test_registry.py", "-k", "not cuda")
    return run(form, "-m", "pytest", "-q", *rows, itself, timeout=LIMIT).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
