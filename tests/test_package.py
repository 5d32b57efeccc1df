"""The package as a whole: what importing it costs, which way imports point, what the wheel holds."""

import ast
import graphlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import fastconv
from tests.support import require

ROOT = Path(__file__).resolve().parent.parent
HEAVY = (
    "numba", "llvmlite", "scipy", "sklearn", "matplotlib", "safetensors", "PIL", "typer", "rich", "click", "cupy",
    "torch", "onnx", "fastconv.kernels.cpu", "fastconv.kernels.cuda", "fastconv.kernels.reference",
)  # fmt: skip

LEVELS: tuple[tuple[str, ...], ...] = (
    ("autograd.*",),
    ("_version", "extras", "ranks", "kernels", "kernels.geometry", "kernels.winograd_matrices"),
    ("kernels.reference", "kernels.cpu.*", "kernels.cuda.*"),
    ("arguments", "problem", "arrays"),
    ("machine", "problem_files", "measurements"),
    ("bounds", "costs", "costs_cuda", "pooled", "refusals", "registry", "targets"),
    ("settings", "dispatch"),
    ("call", "pooling", "functional", "grad", "plan"),
    (
        "nn.*",
        "optim.*",
        "data.*",
        "backends.*",
        "testing.*",
        "checkpoint",
        "doctor",
        "filters",
        "inspection",
        "plots",
        "tuning",
    ),
    ("train.*", "tune_command", "cli", "__main__"),
)
"""Modules of fastconv from the bottom up. A module imports its own level and those below, and never in a circle.

``name.*`` stands for a package and all it holds. A module missing here fails the test: give it its place.
"""
ALONE = ("autograd", "kernels")
"""Packages that import nothing of fastconv's but themselves."""


def run(code: str, **environment: str) -> str:
    """What a fresh interpreter prints, started outside the checkout."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=os.path.abspath(os.sep),
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# ------------------------------------------------------------------------------------------------- cost of importing


def test_import_loads_nothing_heavy() -> None:
    loaded = run("import sys, fastconv; print(*sys.modules, sep='\\n')").split()
    found = [name for name in loaded if any(name == heavy or name.startswith(heavy + ".") for heavy in HEAVY)]
    assert found == []


def test_a_network_is_built_without_heavy_imports() -> None:
    loaded = run("import sys, fastconv; from fastconv import nn, optim; print(*sys.modules, sep='\\n')").split()
    assert {"numba", "scipy", "torch", "cupy"}.isdisjoint(loaded)


def test_import_adds_at_most_100_ms_to_numpys_own() -> None:
    """Best of ten processes: other programs may disturb any single one."""
    timed = "import numpy, time; start = time.perf_counter(); import fastconv; print(time.perf_counter() - start)"
    best = float("inf")
    for _ in range(10):
        best = min(best, float(run(timed)))
        if best <= 0.1:
            return
    pytest.fail(f"importing fastconv takes {best:.3f} s after NumPy is loaded")


# ------------------------------------------------------------------------------------------------ direction of imports


def sources() -> Iterator[tuple[str, Path]]:
    """Every module of the package, named without the leading ``fastconv.``, and its file."""
    for folder, prefix in ((ROOT / "fastconv", ()), (ROOT / "kernels", ("kernels",))):
        for path in sorted(folder.rglob("*.py")):
            parts = prefix + path.relative_to(folder).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


MODULES = dict(sources())


def imports(module: str, path: Path) -> set[str]:
    """The modules of fastconv that a file imports, at its top or later; names as in :data:`MODULES`."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {
                alias.name.removeprefix("fastconv.") for alias in node.names if alias.name.startswith("fastconv.")
            }
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                parts = package.split(".")[: len(package.split(".")) - node.level + 1] if package else []
                base = ".".join(filter(None, [*parts, node.module or ""]))
            elif node.module == "fastconv" or (node.module or "").startswith("fastconv."):
                base = (node.module or "").removeprefix("fastconv").removeprefix(".")
            else:
                continue
            for alias in node.names:
                name = ".".join(filter(None, [base, alias.name]))
                found.add(name if name in MODULES else base)
    return found - {module, ""}


def level(module: str) -> int:
    for i, names in enumerate(LEVELS):
        for name in names:
            if module == name or (name.endswith(".*") and (module + ".").startswith(name[:-1])):
                return i
    pytest.fail(f"{module} has no level; name it in LEVELS of {Path(__file__).name}")


GRAPH = {module: imports(module, path) for module, path in MODULES.items() if module}


def test_imports_point_down() -> None:
    upward = [f"{m} imports {t}" for m, targets in GRAPH.items() for t in sorted(targets) if level(t) > level(m)]
    assert upward == []


def test_imports_run_in_no_circle() -> None:
    # A package's __init__ and its modules name each other; Python allows that, and it is no circle of ideas.
    outside = {m: {t for t in targets if not m.startswith(t + ".")} for m, targets in GRAPH.items()}
    order = list(graphlib.TopologicalSorter(outside).static_order())
    assert set(GRAPH) <= set(order)


@pytest.mark.parametrize("package", ALONE)
def test_imports_nothing_else_of_fastconv(package: str) -> None:
    strangers = [
        f"{m} imports {t}"
        for m, targets in GRAPH.items()
        if m.split(".")[0] == package
        for t in targets
        if t.split(".")[0] != package
    ]
    assert strangers == []


def test_the_import_reader_sees_every_form() -> None:
    """Guards the tests above: if the reader went blind they would pass on anything."""
    assert "problem" in GRAPH["registry"]
    assert "kernels.geometry" in GRAPH["problem"]
    assert "dispatch" in imports("", ROOT / "fastconv" / "__init__.py")


def test_nothing_imports_the_kernels_folder_by_its_own_name() -> None:
    """Top-level ``kernels`` would be a second copy of ``fastconv.kernels``."""
    pattern = re.compile(r"^\s*(from kernels\b|import kernels\b)", re.MULTILINE)
    folders = [ROOT / name for name in ("fastconv", "kernels", "tests", "bench", "examples", "docs")]
    assert [str(p) for f in folders for p in f.rglob("*.py") if pattern.search(p.read_text("utf-8"))] == []


# --------------------------------------------------------------------------------------------------------- the wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the sources, so that the checkout stays as it is."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("fastconv", "kernels"):
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source" / name)
    built = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(folder / "source")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_holds_every_source_file(wheel: Path) -> None:
    kinds = {".py", ".cu", ".cuh", ".typed"}
    expected = {
        "fastconv/" + p.relative_to(ROOT / "fastconv").as_posix()
        for p in (ROOT / "fastconv").rglob("*")
        if p.suffix in kinds
    }
    expected |= {
        "fastconv/kernels/" + p.relative_to(ROOT / "kernels").as_posix()
        for p in (ROOT / "kernels").rglob("*")
        if p.suffix in kinds
    }
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "fastconv/py.typed" in expected
    assert expected - names == set()
    assert not any(name.startswith(("kernels/", "tests/")) for name in names)
    assert any(name.endswith("licenses/LICENSE") for name in names)


def import_from(wheel: Path, folder: Path, modules: list[str]) -> None:
    zipfile.ZipFile(wheel).extractall(folder)
    names = sorted("fastconv" + "." * bool(m) + m for m in modules)
    printed = run(
        "import importlib\n" + "\n".join(f"print(importlib.import_module({m!r}).__file__)" for m in names),
        PYTHONPATH=str(folder),
    )
    files = printed.splitlines()
    assert len(files) == len(names) > 0
    assert [f for f in files if not Path(f).is_relative_to(folder)] == []


def test_every_module_imports_from_the_wheel(wheel: Path, tmp_path: Path) -> None:
    """Without any optional library: those that serve one are the next test's."""
    import_from(wheel, tmp_path, [m for m in MODULES if m != "__main__" and not m.startswith("backends.")])


@pytest.mark.parametrize("library", ["torch", "onnx"])
def test_a_backend_imports_from_the_wheel(library: str, wheel: Path, tmp_path: Path) -> None:
    require(library)
    import_from(wheel, tmp_path, [m for m in MODULES if m.startswith(f"backends.{library}")])


def test_the_wheel_says_what_the_project_is(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (metadata,) = [archive.read(n).decode() for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
    assert f"Version: {fastconv.__version__}" in metadata
    assert "Requires-Python: >=3.11" in metadata
    assert "License-Expression: MIT" in metadata
    (entry,) = [archive.read(n).decode() for n in archive.namelist() if n.endswith("entry_points.txt")]
    assert "fastconv = fastconv.cli:main" in entry


def test_extras_named_by_messages_exist() -> None:
    """Errors and pages tell people to install ``fastconv[extra]``: every such extra must be one."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    texts = [p for f in ("fastconv", "kernels", "docs") for p in (ROOT / f).rglob("*") if p.suffix in (".py", ".md")]
    texts += [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    named = {extra for p in texts for extra in re.findall(r"fastconv\[([a-z0-9]+)\]", p.read_text("utf-8"))}
    named |= {
        extra for p in MODULES.values() for extra in re.findall(r'extra\("[\w.]+", "(\w+)"', p.read_text("utf-8"))
    }
    assert named
    assert named <= set(project["optional-dependencies"])
