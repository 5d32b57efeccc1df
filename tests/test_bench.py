"""The benchmarks' harness: it runs, it states what it should, and it times nothing that is wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastconv
from bench import compare, judge, startup
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
        "floor", "--direction", "forward", "grad_input", "--batch", "1", "--threads", "1",
        "--layout", "channels_first", "channels_last",
    )  # fmt: skip
    assert {r["case"] for r in report["results"]} == {"pooling/64x112-max3s2"}
    assert [(r["direction"], r["layout"]) for r in report["results"]] == [
        ("forward", "channels_first"), ("grad_input", "channels_first"),
        ("forward", "channels_last"), ("grad_input", "channels_last"),
    ]  # fmt: skip
    first = report["results"][0]["libraries"]
    assert first["fastconv"]["rate"] > 0
    assert first["floor"]["rate"] > 0
    assert report["results"][0]["ratio"] is None  # a floor is no peer
    assert first["fastconv-im2col"] == {"skipped": "pooling has no such kernel"}
    assert report["machine"]["cores"] >= 1
    assert report["versions"]["numpy"] == np.__version__
    assert report["ceilings"]["before"]["GFLOP/s"] > 1
    assert report["ceilings"]["before"]["GFLOP/s, 1 thread"] > 1
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


def test_one_unprepared_call_and_its_floor(tmp_path):
    report = run_compare(
        tmp_path / "calls.json", "--suite", "lecture", "--direction", "forward", "call", "--batch", "1",
        "--libraries", "fastconv", "fastconv-one-thread", "onnxruntime", "floor", "--threads", "2",
    )  # fmt: skip
    forward, call = (r["libraries"] for r in report["results"])
    assert forward["fastconv"]["prepacked"]
    assert not call["fastconv"]["prepacked"]
    assert "seconds" in forward["fastconv-one-thread"]
    assert forward["floor"]["note"] == "multiply-adds"
    assert forward["floor"]["rate"] > 1  # GFLOP/s, however busy the machine
    assert [set(call[name]) for name in ("onnxruntime", "floor", "fastconv-one-thread")] == [{"skipped"}] * 3


# ------------------------------------------------------------------------------------------------------- the judge


def result(case, batch=1, direction="forward", note="direct", work=1e8, **rates):
    found = {name.replace("_", "-"): {"rate": r, "seconds": 1.0, "note": note} for name, r in rates.items()}
    return {
        "case": case, "batch": batch, "direction": direction, "layout": "channels_first", "work": work,
        "libraries": found,
    }  # fmt: skip


def verdicts(*results):
    return {(v.title, v.goal.rivals): v for v in judge.judge(results)}


def test_every_case_has_a_class_and_the_right_one():
    names = {}
    for case in fastconv.testing.cases():
        r = result(case.name, case.batch or 1)
        names[case.name] = next(k.name for k in judge.CLASSES if k.takes(case, r))
    assert names["vgg/64x224-64k3"] == names["unet/128x112-64k3"] == "3×3, ≥ 64 channels, ≥ 14 px"
    assert names["vgg/512x14-512k3"] == "3×3, 512 channels at 14 px, batch 1"
    assert names["first/32x28-96k5"] == "5×5"
    assert names["depthwise/96x56-96k7g96"] == "depthwise"
    assert names["pooling/2048x7-global_avg"] == "pooling"
    others = ("resnet/512x7-512k3", "awkward/512x14-512k3g32", "awkward/128x28-32k3", "awkward/1x1024-8k5")
    assert {names[n] for n in others} == {"other convolutions"}
    assert sum(kind == "3×3, ≥ 64 channels, ≥ 14 px" for kind in names.values()) == 16


def test_means_worst_cases_and_misses():
    good = result("vgg/64x224-64k3", fastconv=8.0, torch=2.0, openvino=1.0, ncnn=3.0)
    weak = result("vgg/64x112-128k3", fastconv=2.5, torch=1.0, ncnn=2.0, floor=5.0)
    title = "3×3, ≥ 64 channels, ≥ 14 px, batch 1"
    big = verdicts(good, weak)[title, "the best but ncnn"]
    assert big.ratios == {"vgg/64x224-64k3": 4.0, "vgg/64x112-128k3": 2.5}
    assert big.passed
    ncnn = verdicts(good, weak)[title, "ncnn"]
    assert ncnn.misses == ["vgg/64x112-128k3 1.25 (direct, 50% of the floor)"]
    assert not ncnn.passed
    low = verdicts(weak, result("vgg/64x224-64k3", fastconv=2.5, torch=1.0, ncnn=1.0))[title, "the best but ncnn"]
    assert not low.misses
    assert not low.passed  # each is above 2, the mean is below 3
    table = judge.markdown([good, weak])
    assert "| 1 miss, mean |" in table
    assert "- 3×3, ≥ 64 channels, ≥ 14 px, batch 1 (× ncnn): vgg/64x112-128k3 1.25" in table


def test_a_floor_excuses_what_is_bound_by_memory():
    near = result("depthwise/144x56-144k3g144", fastconv=9.0, torch=9.0, floor=10.0)
    far = result("depthwise/144x56-144k3g144", fastconv=8.0, torch=9.0, floor=10.0)
    (one,), (other,) = verdicts(near).values(), verdicts(far).values()
    assert (one.passed, other.passed) == (True, False)
    conv = result("pointwise/64x56-256k1", fastconv=9.0, torch=10.0, floor=9.1)
    assert not next(iter(verdicts(conv).values())).passed


def test_a_wrong_or_missing_result_of_ours_is_no_pass():
    wrong = result("lecture/32x26-64k3p0", torch=1.0)
    wrong["libraries"]["fastconv"] = {"refused": "wrong result: off by 1"}
    (verdict,) = verdicts(wrong).values()
    assert not verdict.passed
    assert verdict.unmeasured == ["lecture/32x26-64k3p0 (wrong result: off by 1)"]


def test_shares_of_the_peak_and_scaling():
    long = result("pointwise/64x56-256k1", 16, work=2e9, fastconv=9.0, torch=1.0, floor=10.0, fastconv_one_thread=5.0)
    short = result("pointwise/24x56-144k1", work=2e8, fastconv=9.0, torch=1.0, floor=10.0)
    winograd = result("vgg/64x224-64k3", work=2e9, note="winograd", fastconv=30.0, floor=10.0)
    assert judge.at_peak([long, short, winograd]) == [("pointwise/64x56-256k1 batch 16", 0.9)]
    assert judge.scaling([long, short, winograd]) == [("pointwise/64x56-256k1 batch 16", 1.8)]


def test_judging_files_from_the_command_line(tmp_path, capsys):
    head = {
        "machine": {"cpu": "c"}, "threads": 2, "rounds": 1, "date": "2026-01-01T00", "ceilings": {
            "before": {"GFLOP/s": 1.0, "GB/s": 1.0}},
    }  # fmt: skip
    for name, rate in (("a", 1.0), ("b", 2.0)):
        results = [result("lecture/32x26-64k3p0", fastconv=rate, torch=1.0)]
        (tmp_path / f"{name}.json").write_text(json.dumps({**head, "results": results}))
    judge.main([str(tmp_path / "a.json"), str(tmp_path / "b.json"), "--out", str(tmp_path / "j.md")])
    printed = capsys.readouterr().out
    assert "| other convolutions, batch 1 | ≥ 1, none under 0.92 × the best | 1 | 2.00 | 2.00 | pass |" in printed
    assert (tmp_path / "j.md").read_text() == printed


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
    assert 0 < startup.seconds(startup.OURS + startup.PAUSED.format("x.sum()", "warm")) < 1
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # which would hide what threads cost
    assert startup.seconds("import os; print(int('OMP_NUM_THREADS' in os.environ))") == 0
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


def test_calibration_finds_the_constants_that_made_the_times(tmp_path):
    """Times computed from other constants than the table's: calibrated to them, predictions come out as they were."""
    pytest.importorskip("scipy")
    from bench import calibrate
    from bench.choices import problems
    from fastconv import costs, dispatch, settings

    rng = np.random.default_rng(0)
    truth = {k: {kind: v * rng.uniform(0.5, 2) for kind, v in kinds.items()} for k, kinds in costs.COSTS.items()}
    records = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(costs, "COSTS", truth)
        for name, problem in problems():
            able = [c for c in dispatch.candidates(problem, settings.Options(), 2) if c.able]
            rates = {c.algorithm: problem.flops / c.seconds / 1e9 for c in able if c.row.family != "reference"}
            records.append({"case": name, "direction": problem.direction, "GFLOP/s": rates})
    path = tmp_path / "choices.json"
    path.write_text(json.dumps({"threads": 2, "records": records}))
    samples = calibrate.samples(path)
    found = calibrate.fit(samples)
    np.testing.assert_allclose(costs.CALL_SECONDS + samples.work @ found, samples.seconds, rtol=0.02)
    made: dict[str, object] = {}
    exec(calibrate.source(samples, found), made)
    assert made["COSTS"]["direct"]["products"] == pytest.approx(truth["direct"]["products"], rel=0.05)
