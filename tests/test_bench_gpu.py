"""bench/gpu.sh played without a GPU; its parts where the play does not reach: cuDNN's adapter, a process that dies."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastconv as fc
from bench import gpu, gpu_clock, gpu_worker
from bench.gpu_clock import Times
from bench.gpu_libraries import laid, peer, shapes
from bench.libraries import expected
from bench.tasks import Task
from fastconv.kernels.cpu.compile import cache_dir
from fastconv.kernels.cuda.module import EVERY, compile_cubin
from fastconv.testing import Case
from tests.support import require, require_emulator, require_nvrtc

ROOT = Path(__file__).resolve().parent.parent


def test_the_whole_script_in_a_rehearsal(tmp_path):
    require_emulator()
    require("cupy")
    environment = {
        **os.environ, "FASTCONV_GPU_REHEARSAL": "1", "FASTCONV_GPU_SECONDS": "150", "OUT": str(tmp_path),
        "PYTHON": sys.executable, "FASTCONV_CACHE_DIR": str(cache_dir()), "FASTCONV_REQUIRE": "",
    }  # fmt: skip
    done = subprocess.run(["bash", "bench/gpu.sh"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-3000:]
    for name in ("device", "wrappers", "rows"):
        assert f"passed  {name}: " in done.stdout
    assert " passed" in (tmp_path / "gpu-tests.txt").read_text()
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert report["left_out"] == []
    assert {(r["direction"], r["layout"]) for r in report["results"]} == {
        (d, layout)
        for d in ("forward", "grad_input", "grad_weight")
        for layout in ("channels_first", "channels_last")
    }  # fmt: skip
    assert all(r["seconds"] > 0 and r["ratio"] > 0 and r["difference"] < 1e-4 for r in report["results"])
    assert report["overhead_us"]["plan(x, out=y)"] > 0
    table = (tmp_path / "gpu.md").read_text()
    assert table.count("| rehearsal/") == len(report["results"])
    assert "rehearsal, forward, channels_last" in table


def test_without_a_gpu_the_script_says_so(tmp_path):
    require("cupy")
    from tests.gpu.conftest import missing

    if missing() is None:
        pytest.skip("a GPU is here")
    environment = {**os.environ, "OUT": str(tmp_path), "PYTHON": sys.executable, "FASTCONV_GPU_REHEARSAL": "0"}
    done = subprocess.run(["bash", "bench/gpu.sh"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "bench/gpu.sh needs a GPU that CuPy can use: cuda" in done.stderr


def test_the_yardsticks_compile():
    require_nvrtc()
    for arch in EVERY:
        for instance in gpu_clock.YARDSTICKS.values():
            _, used = compile_cubin(instance, arch, gpu_clock.FOLDER)
            assert used.stack == used.spill_stores == used.spill_loads == 0


def test_jobs_are_the_suites_once():
    found = gpu.jobs()
    tasks = [job for job in found if job["kind"] == "task"]
    assert [job["kind"] for job in found[:3]] == ["describe", "ceilings", "overhead"]
    assert {job["case"] for job in tasks} == {case.name for case in fc.testing.cases()}
    assert {job["batch"] for job in tasks} == {32, 128, 64}
    assert len(tasks) == len({tuple(job.items()) for job in tasks})
    assert tasks[0]["case"].startswith("resnet/")
    forward = [n for n, job in enumerate(tasks) if job["direction"] == "forward"]
    assert forward[-1] < min(n for n, job in enumerate(tasks) if job["direction"] == "grad_weight")


TASKS = [
    Task(case, 2, direction, layout)
    for case in (
        Case("t", "conv", 4, (6, 7), 6, (3, 3), (2, 1), (1, 1), (1, 2), 2),
        Case("t", "conv", 3, (9,), 5, (3,), (1,), (1,), (1,)),
        Case("t", "max_pool", 3, (6, 7), 3, (3, 3), (2, 2), (1, 1), (1, 1)),
        Case("t", "avg_pool", 3, (6, 7), 3, (3, 3), (2, 2), (1, 1), (1, 1)),
        Case("t", "avg_pool", 3, (6, 7), 3, (), (), (), ()),
    )
    for direction in case.directions
    for layout in ("channels_first", "channels_last")
    if case.rank > 1 or layout == "channels_first"
]


@pytest.mark.parametrize("task", TASKS, ids=lambda t: t.name)
def test_cudnn_is_asked_for_the_task(task):
    """PyTorch's own kernels stand for cuDNN's."""
    torch = require("torch")
    from bench.tasks import inputs

    data = {name: a for name, a in inputs(task).items() if name in shapes(task)}
    given = {
        n: np.ascontiguousarray(np.moveaxis(a, 1, -1)) if task.layout == "channels_last" and n != "w" else a
        for n, a in data.items()
    }
    assert {n: a.shape for n, a in given.items()} == {n: laid(task, n, s) for n, s in shapes(task).items()}
    ready = peer(task, [given, given], torch.from_numpy)
    for got in (ready.first(), ready(), ready()):
        np.testing.assert_allclose(got.detach().numpy(), expected(task), atol=1e-4)


JOBS = [{"kind": "describe"}, {"kind": "die"}, {"kind": "wrong"}, {"kind": "overhead"}]
DYING = """
import os, sys, time
from pathlib import Path
from bench import gpu_worker
def job(self, job):
    if job["kind"] == "die":
        time.sleep(1)
        print("an illegal access", file=sys.stderr, flush=True)
        os._exit(3)
    if job["kind"] == "wrong":
        raise ValueError("refused")
    return {"device": job["kind"]}
gpu_worker.Worker.job = job
gpu_worker.main(Path(sys.argv[-2]), Path(sys.argv[-1]))
"""


def test_a_process_that_dies_loses_one_job(monkeypatch):
    require_emulator()
    monkeypatch.setenv("FASTCONV_GPU_REHEARSAL", "1")
    popen = subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda command, **options: popen([command[0], "-c", DYING, *command[-2:]], **options)
    )
    monkeypatch.setattr(gpu, "KEEP", 0.0)
    seen = []
    found = gpu.run(JOBS, 120, seen.append)
    assert {0: {"device": "describe"}} in seen  # while the next job was still running
    assert found == {
        0: {"device": "describe"}, 1: {"failed": "the process ended: an illegal access"},
        2: {"failed": "ValueError: refused"}, 3: {"device": "overhead"},
    }  # fmt: skip
    assert gpu.run(JOBS, 5) == {}  # too little time: nothing is begun


def test_what_failed_or_was_left_out_is_named():
    wanted = [{"kind": "describe"}, {"kind": "ceilings"}, {"kind": "overhead"}] + [
        {"kind": "task", "case": case.name, "batch": 2, "direction": "forward", "layout": "channels_first"}
        for case in gpu_worker.TINY
    ]
    times = {"kernel": "direct", "seconds": 1e-6, "seconds, spread": 0.01, "cuDNN seconds": 3e-6}
    found = gpu.report(wanted, {1: {"TFLOP/s": 60.0, "GB/s": 4000.0}, 3: times, 4: {"failed": "off by 1"}}, "x")
    assert [round(r.get("ratio", 0), 6) for r in found["results"]] == [3.0, 0]
    assert found["geometric_means"] == {"rehearsal, forward, channels_first": pytest.approx(3.0)}
    text = gpu.markdown(found) + gpu.summary(found)
    assert "| off by 1 |" in text
    assert "FAILED rehearsal/" in text
    assert "Left out for lack of time, 1 tasks: rehearsal/" in text


def test_times():
    assert Times.of([1.0, 1.0, 1.0, 2.0]) == Times(1.0, 1.0)
    assert Times.of([3.0]) == Times(3.0, 0.0)
