"""``fastconv run``: a model on arrays from files or drawn at random, its results, and where the time goes."""

from __future__ import annotations

import math
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ...arguments import typed_sizes
from ...settings import get_num_threads, options
from ..memory import check_fits
from .executor import Executor
from .graph import Array, Value
from .model import read_tensor
from .program import Row

WIDTH = 120  # of tables where the output is no terminal


def run_model_file(
    model: Path, *, files: Sequence[str], random: bool, shapes: Sequence[str], seed: int, bench: bool,
    threads: int | None, precision: str, seconds: float, output: Path | None,
) -> None:  # fmt: skip
    """All of the command; the arguments are its options. Errors are ``ValueError``, ``TypeError`` and ``OSError``."""
    if random and files:
        raise ValueError("--random draws the inputs; leave out --input")
    if shapes and not random:
        raise ValueError("--shape says how large the inputs are that --random draws; files have their own sizes")
    if threads is not None and threads < 1:
        raise ValueError(f"--threads must be >= 1, got {threads}")
    if not seconds > 0:
        raise ValueError(f"--seconds must be positive, got {seconds:g}")
    if seed < 0:
        raise ValueError(f"--seed must be >= 0, got {seed}")
    if output is not None and output.exists() and not output.is_dir():
        raise ValueError(f"--output {output}: is a file, a folder is needed")
    with options(precision=precision):
        _run(Executor(model, threads=threads), model, files, random, shapes, seed, bench, seconds, output)


def _run(
    net: Executor, model: Path, files: Sequence[str], random: bool, shapes: Sequence[str], seed: int, bench: bool,
    seconds: float, output: Path | None,
) -> None:  # fmt: skip
    if random:
        inputs = draw(net.inputs, _sizes(shapes, net.inputs), seed)
    else:
        inputs = read(net.inputs, files)
    for name, x in inputs.items():
        print(f"input   {_shown(name)}: {_array(x)}")
    start = time.perf_counter()
    try:
        results = dict(zip(net.outputs, net.run(inputs), strict=True))
    except TypeError as error:  # of an input's dtype: here a user's mistake as any other
        raise ValueError(str(error)) from None
    first = time.perf_counter() - start
    for name, y in results.items():
        print(f"output  {_shown(name)}: {_array(y)}{_range(y)}")
    elsewhere = sorted({row.op for row in net.explain().fallbacks})
    if elsewhere:
        print(f"by onnx.reference, slowly: {', '.join(map(_shown, elsewhere))}")
    print(f"first run {first:.3g} s, with planning")
    if output is not None:
        write(results, output)
    if bench:
        _show_layers(net.profile(inputs))
        _show_comparison(model, inputs, net.threads or get_num_threads(), seconds)


# -------------------------------------------------------------------------------------------------------------- inputs


def read(wanted: Mapping[str, Value], given: Sequence[str]) -> dict[str, Array]:
    """Arrays from files: ``FILE`` for the next input, ``NAME=FILE`` for a named one, ``.npz`` for all it names."""
    found: dict[str, Array] = {}
    unnamed: list[str] = []
    for text in given:
        name, equals, path = text.partition("=")
        if equals and name in wanted:
            if not path:
                raise ValueError(f"--input {text}: say {name}=FILE")
            found[name] = _read_file(Path(path))
        elif text.lower().endswith(".npz"):
            found.update(_read_named(Path(text), wanted))
        else:
            unnamed.append(text)
    free = [name for name in wanted if name not in found]
    if len(unnamed) > len(free):
        raise ValueError(f"--input {unnamed[len(free)]}: the model has no further input; it has {_list(wanted)}")
    found.update((name, _read_file(Path(text))) for name, text in zip(free, unnamed, strict=False))
    missing = [name for name in wanted if name not in found]
    if missing:
        told = "; ".join(_stated(name, wanted[name]) for name in missing)
        raise ValueError(f"no values for {told}; give --input FILE (.npy, .npz, .pb), or --random")
    return {name: found[name] for name in wanted}


def _read_file(path: Path) -> Array:
    if path.suffix.lower() == ".pb":
        return read_tensor(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        array = np.load(path, allow_pickle=False)  # a pickle could run code
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: not a NumPy file (.npy) of numbers: {error}") from None
    if not isinstance(array, np.ndarray):
        array.close()
        raise ValueError(f"{path}: holds several arrays; give it as --input {path} if its names are the model's")
    return array


def _read_named(path: Path, wanted: Mapping[str, Value]) -> dict[str, Array]:
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with np.load(path, allow_pickle=False) as saved:
            found = {name: saved[name] for name in saved.files}
    except Exception as error:  # zipfile's own errors, NumPy's, zlib's
        raise ValueError(f"{path}: not a NumPy file (.npz) of numbers: {error}") from None
    strange = [name for name in found if name not in wanted]
    if strange:
        raise ValueError(f"{path}: the model has no input {strange[0]!r}; it has {_list(wanted)}")
    return found


def draw(wanted: Mapping[str, Value], sizes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, Array]:
    """Random arrays: normal numbers, integers from 0 to 9. A first dimension without a size is 1."""
    rng = np.random.default_rng(seed)
    return {name: _drawn(name, value, sizes.get(name), rng) for name, value in wanted.items()}


def _drawn(name: str, value: Value, size: tuple[int, ...] | None, rng: np.random.Generator) -> Array:
    if value.dtype is None or value.dtype.kind == "O":
        raise ValueError(f"--random cannot draw {name!r}, which is no array of numbers")
    if size is None:
        stated = value.shape
        if stated is not None and stated and not isinstance(stated[0], int):
            stated = (1, *stated[1:])
        if stated is None or not all(isinstance(n, int) for n in stated):
            raise ValueError(f"the model leaves sizes open: {_stated(name, value)}; say --shape {name}=1x3x224x224")
        size = tuple(int(n or 0) for n in stated)
    check_fits(f"--random: {name!r} of the shape {size}", math.prod(size) * (8 + value.dtype.itemsize))
    if value.dtype.kind in "iu":
        return rng.integers(0, 10, size).astype(value.dtype)
    if value.dtype.kind == "b":
        return rng.integers(0, 2, size).astype(bool)
    return rng.standard_normal(size).astype(value.dtype)


def _sizes(shapes: Sequence[str], wanted: Mapping[str, Value]) -> dict[str, tuple[int, ...]]:
    found = {}
    for text in shapes:
        name, equals, sizes = text.rpartition("=")
        if not equals and len(wanted) == 1:
            name = next(iter(wanted))
        if name not in wanted:
            raise ValueError(f"--shape {text}: say NAME=1x3x224x224, where NAME is one of {_list(wanted)}")
        typed = typed_sizes(sizes)
        if typed is None:
            raise ValueError(f"--shape {text}: sizes must be numbers such as 1x3x224x224")
        found[name] = typed
    return found


# ------------------------------------------------------------------------------------------------------------- results


def write(results: Mapping[str, Any], folder: Path) -> None:
    """Each output as ``NAME.npy``; a name is a model's own, so what could lead elsewhere becomes an underscore."""
    folder.mkdir(parents=True, exist_ok=True)
    taken: set[str] = set()
    for i, (name, y) in enumerate(results.items()):
        if not isinstance(y, np.ndarray):
            raise ValueError(f"--output: {name!r} is a {type(y).__name__}, only arrays are written")
        stem = re.sub(r"[^\w-]+", "_", name)[:80] or "output"
        stem = f"{stem}-{i}" if stem.lower() in taken else stem
        taken.add(stem.lower())
        path = folder / f"{stem}.npy"
        np.save(path, y.astype(str) if y.dtype.kind == "O" else y, allow_pickle=False)
        print(f"written {path}")


def _show_layers(rows: Sequence[Row]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    total = sum(row.seconds or 0.0 for row in rows)
    table = Table(title="each layer, median of 10 runs", title_justify="left", box=None, pad_edge=False)
    for heading in ("layer", "operator", "runs as", "gives", "ms", "%"):
        table.add_column(heading, justify="right" if heading in ("ms", "%") else "left", overflow="fold")
    for row in rows:
        seconds = row.seconds or 0.0
        order = ", channels last" if row.channels_last else ""
        cells = (
            _shown(row.name), _shown(row.op), row.how, "×".join(map(str, row.shape)) + order, f"{seconds * 1e3:.3f}",
            f"{100 * seconds / total:.1f}" if total else "",
        )  # fmt: skip
        table.add_row(*map(Text, cells))
    table.add_row("in all", "", "", "", f"{total * 1e3:.3f}", "")
    console = Console(highlight=False)
    console = console if console.is_terminal else Console(highlight=False, width=WIDTH)
    console.print(table)


def _show_comparison(model: Path, inputs: dict[str, Array], threads: int, seconds: float) -> None:
    from .timing import ROUNDS, turns

    libraries = ["fastconv", *(["onnxruntime"] if find_spec("onnxruntime") else [])]
    with tempfile.TemporaryDirectory() as folder:
        timed = turns(libraries, model, inputs, threads, seconds, Path(folder))
    plural = "s" * (threads > 1)
    print(f"whole runs, {threads} thread{plural}; each library in a process of its own, taking {ROUNDS} turns:")
    ours = timed[0]
    for one in timed:
        if one.refused:
            print(f"  {one.library:<20} {_shown(one.refused)}")
            continue
        ratio = "" if one is ours or ours.refused else f"  {one.seconds / ours.seconds:.2f} times fastconv's"
        print(f"  {one.library:<20} {one.seconds * 1e3:9.3f} ms{ratio}{_difference(ours.results, one.results)}")
    if len(libraries) == 1:
        print("  ONNX Runtime is not installed; to compare: python -m pip install onnxruntime")


def _difference(ours: Sequence[Array], theirs: Sequence[Array]) -> str:
    """How far two libraries' results are apart, in units of the largest value."""
    if ours is theirs or not ours:
        return ""
    if [y.shape for y in ours] != [y.shape for y in theirs]:
        return ", and results of other shapes"
    with np.errstate(all="ignore"):
        pairs = [
            (a.astype(float), b.astype(float)) for a, b in zip(ours, theirs, strict=True) if a.size and a.dtype != "O"
        ]
        far = max((float(np.max(abs(a - b)) / (np.max(abs(b)) or 1)) for a, b in pairs), default=0.0)
    return f", results within {far:.1e} of the largest value"


# ------------------------------------------------------------------------------------------------------------- in words


def _shown(name: str) -> str:
    """A name out of a model, for the terminal: without what a terminal would obey."""
    return "".join(c if c.isprintable() else "?" for c in name)


def _array(x: Any) -> str:
    if not isinstance(x, np.ndarray):
        return type(x).__name__
    return f"{x.dtype} {'×'.join(map(str, x.shape))}".strip()


def _range(y: Any) -> str:
    if not isinstance(y, np.ndarray) or not y.size or y.dtype.kind not in "fiu":
        return ""
    return f", {y.min():.6g} to {y.max():.6g}"


def _stated(name: str, value: Value) -> str:
    shape = "of unknown shape" if value.shape is None else "×".join("?" if n is None else str(n) for n in value.shape)
    return f"{name!r} ({value.dtype} {shape})".replace(" )", ")")


def _list(wanted: Mapping[str, Value]) -> str:
    return ", ".join(wanted) or "none"
