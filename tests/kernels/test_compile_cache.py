"""The compilation cache: hits across processes, a digest that sees every edit, damage and read-only disks survived."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numba
import pytest
from numba import types

import fastconv.kernels
from fastconv.kernels.cpu import compile as compiling
from fastconv.kernels.cpu import threads
from fastconv.kernels.cpu.panels import pass_length

PROGRAM = """
import json, sys, warnings
import numpy as np
import numba
before = numba.config.CACHE_DIR
from fastconv.kernels.cpu import shares, weights
from fastconv.kernels.cpu.weights import pack_columns, pack_range
weights.THREAD_ELEMENTS = 1
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    w, packed = np.arange(6, dtype=np.float32).reshape(1, 2, 3, 1, 1, 1), np.zeros(96, np.float32)
    pack_columns(w, packed, False, 32, 1)
    pack_columns(w.astype(np.float64), packed.astype(np.float64), False, 32, 1)
    pack_columns(w, packed, False, 32, 2)
assert packed[32 : 34].tolist() == [1.0, 4.0], packed
hits = sum(pack_range.stats.cache_hits.values()) + sum(shares.every_share.stats.cache_hits.values())
misses = sum(pack_range.stats.cache_misses.values()) + sum(shares.every_share.stats.cache_misses.values())
if misses == 0:  # loading does without what Numba imports when it compiles, half of a first call
    assert "numba.np.linalg" not in sys.modules
print(json.dumps([hits, misses, numba.config.CACHE_DIR == before, [str(w.message) for w in caught]]))
"""


def start(directory: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"FASTCONV_CACHE_DIR": str(directory)}
    return subprocess.Popen([sys.executable, "-c", PROGRAM], env=environment, stdout=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> tuple[int, int, bool, list[str]]:
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    hits, misses, unchanged, messages = json.loads(output)
    return hits, misses, unchanged, messages


def test_later_processes_hit_and_concurrent_ones_do_not_collide(tmp_path):
    first = [start(tmp_path) for _ in range(2)]  # both save both signatures of the same functions
    for process in first:
        assert finish(process)[2:] == (True, [])
    assert finish(start(tmp_path)) == (3, 0, True, [])

    for file in (*tmp_path.rglob("*.nbc"), *tmp_path.rglob("weights.*.nbi")):  # data, and an index of it
        file.write_bytes(file.read_bytes()[:100])
    assert finish(start(tmp_path)) == (0, 3, True, [])  # damaged: compiled again


def test_an_unusable_directory_costs_one_warning(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a directory")
    hits, misses, unchanged, messages = finish(start(blocked))
    assert (hits, misses, unchanged) == (0, 3, True)
    assert len(messages) == 1
    assert "FASTCONV_CACHE_DIR" in messages[0]


@pytest.mark.parametrize("name", ["cpu/simd.py", "cpu/gemm.py", "cpu/direct.py", "geometry.py"])
def test_an_edit_of_any_source_changes_the_digest(tmp_path, name):
    sources = Path(fastconv.kernels.__file__).parent
    copy = tmp_path / "kernels"
    shutil.copytree(sources, copy, ignore=shutil.ignore_patterns("__pycache__"))
    digest = compiling.source_digest.__wrapped__
    before = digest(copy)
    assert digest(copy) == before
    with open(copy / name, "a") as file:
        file.write("# edited\n")
    assert digest(copy) != before


def test_a_helper_gets_no_machine_code_of_its_own():
    signature = (types.int64, types.int64)
    pass_length.compile(signature)
    compiled = pass_length.overloads[signature]
    assert compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name) == 0


def test_numba_told_not_to_compile_is_named():
    environment = os.environ | {"NUMBA_DISABLE_JIT": "1"}
    command = [sys.executable, "-c", "import fastconv.kernels.cpu.gemm"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "RuntimeError: NUMBA_DISABLE_JIT is set" in done.stderr


def test_cache_dir_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTCONV_CACHE_DIR", str(tmp_path))
    assert compiling.cache_dir() == tmp_path
    monkeypatch.delenv("FASTCONV_CACHE_DIR")
    assert compiling.cache_dir().name == "fastconv"


def test_the_layer_is_one_of_numbas_and_its_settings_are_left_alone():
    before = list(numba.config.THREADING_LAYER_PRIORITY)
    assert threads.threading_layer() in {"omp", "tbb", "workqueue"}
    assert threads.threading_layer() == numba.threading_layer()
    assert before == numba.config.THREADING_LAYER_PRIORITY


@pytest.mark.parametrize("layer", ["omp", "workqueue"])
def test_a_chosen_layer_is_used_and_safe_from_many_threads(layer, tmp_path):
    code = (
        "import tests.kernels.test_cpu_conv as t; from fastconv.kernels.cpu import threads;"
        "t.test_eight_threads_at_once_get_the_same_bits(); print(threads.threading_layer())"
    )
    environment = os.environ | {"NUMBA_THREADING_LAYER": layer}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == layer
