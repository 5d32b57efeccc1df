"""The compile gate: every kernel that a CUDA row may launch, as machine code of each architecture that it claims.

NVRTC needs no GPU. The gate holds what only shows on a GPU otherwise, as slowness: no spilled registers, no stack
frame, no more registers or shared memory than the launch may take.
"""

import multiprocessing
import os
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import pytest

from fastconv.kernels.cuda import module
from fastconv.kernels.cuda.module import EVERY, Instance, Resources, compile_cubin
from fastconv.registry import ROWS
from fastconv.targets import resolve
from tests.cuda_emulator.driver import HEADERS
from tests.support import require_nvrtc

REGISTER_FILE = 65536  # 32-bit registers of a multiprocessor, of every architecture since 2014
STATIC_SHARED = 48 << 10


@pytest.fixture(scope="module", autouse=True)
def _nvrtc():
    require_nvrtc()


def files() -> dict[str, set[Instance]]:
    """The instances of all CUDA rows by the file they are in."""
    found = defaultdict(set)
    for row in ROWS:
        if row.instances is not None:
            for instance in resolve(row.instances)():
                found[instance.stem].add(instance)
    return found


FILES = files()


def complaints(instance: Instance, arch: str, used: Resources) -> list[str]:
    """What is wrong with a compiled kernel."""
    found = []
    limit = min(instance.max_registers or 255, REGISTER_FILE // instance.threads)
    if used.registers > limit:
        found.append(f"uses {used.registers} registers of {limit}")
    if not instance.stack and (used.stack or used.spill_stores or used.spill_loads):
        found.append(f"has a stack frame of {used.stack} bytes, spills {used.spill_stores} bytes")
    if used.shared > STATIC_SHARED:
        found.append(f"has {used.shared} bytes of static shared memory")
    return [f"{module.words(instance)} for {arch} {complaint}" for complaint in found]


def test_every_cuda_row_lists_its_instances():
    for row in ROWS:
        assert (row.instances is not None) == (row.device == "cuda"), row.name
        if row.instances is not None:
            listed = resolve(row.instances)()
            assert listed, row.name
            assert len(set(listed)) == len(listed), row.name


@pytest.mark.parametrize("stem", sorted(FILES))
def test_instances_compile(stem):
    jobs = [(instance, arch) for instance in FILES[stem] for arch in instance.archs]
    for arch in EVERY:  # elsewhere one of a file has to compile; a few bytes may be spilled
        if not any(arch in instance.archs for instance in FILES[stem]):
            plain = min(FILES[stem], key=lambda i: ("long long" in dict(i.defines).values(), i.symbol, str(i.defines)))
            jobs.append((replace(plain, stack=True), arch))
    first = {(module.source(i.stem, i.defines), arch): (i, arch) for i, arch in jobs}  # one compilation serves a file
    # processes, because NVRTC compiles one program at a time in each; what they compile is kept on disk
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        list(pool.map(compile_cubin, *zip(*first.values(), strict=True)))
    wrong = [line for instance, arch in jobs for line in complaints(instance, arch, compile_cubin(instance, arch)[1])]
    assert not wrong, "\n".join(wrong)


def test_planted_spills_and_errors_are_seen(tmp_path):
    kernel = "KERNEL(1024, 2) many(float *x) { float v[64]; for (int i = 0; i < 64; i++) v[i] = x[i * 31]; "
    kernel += "for (int j = 0; j < 64; j++) for (int i = 0; i < 64; i++) v[i] = v[i] * v[(i + 7) % 64] + x[j];"
    kernel += "for (int i = 0; i < 64; i++) x[i * 31] = v[i]; }\n"
    (tmp_path / "many.cu").write_text('#include "types.cuh"\n' + kernel)
    instance = Instance("many", "many", threads=1024)
    _, used = compile_cubin(instance, "sm_80", tmp_path)
    assert used.registers <= 32
    assert [line for line in complaints(instance, "sm_80", used) if "stack frame" in line]
    assert not complaints(replace(instance, stack=True), "sm_80", used)
    assert complaints(replace(instance, stack=True, max_registers=8), "sm_80", used)
    (tmp_path / "broken.cu").write_text('#include "types.cuh"\nKERNEL(1, 1) broken(float *x) {\n  x[0] = y;\n}\n')
    with pytest.raises(RuntimeError, match=r'(?s)broken.cu for sm_90a.*broken.cu\(3\).*"y" is undefined'):
        compile_cubin(Instance("broken", "broken"), "sm_90a", tmp_path)
    with pytest.raises(RuntimeError, match="no kernel 'absent'"):
        compile_cubin(replace(instance, symbol="absent"), "sm_80", tmp_path)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_the_shared_headers_compile(arch):
    """All of them, for every element type: what no row uses yet too."""
    for element in ("float", "double", "float16", "bfloat16"):
        compile_cubin(Instance("probes", "copies", (("ELEMENT", element), ("INDEX", "int"))), arch, HEADERS)
    for element in ("float16", "bfloat16"):
        compile_cubin(Instance("matrices", "matrices", (("ELEMENT", element),)), arch, HEADERS)


def test_subnormal_numbers_are_kept():
    """No option of NVRTC's rounds more coarsely than IEEE 754, and none says -ftz, -prec-div, -fmad or fast math."""
    assert not [o for o in module.options("sm_90a") if any(word in o for word in ("ftz", "prec", "fast", "fmad"))]
    compiler = module.nvrtc()
    ptx = []
    for more in ((), ("-ftz=true",)):
        program = compiler.createProgram('extern "C" __global__ void f(float *x) { *x = *x / x[1]; }', "f.cu", (), ())
        compiler.compileProgram(program, (*module.options("compute_80"), *more))
        text = compiler.getPTX(program)
        ptx.append(text if isinstance(text, str) else text.decode())
        compiler.destroyProgram(program)
    assert "ftz" not in ptx[0]
    assert "ftz" in ptx[1]


def test_cubins_are_kept_and_damaged_ones_replaced(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTCONV_CACHE_DIR", str(tmp_path))
    instance = Instance("probes", "conv_layout", (("ELEMENT", "float"),))
    cubin, used = compile_cubin(instance, "sm_80", HEADERS)
    (kept,) = (tmp_path / "cuda").glob("*.cubin")
    written = kept.stat().st_mtime_ns
    assert compile_cubin(instance, "sm_80", HEADERS) == (cubin, used)
    assert kept.stat().st_mtime_ns == written
    whole = kept.read_bytes()
    for damaged in (whole[:-1], b"", whole[:100] + b"?" + whole[101:]):
        kept.write_bytes(damaged)
        assert compile_cubin(instance, "sm_80", HEADERS) == (cubin, used)
        assert kept.stat().st_size > 1000
    compile_cubin(instance, "sm_90a", HEADERS)
    compile_cubin(replace(instance, defines=(("ELEMENT", "double"),)), "sm_80", HEADERS)
    assert len([*(tmp_path / "cuda").iterdir()]) == 3


def test_a_folder_that_cannot_be_written_costs_a_warning(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FASTCONV_CACHE_DIR", str(tmp_path / "file"))
    module._warn_unkept.cache_clear()
    with pytest.warns(RuntimeWarning, match="cannot be kept in"):
        compile_cubin(Instance("probes", "copies", (("ELEMENT", "float"),)), "sm_80", HEADERS)
