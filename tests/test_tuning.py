"""Measured choices: files round-trip, dispatch prefers them where they hold and only there, programs are recorded."""

import json
import multiprocessing
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import fastconv
from fastconv import cli, dispatch, measurements, problem_files, tuning
from fastconv.measurements import Entry, Table, TuningWarning
from fastconv.problem import (
    ConvProblem,
    adaptive_pool_problem,
    conv_problem,
    conv_transpose_problem,
    pool_problem,
    unpool_problem,
)
from fastconv.problem_files import as_data, from_data, read_problems
from fastconv.settings import Options
from fastconv.testing import cases

PROBLEM = conv_problem("conv2d", 2, (1, 16, 12, 12), (32, 16, 3, 3), padding=1)
OTHER = conv_problem("conv2d", 2, (1, 16, 12, 12), (32, 16, 1, 1))
X, W = np.ones((1, 16, 12, 12), np.float32), np.ones((32, 16, 3, 3), np.float32)


@pytest.fixture(autouse=True)
def untouched(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test begins and ends as a new process that uses no measurements."""
    monkeypatch.setenv("FASTCONV_TUNING", "off")
    tuning.load()
    yield
    monkeypatch.setenv("FASTCONV_TUNING", "off")
    tuning.load()


def choose(problem: ConvProblem = PROBLEM, **options: object) -> str:
    return dispatch.choose(problem, Options(**options)).algorithm  # type: ignore[arg-type]


PREDICTED = choose()
FAMILIES = {c.algorithm: c.row.family for c in dispatch.candidates(PROBLEM, Options(), 1)}
SLOWER = next(
    c.algorithm
    for c in sorted(dispatch.candidates(PROBLEM, Options(), 1), key=lambda c: c.seconds)
    if c.able and c.row.family not in (FAMILIES[PREDICTED], "reference")
)


def table(*entries: Entry, **changed: object) -> Table:
    t = Table(measurements.fingerprint(), measurements.versions(), "2026-01-01T00:00:00+00:00", entries)
    return replace(t, **changed)  # type: ignore[arg-type]


def entry(problem: ConvProblem = PROBLEM, threads: int = 1, fastest: str = SLOWER, loser: str = PREDICTED) -> Entry:
    """Measurements that contradict the prediction."""
    return Entry(problem, threads, {fastest: 1e-5, loser: 2e-5}, fastest)


# ------------------------------------------------------------------------------------------------- problems as text

PROBLEMS = [
    *(case.problem(3, direction=direction) for case in cases() for direction in case.directions),
    conv_problem(
        "conv2d", 2, (2, 8, 9, 7), (6, 4, 3, 2), stride=(2, 1), padding=((1, 2), (0, 3)), dilation=(1, 2), groups=2,
        padding_mode="circular", activation="gelu", bias_shape=(6,), residual_shape=True, dtype="bfloat16",
        layout="channels_last",
    ),
    conv_transpose_problem("conv_transpose2d", 2, (1, 8, 7, 7), (8, 4, 3, 3), stride=2, output_padding=1),
    conv_transpose_problem("conv_transpose1d", 1, (1, 8, 7), (8, 4, 3), dilation=3, output_padding=2, padding=1),
    pool_problem("max_pool2d", 2, "max_pool", (1, 3, 9, 9), 3, stride=2, padding=1, ceil_mode=True, indices=True),
    pool_problem("avg_pool1d", 1, "avg_pool", (1, 3, 9), 2, count_include_pad=False, divisor_override=-3),
    pool_problem("lp_pool3d", 3, "lp_pool", (1, 3, 5, 5, 5), 2, norm_type=1.5, dilation=2),
    adaptive_pool_problem("adaptive_max_pool2d", 2, "max_pool", (1, 3, 9, 8), (4, 3)),
    unpool_problem("max_unpool2d", 2, (1, 3, 4, 4), 2, output_size=(9, 8)),
]  # fmt: skip


def test_problems_survive_being_written_down() -> None:
    for problem in PROBLEMS:
        assert from_data(json.loads(json.dumps(as_data(problem)))) == problem


CONV = as_data(PROBLEM)
POOL = as_data(pool_problem("max_pool2d", 2, "max_pool", (1, 3, 9, 9), 3, stride=2, padding=1))
BAD = [
    ([], "a problem is an object"),
    ({**CONV, "op": "convolve"}, "op must be one of 'conv'"),
    ({k: v for k, v in CONV.items() if k != "stride"}, "needs 'stride'"),
    ({**CONV, "channels": 3}, "has no 'channels'"),
    ({**CONV, "geometry": 3}, "has no 'geometry'"),
    ({**CONV, "stride": [0, 1]}, "stride must be >= 1"),
    ({**CONV, "stride": [1.5, 1]}, "stride must be one to three whole numbers"),
    ({**CONV, "stride": [True, 1]}, "stride must be one to three whole numbers"),
    ({**CONV, "stride": [1]}, "as many as input_size has"),
    ({**CONV, "input_size": 5}, "input_size must be one to three"),
    ({**CONV, "input_size": [1, 1]}, "padding|does not fit"),
    ({**CONV, "input_size": [2**60, 1]}, "input_size must be one to three whole numbers"),
    ({**CONV, "kernel_size": [30, 30]}, "does not fit: the output would be"),
    ({**CONV, "padding": [1, 1]}, "padding must be 2 pairs"),
    ({**CONV, "padding": [[-1, 1], [1, 1]]}, "does not fit an input"),
    ({**CONV, "padding": [[1, -1], [1, 1]]}, "does not fit an input"),
    ({**CONV, "padding_mode": "reflect", "padding": [[12, 0], [0, 0]]}, "does not fit an input"),
    ({**CONV, "padding_mode": "mirror"}, "padding_mode must be one of 'zeros'"),
    ({**CONV, "groups": 3}, "groups=3 must divide"),
    ({**CONV, "groups": 0}, "groups must be a whole number >= 1"),
    ({**CONV, "batch": -1}, "batch must be a whole number >= 0"),
    ({**CONV, "dtype": "int8"}, "dtype must be one of"),
    ({**CONV, "activation": "swish"}, "activation must be one of"),
    ({**CONV, "bias": 1}, "bias must be true or false"),
    ({**CONV, "direction": "up"}, "direction of 'conv' must be one of forward"),
    ({**POOL, "direction": "grad_weight"}, "direction of 'max_pool' must be one of forward, grad_input"),
    ({**POOL, "output_size": [9, 9]}, "output_size must be"),
    ({**POOL, "padding": [[3, 0], [0, 0]]}, "smaller than the window"),
    ({k: v for k, v in POOL.items() if k != "stride"}, "needs stride and padding"),
    ({**POOL, "norm_type": 0}, "norm_type must be"),
    ({**POOL, "divisor_override": 0}, "divisor_override must be"),
]


@pytest.mark.parametrize(("data", "message"), BAD, ids=range(len(BAD)))
def test_what_is_no_problem_is_refused(data: object, message: str, tmp_path: Path) -> None:
    if data == {**CONV, "input_size": [1, 1]}:  # fits, with its padding
        assert from_data(data).geometry.output_size == (1, 1)
        return
    with pytest.raises(ValueError, match=message):
        from_data(data)
    path = tmp_path / "problems.jsonl"
    path.write_text(json.dumps(CONV) + "\n\n" + json.dumps(data) + "\n")
    with pytest.raises(ValueError, match=r"problems\.jsonl, line 3: "):
        read_problems(path)


@pytest.mark.parametrize(
    ("text", "message"), [(b"{", "line 1: not JSON"), (b"", "no problems"), (b"\xff", "not UTF-8")]
)
def test_a_file_that_holds_no_problems(text: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "p").write_bytes(text)
    with pytest.raises(ValueError, match=message):
        read_problems(tmp_path / "p")


# -------------------------------------------------------------------------------------------------------- recording


def test_a_program_is_recorded_each_problem_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "problems.jsonl"
    monkeypatch.setenv("FASTCONV_RECORD", str(path))
    fastconv.cache_clear()
    with fastconv.options(num_threads=1):
        for _ in range(2):
            fastconv.conv2d(X, W, padding=1)
            fastconv.max_pool2d(X, 2)
        fastconv.cache_clear()
        fastconv.conv2d(X, W, padding=1, activation="relu")
        fastconv.plan_conv2d(X.shape, W, padding=1)
    found = read_problems(path)
    assert found == [
        PROBLEM, pool_problem("max_pool2d", 2, "max_pool", X.shape, 2), replace(PROBLEM, activation="relu"),
        replace(PROBLEM, prepared=True),
    ]  # fmt: skip
    assert len(path.read_text().splitlines()) == 4


def _record(arguments: tuple[str, int]) -> None:
    path, first = arguments
    recorder = problem_files.Recorder(Path(path))
    for n in range(first, first + 40):
        recorder.add(conv_problem("conv1d", 1, (1, 1, n + 1), (1, 1, 1)))


def test_processes_share_a_recording(tmp_path: Path) -> None:
    path = tmp_path / "problems.jsonl"
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.map(_record, [(str(path), 0), (str(path), 20)])
    assert {p.geometry.input_size for p in read_problems(path)} == {(n + 1,) for n in range(60)}


def test_a_recording_that_cannot_be_written_warns_once(tmp_path: Path) -> None:
    recorder = problem_files.Recorder(tmp_path / "none" / "p")
    with pytest.warns(RuntimeWarning, match="FASTCONV_RECORD: cannot write .*none/p: No such file"):
        recorder.add(PROBLEM)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recorder.add(OTHER)


# -------------------------------------------------------------------------------------------------------- the choice


def test_a_measured_choice_is_preferred_where_it_holds(tmp_path: Path) -> None:
    assert choose() == PREDICTED
    table(entry()).save(tmp_path / "t.json")
    assert tuning.load(tmp_path / "t.json") == table(entry())
    assert choose() == SLOWER
    assert choose(replace(PROBLEM, bias=True, activation="relu")) == SLOWER
    assert dispatch.choose(PROBLEM, Options(), threads=2).algorithm == PREDICTED
    last = replace(PROBLEM, layout="channels_last")
    assert choose(last) == choose(last, deterministic=True)
    with fastconv.options(num_threads=1):
        why = fastconv.explain(fastconv.conv2d, X, W, padding=1)
        assert (why.chosen, why.reason) == (SLOWER, "measured by tune: 0.01 ms on 1 thread, of 2 kernels")
    assert tuning.load("off") is None
    assert choose() == PREDICTED


def test_limits_come_before_measurements() -> None:
    measurements.activate(table(entry()))
    assert choose(deterministic=True) == PREDICTED
    assert choose(algorithm=PREDICTED) == PREDICTED
    assert choose(algorithm="reference") == "reference"
    with fastconv.options(deterministic=True, num_threads=1):
        assert "predicted" in fastconv.explain(fastconv.conv2d, X, W, padding=1).reason
    workspaces = {c.algorithm: c.workspace_bytes for c in dispatch.candidates(PROBLEM, Options(), 1)}
    if workspaces[SLOWER] > workspaces[PREDICTED]:
        assert choose(workspace_limit=workspaces[PREDICTED]) == PREDICTED
    measurements.activate(table(entry(fastest=PREDICTED, loser=SLOWER)))
    assert choose(algorithm=SLOWER) == SLOWER


def test_a_prediction_that_was_not_measured_stays() -> None:
    measurements.activate(table(Entry(PROBLEM, 1, {SLOWER: 1e-5}, SLOWER)))
    assert choose() == PREDICTED
    measurements.activate(table(Entry(PROBLEM, 1, {"gone": 1e-6, SLOWER: 1e-5, PREDICTED: 2e-5}, "gone")))
    assert choose() == SLOWER


def test_plans_are_problems_of_their_own() -> None:
    predicted = choose(replace(PROBLEM, prepared=True), deterministic=True)
    measurements.activate(table(entry(loser=predicted)))
    with fastconv.options(num_threads=1):
        assert fastconv.plan_conv2d(X.shape, W, padding=1).algorithm == predicted
        measurements.activate(table(entry(replace(PROBLEM, prepared=True), loser=predicted)))
        fastconv.cache_clear()
        assert fastconv.plan_conv2d(X.shape, W, padding=1).algorithm == SLOWER
        assert fastconv.explain(fastconv.conv2d, X, W, padding=1).chosen == PREDICTED


def loaded(path: Path, monkeypatch: pytest.MonkeyPatch) -> Table | None:
    """What a new process would use."""
    monkeypatch.setenv("FASTCONV_TUNING", str(path))
    return tuning.load()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"machine": {"cpu": "another", "features": "", "cores": 64}}, "measured with cpu 'another', here it is"),
        ({"versions": {"fastconv": "0.0", "numba": "0"}}, "measured with fastconv '0.0', here it is"),
    ],
)
def test_measurements_from_elsewhere_are_ignored_with_one_warning(
    changed: dict[str, object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t.json"
    table(entry(), **changed).save(path)
    with pytest.warns(TuningWarning, match=message) as caught:
        assert loaded(path, monkeypatch) is None
    assert len(caught) == 1
    assert str(path) in str(caught[0].message)
    assert choose() == PREDICTED  # without a second warning, which would be an error here
    with pytest.raises(ValueError, match=message):
        tuning.load(path)


BROKEN = [
    ("", "not a tuning file"),
    ("[]", "no 'format'"),
    ('{"format": "fastconv tuning 1"}', "'machine' is missing"),
    (
        json.dumps({"format": measurements.FORMAT, "machine": {}, "versions": {}, "date": "", "entries": [3]}),
        "entry 1: ",
    ),
]


@pytest.mark.parametrize(("text", "message"), BROKEN, ids=range(len(BROKEN)))
def test_a_broken_file_is_a_warning_to_programs_and_an_error_to_readers(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t.json"
    path.write_text(text)
    with pytest.warns(TuningWarning, match=message):
        assert loaded(path, monkeypatch) is None
    with pytest.raises(ValueError, match=f"t.json.*{message}"):
        tuning.read(path)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("threads", 0, "threads must be"),
        ("seconds", {}, "'seconds' must map"),
        ("seconds", {"direct": "fast"}, "'seconds' must map"),
        ("chosen", "best", "'chosen' must be one of"),
        ("chosen", [], "'chosen' must be one of"),
        ("seconds", {"direct": True}, "'seconds' must map"),
        ("problem", None, "a problem is an object"),
    ],
)
def test_a_wrong_entry_is_named(name: str, value: object, message: str, tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    table(entry(), entry(OTHER)).save(path)
    data = json.loads(path.read_text())
    data["entries"][1][name] = value
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=f"entry 2: {message}"):
        tuning.read(path)


def test_a_named_file_that_is_missing_warns_and_the_default_place_may_be_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.warns(TuningWarning, match="none.json are not used: No such file"):
        assert loaded(tmp_path / "none.json", monkeypatch) is None
    assert tuning.location() == tmp_path / "none.json"
    monkeypatch.delenv("FASTCONV_TUNING")
    monkeypatch.setattr("platformdirs.user_config_path", lambda *a, **k: tmp_path)
    assert tuning.location() == tmp_path / "tuning.json"
    assert tuning.load() is None
    table(entry()).save(tmp_path / "tuning.json")
    assert tuning.load() == table(entry())


def test_saving_fails_without_a_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.json"
    table(entry()).save(path)
    before = path.read_text()
    monkeypatch.setattr(os, "replace", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        table(entry(OTHER)).save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["t.json"]
    assert path.read_text() == before


# --------------------------------------------------------------------------------------------------------- measuring


@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("direction", ["forward", "grad_input", "grad_weight"])
def test_every_kernel_able_is_measured(direction: str, prepared: bool) -> None:
    problem = replace(PROBLEM, direction=direction, layout="channels_last", prepared=prepared)
    found = tuning.measure(replace(problem, bias=direction != "grad_weight"), 1, 0.001)
    assert found is not None
    rows = [c for c in dispatch.candidates(problem, Options(max_error=1e9), 1) if c.able]
    assert set(found.seconds) == {c.algorithm for c in rows} - {"reference"}
    assert found.problem == problem
    assert found.choice in found.seconds
    assert 0 < min(found.seconds.values()) < 1


def test_where_there_is_no_choice_nothing_is_measured() -> None:
    pool = pool_problem("max_pool2d", 2, "max_pool", X.shape, 2)
    empty = conv_problem("conv2d", 2, (0, 16, 12, 12), W.shape)
    gpu = replace(PROBLEM, device="cuda")
    seen: list[object] = []
    assert tuning.tune([pool, empty, gpu], report=lambda p, e: seen.append((p, e))).entries == ()
    assert seen == [(pool, None), (empty, None), (gpu, None)]


def test_a_prediction_as_fast_is_kept() -> None:
    assert tuning._choice({"a": 1.00, "b": 1.02}, ["b", "a"]) == "b"
    assert tuning._choice({"a": 1.00, "b": 1.05}, ["b", "a"]) == "a"
    assert tuning._choice({"a": 1.00, "b": 1.05, "inaccurate": 0.1}, ["b", "a"]) == "a"


def test_merging() -> None:
    a, b = table(entry(), entry(OTHER)), table(entry(fastest=PREDICTED, loser=SLOWER), entry(threads=2))
    merged = tuning.merge(a, b)
    assert {e.key for e in merged.entries} == {(PROBLEM, 1), (PROBLEM, 2), (OTHER, 1)}
    found = merged.find(PROBLEM, 1)
    assert found is not None
    assert found.choice == PREDICTED
    with pytest.raises(ValueError, match=r"differ in machine \(cores\)"):
        tuning.merge(a, replace(b, machine={**b.machine, "cores": 99}))


def test_verifying_reports_choices_that_fell_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    now = {
        PROBLEM: Entry(PROBLEM, 1, {SLOWER: 3.0, PREDICTED: 1.0}, PREDICTED),
        OTHER: Entry(OTHER, 1, {SLOWER: 1.05, PREDICTED: 1.0}, PREDICTED),
    }
    monkeypatch.setattr(tuning, "measure", lambda problem, threads, seconds: now[problem])
    (stale,) = tuning.verify(table(entry(), entry(OTHER)))
    assert (stale.old.problem, stale.loss) == (PROBLEM, 3.0)
    with pytest.raises(ValueError, match="no use here"):
        tuning.verify(table(entry(), versions={"fastconv": "0"}))


# --------------------------------------------------------------------------------------------------- the command line

Invoke = Callable[..., tuple[int, str, str]]


@pytest.fixture
def invoke(capsys: pytest.CaptureFixture[str]) -> Invoke:
    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            cli.main([str(a) for a in arguments])
        printed = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return caught.value.code, printed.out, printed.err

    return run


def test_from_a_recorded_program_to_its_choices(tmp_path: Path, invoke: Invoke) -> None:
    """Two processes and the commands between them."""
    problems, measured = tmp_path / "problems.jsonl", tmp_path / "measured.json"
    code = (
        "import numpy as np, fastconv\n"
        "x, w = np.ones((1, 16, 12, 12), 'f4'), np.ones((32, 16, 3, 3), 'f4')\n"
        "fastconv.conv2d(x, w, padding=1); fastconv.max_pool2d(x, 2)\n"
        "print(fastconv.explain(fastconv.conv2d, x, w, padding=1).reason)"
    )

    def run(**environment: str) -> str:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code], env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run(FASTCONV_RECORD=str(problems)).startswith("least predicted time")
    status, out, err = invoke("tune", "--problems", problems, "--threads", 1, "--seconds", 0.001, "--out", measured)
    assert (status, err) == (0, "")
    assert "no choice to make" in out
    assert "1 problems in" in out
    assert run(FASTCONV_TUNING=str(measured)).startswith("measured by tune: ")

    status, out, err = invoke("tune", "--suite", "lecture", "--batch", 1, "--seconds", 0.001, "--out", measured)
    assert "3 problems in" in out
    status, out, err = invoke("tune", "show", measured)
    assert (status, err) == (0, "")
    assert "used here" in out
    assert "1x16x12x12" in out
    status, out, err = invoke("tune", "merge", measured, measured, "-o", tmp_path / "both.json")
    assert (status, err) == (0, "")
    assert tuning.read(tmp_path / "both.json").entries == tuning.read(measured).entries


def test_verify_exits_with_1_where_choices_are_stale(
    tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    table(entry()).save(tmp_path / "t.json")
    monkeypatch.setattr(tuning, "measure", lambda *a: entry(fastest=PREDICTED, loser=SLOWER))
    status, out, _ = invoke("tune", "verify", tmp_path / "t.json")
    assert status == 1
    assert f"{SLOWER} takes 2.00 times as long" in out
    assert "0 of 1 choices hold" in out
    monkeypatch.setattr(tuning, "measure", lambda *a: entry())
    assert invoke("tune", "verify", tmp_path / "t.json")[0] == 0


def test_another_machines_file_is_replaced_and_a_strange_one_is_not(
    tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t.json"
    table(entry(), versions={"fastconv": "0.0"}).save(path)
    monkeypatch.setattr(tuning, "measure", lambda problem, threads, seconds: entry(problem))
    status, out, _ = invoke("tune", "--suite", "lecture", "--batch", 1, "-o", path)
    assert status == 0
    assert "2 problems" in out
    assert "those before it are replaced: it was measured with fastconv '0.0'" in out
    path.write_text("{}")
    status, _, err = invoke("tune", "--suite", "lecture", "-o", path)
    assert status == 2
    assert "no 'format'" in err
    assert path.read_text() == "{}"


def test_ctrl_c_keeps_what_was_measured(tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(problem: ConvProblem, threads: int, seconds: float) -> Entry:
        if problem.prepared:
            raise KeyboardInterrupt
        return entry(problem)

    monkeypatch.setattr(tuning, "measure", interrupted)
    status, _, err = invoke("tune", "--suite", "lecture", "-o", tmp_path / "t.json")
    assert status == 130
    assert err in ("", "fastconv: interrupted\n")  # newer versions of Typer say nothing
    assert len(tuning.read(tmp_path / "t.json").entries) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("tune --suite rsnet", "suite must be"),
        ("tune --suite lecture --direction up", "--direction must be one of forward"),
        ("tune --suite lecture --threads 0", "num_threads must be between 1 and 1024, got 0"),
        ("tune --suite lecture --seconds 0", "--seconds must be positive"),
        ("tune --suite lecture --batch 0", "--batch must be >= 1"),
        ("tune --problems none.jsonl", "No such file"),
        ("tune show none.json", "No such file"),
        ("tune show", "FASTCONV_TUNING switches measurements off; name a file"),
        ("tune --suite lecture", "FASTCONV_TUNING switches measurements off; name a file"),
    ],
)
def test_mistakes_are_one_clear_line(
    line: str, message: str, tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if "0" in line:
        line += " --out t.json"
    status, out, err = invoke(*line.split())
    assert (status, out) == (2, "")
    assert err.startswith("fastconv: ")
    assert err.count("\n") == 1
    assert message in err
    assert list(tmp_path.iterdir()) == []
