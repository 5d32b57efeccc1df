"""``fastconv run``: what it prints and writes, and one clear line for every mistake."""

import importlib.util
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fastconv import cli
from tests.support import REQUIRED, require

onnx = require("onnx")

from onnx import helper, numpy_helper  # noqa: E402

from fastconv.backends.onnx import timing  # noqa: E402

Invoke = Callable[[str], tuple[int, str, str]]

WEIGHTS = ", ".join(str(i % 9 - 4) for i in range(4 * 2 * 9))
NET = f"""
net (float[N, 2, H, W] image, int64[1] shift) => (float[N, 4] y, int64[1] z) <
    float[4, 2, 3, 3] w = {{{WEIGHTS}}}, int64[2] axes = {{2, 3}}
> {{
    a = Conv <pads = [1, 1, 1, 1]> (image, w)
    b = Relu (a)
    c = GlobalAveragePool (b)
    d = Cos (c)
    y = Squeeze (d, axes)
    z = Neg (shift)
}}"""


def save(path: Path, text: str = NET) -> None:
    graph = onnx.parser.parse_graph(text)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())


@pytest.fixture
def invoke(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """Run a command in a folder with ``net.onnx`` and inputs: (exit status, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "net.onnx")
    image, shift = np.ones((3, 2, 5, 7), np.float32), np.array([-4])
    np.save("image.npy", image)
    np.save("shift.npy", shift)
    np.save("double.npy", image.astype(float))
    np.savez("both.npz", image=image, shift=shift)
    np.savez("other.npz", picture=image)
    np.save("pickled.npy", np.array([{}]), allow_pickle=True)
    (tmp_path / "shift.pb").write_bytes(numpy_helper.from_array(shift).SerializeToString())
    (tmp_path / "large.pb").write_bytes(
        onnx.TensorProto(data_type=1, dims=[2**40], raw_data=b"1234").SerializeToString()
    )
    (tmp_path / "text.npy").write_text("no array")
    (tmp_path / "text.onnx").write_text("no model")

    def run(line: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            cli.main(["run", *shlex.split(line)])
        printed = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return caught.value.code, printed.out, printed.err

    return run


@pytest.mark.parametrize(
    "inputs",
    [
        "-i image.npy -i shift.npy",
        "--input shift=shift.pb --input image.npy",
        "-i both.npz",
        "-i both.npz -i shift=shift.pb",
    ],
)
def test_inputs_from_files(inputs: str, invoke: Invoke) -> None:
    status, out, err = invoke(f"net.onnx {inputs} --output results")
    assert (status, err) == (0, "")
    assert "input   image: float32 3×2×5×7\n" in out
    assert "output  z: int64 1, 4 to 4\n" in out
    assert "by onnx.reference, slowly: Cos\n" in out
    np.testing.assert_array_equal(np.load("results/z.npy"), [4])
    assert np.load("results/y.npy").shape == (3, 4)


def test_random_inputs(invoke: Invoke) -> None:
    status, out, err = invoke("net.onnx --random --shape image=2x2x6x6 --seed 1 -o one")
    assert (status, err) == (0, "")
    assert "input   image: float32 2×2×6×6\n" in out
    assert invoke("net.onnx --random --shape image=2x2x6x6 --seed 1 -o again")[0] == 0
    assert invoke("net.onnx --random --shape image=2x2x6x6 --seed 2 -o other")[0] == 0
    one, again, other = (np.load(f"{name}/y.npy") for name in ("one", "again", "other"))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()


def test_bench(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("onnxruntime") is None and "onnxruntime" in REQUIRED:
        pytest.fail("FASTCONV_REQUIRE names onnxruntime, which cannot be imported")
    status, out, err = invoke("net.onnx -i both.npz --bench --seconds 0.1 --threads 1")
    assert (status, err) == (0, "")
    assert re.search(
        r"^a +Conv +\S+ \+ relu +3×4×5×7\S*( channels last)? +\d+\.\d{3} +\d+\.\d$|^b +Conv ", out, re.M
    ), out
    assert re.search(r" +Cos +onnx\.reference +3×4×1×1 +\d+\.\d{3} +\d+\.\d$", out, re.M), out
    assert "whole runs, 1 thread; each library in a process of its own, taking 5 turns:" in out
    assert re.search(r"^  fastconv \S+ +\d+\.\d{3} ms$", out, re.M), out
    if importlib.util.find_spec("onnxruntime") is None:
        assert "ONNX Runtime is not installed" in out
    else:
        found = re.search(r"ONNX Runtime \S+ +\d+\.\d{3} ms  \d+\.\d\d times fastconv's, results within (\S+) of", out)
        assert found, out
        assert float(found[1]) < 1e-4


def test_a_library_that_refuses_a_model_says_so(tmp_path: Path) -> None:
    save(tmp_path / "net.onnx")
    inputs = {"image": np.ones((1, 2, 3, 3), np.float64), "shift": np.array([1])}
    (timed,) = timing.turns(["fastconv"], tmp_path / "net.onnx", inputs, 1, 0.1, tmp_path)
    assert "input 'image' must be float32, got float64" in timed.refused


MISTAKES = [
    ("", "Missing argument 'model'"),
    ("none.onnx --random", "none.onnx: no such file"),
    ("text.onnx --random", "text.onnx: not an ONNX model in its binary form"),
    ("net.onnx", "no values for 'image' (float32 N×2×H×W); 'shift' (int64 1); give --input FILE"),
    ("net.onnx -i image.npy", "no values for 'shift' (int64 1)"),
    ("net.onnx -i image.npy -i shift.npy -i image.npy", "the model has no further input; it has image, shift"),
    ("net.onnx -i none.npy -i shift.npy", "none.npy: no such file"),
    ("net.onnx -i none.npz", "none.npz: no such file"),
    ("net.onnx -i text.npy -i shift.npy", "text.npy: not a NumPy file (.npy) of numbers"),
    ("net.onnx -i pickled.npy -i shift.npy", "pickled.npy: not a NumPy file (.npy) of numbers"),
    ("net.onnx -i image=image.npy", "no values for 'shift' (int64 1)"),
    ("net.onnx -i shift=both.npz", "both.npz: holds several arrays"),
    ("net.onnx -i other.npz", "other.npz: the model has no input 'picture'; it has image, shift"),
    ("net.onnx -i image.npy -i large.pb", "large.pb: a tensor without name of FLOAT claims the shape (1099511627776,)"),
    ("net.onnx -i double.npy -i shift.npy", "input 'image' must be float32, got float64"),
    ("net.onnx -i shift.npy -i image.npy", "input 'image' must be float32, got int64"),
    ("net.onnx --random", "the model leaves sizes open: 'image' (float32 N×2×H×W); say --shape image=1x3x224x224"),
    ("net.onnx --random --shape 1x2x6x6", "--shape 1x2x6x6: say NAME=1x3x224x224, where NAME is one of image, shift"),
    ("net.onnx --random --shape image=1x2xx", "--shape image=1x2xx: sizes must be numbers"),
    ("net.onnx --random --shape image=1x3x6x6", "input 'image' must have the shape (N, 2, H, W), got (1, 3, 6, 6)"),
    ("net.onnx --random --shape image=1x2x9999999x9999999", "would take"),
    ("net.onnx --random -i image.npy", "--random draws the inputs; leave out --input"),
    ("net.onnx --shape image=1x2x6x6", "--shape says how large the inputs are that --random draws"),
    ("net.onnx -i both.npz --threads 0", "--threads must be >= 1, got 0"),
    ("net.onnx -i both.npz --threads 4096", "num_threads must be between 1 and 1024, got 4096"),
    ("net.onnx -i image= -i shift.npy", "--input image=: say image=FILE"),
    ("net.onnx -i both.npz -o image.npy", "--output image.npy: is a file, a folder is needed"),
    ("net.onnx --random --seed -1", "--seed must be >= 0, got -1"),
    ("net.onnx -i both.npz --seconds 0", "--seconds must be positive, got 0"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "message"), MISTAKES, ids=[line for line, _ in MISTAKES])
def test_a_mistake_is_one_clear_line(line: str, message: str, invoke: Invoke) -> None:
    status, out, err = invoke(line)
    assert (status, out.replace("input   ", "")[:6] in ("", "image:")) == (2, True)
    assert re.fullmatch(r"fastconv: .+\n", err), err
    assert message in err


def test_names_out_of_a_model_do_no_harm(tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not to the terminal, not to files outside the folder, and not to each other's files."""
    monkeypatch.setattr(timing, "turns", lambda *given: [timing.Timed("fastconv", 1.0, [])])
    model = onnx.load(tmp_path / "net.onnx")
    for old, new in (("y", "../../y\x1b[bold]"), ("z", "//y\x1b[bold]")):
        for node in model.graph.node:
            node.output[:] = [new if name == old else name for name in node.output]
        for output in model.graph.output:
            output.name = new if output.name == old else output.name
    (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
    status, out, err = invoke("net.onnx -i both.npz --bench --seconds 0.1 -o deep/results")
    assert (status, err) == (0, "")
    assert "\x1b" not in out
    assert "[bold]" in out
    assert sorted(p.name for p in (tmp_path / "deep" / "results").iterdir()) == ["_y_bold_-1.npy", "_y_bold_.npy"]
    assert not list(tmp_path.parent.glob("*y*.npy"))
