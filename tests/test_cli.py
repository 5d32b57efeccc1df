"""The command line: what each command prints and writes, and one clear line for every mistake."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import fastconv
from fastconv import cli, doctor, inspection
from fastconv.filters import FILTERS, filter_image, read_image, write_image
from fastconv.registry import ROWS
from fastconv.train import TrainConfig

Invoke = Callable[..., tuple[int, str, str]]


@pytest.fixture
def invoke(capsys: pytest.CaptureFixture[str]) -> Invoke:
    """Run a command in this process: (exit status, standard output, standard error)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            cli.main([str(a) for a in arguments])
        printed = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return caught.value.code, printed.out, printed.err

    return run


def ok(result: tuple[int, str, str]) -> str:
    status, out, err = result
    assert (status, err) == (0, "")
    return out


# -------------------------------------------------------------------------------------------------------- as a whole


def test_version(invoke: Invoke) -> None:
    assert ok(invoke("--version")) == f"fastconv {fastconv.__version__}\n"


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["train"],
        ["explain"],
        ["doctor"],
        ["warmup"],
        ["cache"],
        ["cache", "info"],
        ["filter"],
        ["tune"],
        ["tune", "show"],
    ],
)
def test_help(command: list[str], invoke: Invoke) -> None:
    out = ok(invoke(*command, "--help"))
    assert "Usage: fastconv" in out
    assert out == ok(invoke(*command, "-h"))


@pytest.mark.parametrize("group", [[], ["cache"], ["tune"]])
def test_a_group_without_command_prints_its_help_alone(group: list[str], invoke: Invoke) -> None:
    assert ok(invoke(*group)) == ok(invoke(*group, "--help"))


def test_doctor_says_what_there_is_of_cuda(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    said = ok(invoke("doctor"))
    if "CuPy is not installed" not in said:
        assert re.search(
            r"  cuda +CuPy \d+\.\S+(, CUDA runtime \d+\.\d, \d+ device\(s\)| finds no usable device: .+)\n", said
        )
        assert re.search(r"  nvrtc +(\d+\.\d+|NVRTC cannot be loaded: .+)\n", said)
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    assert list(doctor.gpu()) == ["cuda"]
    assert "CuPy is not installed" in doctor.gpu()["cuda"]


def test_help_names_the_defaults_of_training(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    text, config = ok(invoke("train", "--help")), TrainConfig()
    for default in (
        config.epochs,
        config.batch_size,
        f"{config.lr}; sgd {TrainConfig(optimizer='sgd').lr}",
        config.optimizer,
        config.device,
    ):
        assert f"default: {default}." in text


def test_it_starts_quickly_and_without_numba() -> None:
    code = "import sys; from fastconv import cli; print('numba' in sys.modules or 'matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "fastconv", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"fastconv {fastconv.__version__}\n"


MISTAKES = [
    ("trane", "No such command 'trane'"),
    ("train --epoch", "No such option: --epoch"),
    ("train --epochs many", "Invalid value for '--epochs'"),
    ("train --epochs 0", "epochs must be at least 1, got 0"),
    ("train --batch-size 0", "batch_size must be at least 1"),
    ("train --optimizer adamax", "optimizer must be one of adam, adamw, sgd; got 'adamax'"),
    ("train --lr -1", "lr must be positive, got -1.0"),
    ("train --device tpu", "device must be cpu or cuda, got 'tpu'"),
    ("train --split 8000", "--split must be two sizes such as 8000/2000, got '8000'"),
    ("train --split 8000/x", "--split must be two sizes such as 8000/2000"),
    ("train --split 1700/100", "need 1800 samples, there are 1797"),
    ("train --data nowhere", "nowhere: no such directory"),
    ("train --data .", "no IDX files; needed are train-images-idx3-ubyte"),
    ("train --resume nowhere", "nowhere: no interrupted run here; nothing to resume"),
    ("train --resume nowhere --lr 1 --out x", "its own settings and directory; leave out --lr, --out"),
    ("explain", "Missing argument"),
    ("explain conv2d", "Missing option '--input'"),
    ("explain conv2d --input 1x2x8x8", "conv2d needs weight"),
    ("explain conv2d --input 99999999999x3x8x8 --weight 4x5x3x3", "so x needs 5 channels"),
    ("explain conv4d --input 1x2x8x8", "operation must be one of conv1d, conv2d"),
    ("explain conv2d --input 1x2xax8 --weight 2x2x3x3", "--input must be sizes such as 1x64x56x56, got '1x2xax8'"),
    ("explain conv2d --input 1x2x8x8 --weight 2x3x3x3", "conv2d: w"),
    ("explain conv2d --input 1x2x8x8 --weight 2x2x3x3 --padding some", "padding"),
    ("explain conv2d --input 1x2x8x8 --weight 2x2x3x3 --dtype int8", "dtype must be one of float32"),
    ("explain conv2d --input 1x2x8x8 --weight 2x2x3x3 --algorithm best", "algorithm must be 'auto' or one of"),
    ("explain conv2d --input 1x2x8x8 --weight 2x2x3x3 --direction up", "must be one of forward, input, weight;"),
    ("explain conv2d --input 1x2x8x8 --weight 2x2x3x3 --device tpu", "device must be cpu or cuda, got 'tpu'"),
    ("explain conv2d --input 1x2x8x8 --weight 2x2x3x3 --kernel-size 2", "conv2d takes no kernel_size; it takes x"),
    ("explain max_pool2d --input 1x2x8x8", "max_pool2d needs kernel_size"),
    ("explain max_pool2d --input 1x2x8x8 --weight 2x2x3x3", "max_pool2d has no weights"),
    ("explain max_pool2d --input 1x2x8x8 --kernel-size 2 --direction weight", "must be one of forward, input;"),
    ("warmup --dtype int8", "dtype must be one of"),
    ("filter none.png", "none.png: no such file"),
    ("filter text.png", "text.png: not an image"),
    ("filter grey.png --kernel sharper", "kernel must be one of identity, sharpen"),
    ("filter grey.png -o result.xyz", "must end in an image format"),
    ("filter grey.png -o none/result.png", "No such file or directory"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "message"), MISTAKES, ids=[line for line, _ in MISTAKES])
def test_a_mistake_is_one_clear_line(
    line: str, message: str, invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.png").write_text("no picture")
    write_image("grey.png", np.zeros((4, 4), np.uint8))
    before = sorted(tmp_path.iterdir())
    status, out, err = invoke(*line.split())
    assert (status, out) == (2, "")
    assert re.fullmatch(r"fastconv: .+\n", err), err
    assert message in err
    assert sorted(tmp_path.iterdir()) == before


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        cli.main(["--debug", "filter", str(tmp_path / "none.png")])


def test_a_gpu_that_is_missing_is_one_clear_line(invoke: Invoke, tmp_path: Path) -> None:
    if "device 0" in doctor.gpu():
        pytest.skip("a CUDA device is here")
    status, _, err = invoke("train", "--device", "cuda", "--out", tmp_path / "run")
    assert status == 2
    assert re.fullmatch(r"fastconv: .*\n", err)
    assert "cuda" in err


def test_a_missing_library_names_its_extra(invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    status, out, err = invoke("train", "--out", tmp_path / "run")
    assert (status, out) == (2, "")  # before anything is trained
    assert (
        err
        == 'fastconv: training with an output directory needs safetensors: python -m pip install "fastconv[examples]"\n'
    )


# ------------------------------------------------------------------------------------------------------------- train


def test_training_in_a_log_file(invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a terminal: one line an epoch, no control characters."""
    monkeypatch.chdir(tmp_path)
    out = ok(invoke("train", "--epochs", 2, "--split", "300/90", "--batch-size", 50, "--seed", 3))
    assert "\x1b" not in out
    assert "\r" not in out
    assert (
        len(re.findall(r"^epoch +[12]/2 +[\d,]+ images/s  loss \d\.\d+  accuracy +[\d.]+%  test +[\d.]+%$", out, re.M))
        == 2
    )
    record = json.loads((tmp_path / "runs" / "1" / "record.json").read_text("utf-8"))
    accuracy = record["test"]["accuracy"]
    assert f"test accuracy {accuracy:.2%} ({round(90 * accuracy)} of 90 images)" in out
    assert "confusion matrix (row: true, column: predicted)" in out
    for kernel in record["kernels"]:
        assert re.search(rf"{kernel['layer']} +{kernel['direction']} +{kernel['algorithm']} +\S", out)
    assert "written to runs/1: confusion.png, filters.png, learning_curve.png, record.json, weights.safetensors" in out

    (tmp_path / "runs" / "7").mkdir()
    assert "written to runs/8:" in ok(invoke("train", "--epochs", 1, "--split", "100/50"))


def test_progress_bar_in_a_terminal(tmp_path: Path) -> None:
    pty = pytest.importorskip("pty", reason="needs pseudo-terminals (POSIX)")
    master, slave = pty.openpty()
    command = [
        sys.executable,
        "-m",
        "fastconv",
        "train",
        "--epochs",
        "2",
        "--split",
        "600/50",
        "--out",
        str(tmp_path / "run"),
    ]
    process = subprocess.Popen(
        command, stdout=slave, stderr=slave, env=os.environ | {"TERM": "xterm", "COLUMNS": "140"}
    )
    os.close(slave)
    shown = b""
    while True:
        try:
            part = os.read(master, 65536)
        except OSError:  # Linux's end of file on a pseudo-terminal
            break
        if not part:
            break
        shown += part
    os.close(master)
    assert process.wait() == 0, shown.decode()
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())
    assert re.search(r"epoch 2/2 \S+ +\d+/38 [\d,]+ images/s  loss \d\.\d+  accuracy [\d.]+%", text)
    assert "test accuracy" in text


def test_ctrl_c_saves_and_resume_continues(invoke: Invoke, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "fastconv", "train", "--epochs", "400", "--split", "320/50", "--out", str(folder)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"}
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch   2/400"):
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "interrupted: finishing this batch" in out
    assert err == f"fastconv: interrupted; saved in {folder}; continue with: fastconv train --resume {folder}\n"

    status, _, err = invoke("train", "--out", folder)
    assert (status, err) == (2, f"fastconv: {folder} holds an interrupted run; resume it, or name another directory\n")

    process = subprocess.Popen([*command[:4], "--resume", str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(6)]
    process.kill()
    process.communicate()
    assert re.match(r"resumed   after \d+ epochs and \d+ of 10 batches", lines[3])
    assert lines[4].startswith("epoch ")


# ----------------------------------------------------------------------------------------------------------- explain


def test_explain_for_a_gpu_needs_none(invoke: Invoke) -> None:
    arguments = ("explain", "conv2d", "--input", "1x64x56x56", "--weight", "64x64x3x3", "--device", "cuda")
    out = ok(invoke(*arguments, "--algorithm", "direct"))
    assert "chosen: direct (algorithm='direct' was asked for)" in out
    for direction in ("forward", "input", "weight"):
        out = ok(invoke(*arguments, "--direction", direction))
        assert "reference" not in out
        assert "cuda" in out.partition("\n")[0]


def test_explain_lists_every_row(invoke: Invoke) -> None:
    out = ok(invoke("explain", "conv2d", "--input", "1x64x56x56", "--weight", "64x64x3x3", "--padding", 1))
    x, w = np.empty((1, 64, 56, 56), np.float32), np.empty((64, 64, 3, 3), np.float32)
    assert out == f"{fastconv.explain(fastconv.conv2d, x, w, padding=1)}\n"
    for row in ROWS:
        if (row.op, row.direction, row.device) == ("conv", "forward", "cpu"):
            assert row.algorithm in out


@pytest.mark.parametrize("operation", inspection.OPERATIONS)
@pytest.mark.parametrize("direction", ["forward", "input", "weight"])
def test_every_operation_can_be_explained(operation: str, direction: str, invoke: Invoke) -> None:
    kind, rank = inspection.OPERATIONS[operation]
    if direction == "weight" and not kind.startswith("conv"):
        assert invoke("explain", operation, "--input", "1", "--direction", direction)[0] == 2
        return
    options = ["--input", "2x4" + "x8" * rank, "--dtype", "float64"]
    if kind.startswith("conv"):
        options += ["--weight", "4x4" + "x3" * rank, "--padding", "1" + "x1" * (rank - 1)]
    elif kind.startswith("adaptive"):
        options += ["--output-size", "2"]
    else:
        options += ["--kernel-size", "2", *(["--norm-type", "2"] if kind == "lp_pool" else [])]
    out = ok(invoke("explain", operation, *options, "--direction", direction))
    assert "chosen: " in out
    assert "float64" in out


def test_the_gradient_of_a_transposed_convolution_is_a_convolution(invoke: Invoke) -> None:
    shapes = ("--input", "1x4x8x8", "--weight", "4x2x3x3", "--direction")
    directions = [
        inspection.explain_operation(
            "conv_transpose2d", (1, 4, 8, 8), weight_shape=(4, 2, 3, 3), direction=d
        ).problem.direction
        for d in ("forward", "input", "weight")
    ]
    assert directions == ["grad_input", "forward", "grad_weight"]
    assert "chosen" in ok(invoke("explain", "conv_transpose2d", *shapes, "input"))


def test_forms_of_sizes_and_padding(invoke: Invoke) -> None:
    usual = ok(invoke("explain", "conv2d", "--input", "1x2x8x8", "--weight", "2x2x3x3", "--padding", "1"))
    for x, padding in (("1×2×8×8", "1x1"), ("1,2,8,8", "same"), ("1X2X8X8", "same_lower")):
        assert ok(invoke("explain", "conv2d", "--input", x, "--weight", "2x2x3x3", "--padding", padding)) == usual


def test_forcing_an_algorithm(invoke: Invoke) -> None:
    out = ok(invoke("explain", "conv2d", "--input", "1x2x8x8", "--weight", "2x2x3x3", "--algorithm", "reference"))
    assert "chosen: reference" in out


# -------------------------------------------------------------------------------------------- doctor, warmup, cache


def test_doctor(invoke: Invoke) -> None:
    out = ok(invoke("doctor"))
    for text in (
        "versions",
        f"fastconv         {fastconv.__version__}",
        "numba",
        "threading layer",
        "cuda",
        "directory",
        "extras",
    ):
        assert text in out
    assert re.search(r"examples +scikit-learn \d", out)


def test_doctor_with_an_unusable_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTCONV_CACHE_DIR", __file__)
    assert doctor.cache()["writable"].startswith("no: ")
    monkeypatch.setenv("FASTCONV_CACHE_DIR", "/proc/nowhere")
    if os.access("/proc", os.W_OK):
        pytest.skip("running as a user who may write everywhere")
    assert doctor.cache()["writable"].startswith("no: ")


def test_doctor_sees_overrides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert "OMP_NUM_THREADS=2" in doctor.cpu()["overrides"]


def test_cache_info_and_clear(invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTCONV_CACHE_DIR", str(tmp_path))
    entry = tmp_path / "0123456789abcdef0123"
    entry.mkdir()
    for name in ("kernel.py311.nbi", "kernel.py311.1.nbc", "lock"):
        (entry / name).write_bytes(b"x" * 2**19)
    mine = tmp_path / "notes.txt"
    mine.write_text("not the compiler's")
    out = ok(invoke("cache", "info"))
    assert str(tmp_path) in out
    assert "1.5 MiB in 4 files" in out
    assert "removed 3 files, 1.5 MiB" in ok(invoke("cache", "clear"))
    assert list(tmp_path.iterdir()) == [mine]
    assert "removed 0 files" in ok(invoke("cache", "clear"))


def test_warmup_calls_every_operation_with_every_algorithm(monkeypatch: pytest.MonkeyPatch, invoke: Invoke) -> None:
    calls: list[tuple[str, str]] = []
    monkeypatch.setattr(inspection, "_call_once", lambda operation, dtype: calls.append((operation, dtype)))
    out = ok(invoke("warmup", "--dtype", "float64"))
    families = {r.family for r in ROWS if r.op == "conv" and r.device == "cpu"} - {"reference"}
    assert {operation for operation, _ in calls} == set(inspection.OPERATIONS)
    assert calls.count(("conv2d", "float64")) == len(families)
    assert all(re.search(rf"conv2d +{family} +float64", out) for family in families)
    assert out.splitlines()[-1].endswith("in all")


@pytest.mark.parametrize(
    "operation", ["conv2d", "conv_transpose1d", "max_unpool2d", "lp_pool3d", "adaptive_avg_pool2d"]
)
def test_warming_up_runs_forward_and_backward(operation: str) -> None:
    inspection._call_once(operation, "float32")
    assert fastconv.cache_info() is not None


# ------------------------------------------------------------------------------------------------------------ filter


def test_filter(invoke: Invoke, tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (12, 15, 3), dtype=np.uint8)
    source = tmp_path / "photo.png"
    write_image(source, image)
    assert ok(invoke("filter", source)) == f"{tmp_path / 'photo-sharpen.png'}\n"
    for kernel in FILTERS:
        target = tmp_path / "out.png"
        assert ok(invoke("filter", source, "--kernel", kernel, "-o", target)) == f"{target}\n"
        np.testing.assert_array_equal(read_image(target), filter_image(image, kernel))
