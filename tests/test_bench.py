"""The benchmarks' harness: it runs, it states what it should, and it times nothing that is wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastconv
from bench import compare, startup
from bench.libraries import LIBRARIES, Ready, Skipped, expected
from bench.networks import build
from bench.tasks import Task, WrongResult, check, inputs
from bench.worker import run_task
from fastconv.kernels import reference
from tests.support import REQUIRED

ROOT = Path(__file__).resolve().parent.parent
BY_NAME = {case.name: case for case in fastconv.testing.cases()}
CONV = Task(BY_NAME["lecture/32x26-64k3p0"], 1, "forward", "channels_first")


def run_compare(out: Path, *arguments: str) -> dict:
    command = [sys.executable, "-m", "bench.compare", "--rounds", "1", "--seconds", "0.01", "--out", str(out)]
    environment = {**os.environ, "PYTHONWARNINGS": ""}
    done = subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())


@pytest.fixture
def truth(tmp_path):
    path = tmp_path / "truth.npy"
    np.save(path, expected(CONV))
    return path


def test_a_comparison_from_the_command_line(tmp_path):
    out = tmp_path / "results" / "tiny.json"
    report = run_compare(
        out, "--suite", "pooling", "lecture", "--case=64x112-max", "--libraries", "fastconv", "fastconv-im2col",
        "--batch", "1", "--threads", "1", "--layout", "channels_first", "channels_last",
    )  # fmt: skip
    assert {r["case"] for r in report["results"]} == {"pooling/64x112-max3s2"}
    assert [(r["direction"], r["layout"]) for r in report["results"]] == [
        ("forward", "channels_first"), ("grad_input", "channels_first"),
        ("forward", "channels_last"), ("grad_input", "channels_last"),
    ]  # fmt: skip
    first = report["results"][0]["libraries"]
    assert first["fastconv"]["rate"] > 0
    assert first["fastconv-im2col"] == {"skipped": "pooling has no such kernel"}
    assert report["machine"]["cores"] >= 1
    assert report["versions"]["numpy"] == np.__version__
    assert report["ceilings"]["before"]["GFLOP/s"] > 1
    assert report["ceilings"]["after"]["GB/s"] > 0.1
    assert "--threads 1" in report["command"]
    table = out.with_suffix(".md").read_text()
    assert "| pooling/64x112-max3s2, batch 1, forward | GB/s |" in table
    assert "- fastconv-im2col: pooling has no such kernel" in table


def test_peers_are_right_or_skipped_with_a_reason(tmp_path):
    peers = ["torch", "torch-channels-last", "onnxruntime", "openvino", "ncnn"]
    report = run_compare(
        tmp_path / "peers.json", "--suite", "lecture", "pooling", "--case", "32x26|512x14-max", "--batch", "1",
        "--libraries", *peers, "--threads", "1",
    )  # fmt: skip
    timed = set()
    for result in report["results"]:
        for name, found in result["libraries"].items():
            assert "seconds" in found or found["skipped"], (result["case"], name, found)
            timed |= {name} if "seconds" in found else set()
            if name in REQUIRED and result["direction"] == "forward":
                assert "seconds" in found, (result["case"], name, found)
    if not timed:
        pytest.skip(f"none of {', '.join(peers)} is installed (pip install -e '.[bench,torch]')")


def adapter(change):
    """A library that answers with the reference's result, changed."""

    def library(task, data, threads):
        y = np.empty(task.problem.geometry.output_shape, np.float32)
        reference.forward(task.problem.geometry, data["x"], data["w"], None, None, y)
        return Ready(lambda: change(y), np.asarray)

    return library


def lose_a_tap(y):
    y = y.copy()
    y[0, 3, 5, 7] *= 0.9
    return y


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lose_a_tap, "wrong result: off by"),
        (lambda y: y.astype(np.float16), "wrong result: off by"),
        (lambda y: y * np.nan, "off by nan"),
        (lambda y: y[:, :, 1:], r"wrong shape \(1, 64, 23, 24\), expected \(1, 64, 24, 24\)"),
    ],
    ids=["value", "precision", "nan", "shape"],
)
def test_a_wrong_result_is_refused_and_not_timed(monkeypatch, truth, change, reason):
    monkeypatch.setitem(LIBRARIES, "planted", adapter(change))
    found = run_task("planted", CONV, truth, 1, 0.001)
    assert list(found) == ["refused"]
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(found["refused"])


def test_a_right_result_is_timed(monkeypatch, truth):
    monkeypatch.setitem(LIBRARIES, "planted", adapter(lambda y: y))
    found = run_task("planted", CONV, truth, 1, 0.001)
    assert found["seconds"] > 0
    assert found["prepacked"] is False


@pytest.mark.parametrize("error", [Skipped("only on Sundays"), ImportError("No module named 'planted'")])
def test_a_library_that_cannot_says_why(monkeypatch, truth, error):
    def refuse(task, data, threads):
        raise error

    monkeypatch.setitem(LIBRARIES, "planted", refuse)
    assert str(error) in run_task("planted", CONV, truth, 1, 0.001)["skipped"]


def test_a_process_that_dies_is_reported(monkeypatch, truth):
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    options = type("Options", (), {"threads": 1, "seconds": 0.001})()
    (found,) = compare.run_worker("fastconv", [(CONV, truth)], options)
    assert "the process failed" in found["refused"]


@pytest.mark.parametrize("name", ["awkward/1x28-16k3", "pooling/192x28-max3", "pooling/2048x7-global_avg"])
def test_the_truth_about_a_batch(name):
    """Its first and last image, or the sum over all of them: what the reference says of the whole batch."""
    case = BY_NAME[name]
    for direction in case.directions:
        task = Task(case, 3, direction, "channels_first")
        data = {name: a.astype(np.float64) for name, a in inputs(task).items()}
        with fastconv.options(algorithm="reference"):
            ready = LIBRARIES["fastconv"](task, data, 1)
            whole = ready.result(ready.call())
        truth = expected(task)
        check(task, whole, truth)
        with pytest.raises(WrongResult):
            check(task, whole * 1.01, truth)
        if direction != "grad_weight":
            with pytest.raises(WrongResult):
                check(task, np.roll(whole, 1, axis=0), truth)


def test_medians_ratios_and_means():
    rounds = [{"seconds": 2e-3, "prepacked": False, "note": ""}, {"seconds": 1e-3, "prepacked": False, "note": ""}]
    merged = compare.merge(rounds, 3e9)
    assert merged["seconds"] == 1e-3
    assert merged["rate"] == pytest.approx(3000)
    assert merged["spread"] == pytest.approx(1)
    assert compare.merge([rounds[0], {"skipped": "no"}], 1.0) == {"skipped": "no"}
    same = {"suite": "s", "direction": "forward", "layout": "channels_first"}
    results = [{**same, "ratio": 2.0}, {**same, "ratio": 0.5}, {**same, "ratio": None}]
    assert compare.geometric_means(results) == {"s, forward, channels_first": pytest.approx(1)}


def test_startup_measures_calls_and_prints_a_table(monkeypatch, tmp_path, capsys):
    assert 0 < startup.seconds(startup.OURS + startup.REPEATED.format("x.sum()")) < 1
    monkeypatch.setattr(startup, "measure", lambda rounds: {"import": 0.05, "call": 2e-5})
    startup.main(["--out", str(tmp_path / "s.json")])
    assert "| import | 50 ms |\n| call | 20.0 µs |" in capsys.readouterr().out
    assert json.loads((tmp_path / "s.json").read_text())["seconds"]["call"] == 2e-5


@pytest.mark.parametrize(
    ("name", "published"),
    [("resnet18", 11_689_512), ("resnet50", 25_557_032), ("vgg16", 138_357_544), ("mobilenetv2", 3_504_872)],
)
def test_networks_have_as_many_parameters_as_published(monkeypatch, name, published):
    def undrawn(shape, bound, dtype=np.float32, generator=None):
        return np.broadcast_to(dtype(0), shape)  # one number in memory: drawing those of vgg16 takes seconds

    monkeypatch.setattr(fastconv.nn.init, "uniform", undrawn)
    assert sum(parameter.size for parameter in build(name).parameters()) == published


def test_the_u_net_labels_every_pixel():
    with fastconv.no_grad():
        assert build("unet").eval()(np.zeros((1, 3, 16, 16), np.float32)).shape == (1, 21, 16, 16)
