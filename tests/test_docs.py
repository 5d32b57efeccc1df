"""What is written runs: docstring examples, the code in README and docs, the examples, and command lines."""

import doctest
import importlib
import importlib.util
import os
import pkgutil
import re
import runpy
import shlex
from pathlib import Path

import pytest
import typer

import fastconv
from bench import readme
from fastconv.cli import app
from tests.support import require

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def installed_modules() -> list[str]:
    """Every module by its installed name: by path, ``kernels`` would be imported a second time."""
    names, packages = [fastconv.__name__], [fastconv, importlib.import_module("fastconv.kernels")]
    for package in packages:
        names.append(package.__name__)
        names += [m.name for m in pkgutil.walk_packages(package.__path__, package.__name__ + ".")]
    return sorted(set(names) - {"fastconv.__main__"})


@pytest.mark.parametrize("name", installed_modules())
def test_docstring_examples(name: str) -> None:
    for optional in ("torch", "onnx"):
        if name.startswith(f"fastconv.backends.{optional}"):
            require(optional)
    module = importlib.import_module(name)
    finder, runner = doctest.DocTestFinder(exclude_empty=True), doctest.DocTestRunner(optionflags=FLAGS)
    report: list[str] = []
    for test in finder.find(module, name):
        runner.run(test, out=report.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(report)


def code_blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """(line, text) of each fenced block of a language."""
    text = page.read_text("utf-8")
    blocks = re.finditer(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, m.start(1)) + 1, m.group(1)) for m in blocks]


def needed(page: Path, text: str) -> str:
    """The optional library that a block needs: the page's, or, in README, its own."""
    if page.stem in ("pytorch", "onnx"):
        return {"pytorch": "torch"}.get(page.stem, page.stem)
    backend = re.search(r"^from fastconv\.backends import (\w+)", text, re.MULTILINE)
    return backend[1] if backend else ""


BLOCKS = [
    (page, library)
    for page in PAGES
    for library in sorted({needed(page, text) for _, text in code_blocks(page, "python")})
]


@pytest.mark.parametrize(("page", "library"), BLOCKS, ids=lambda p: getattr(p, "name", p))
def test_python_blocks_run(page: Path, library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page's blocks in order, in one namespace: sessions with ``>>>`` must print what is written."""
    if library:
        require(library)
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": page.stem}
    runner, report = doctest.DocTestRunner(optionflags=FLAGS), list[str]()
    for line, text in code_blocks(page, "python"):
        if needed(page, text) != library:
            continue
        if ">>>" in text:
            test = doctest.DocTestParser().get_doctest(text, namespace, page.name, str(page), line - 1)
            runner.run(test, out=report.append, clear_globs=False)
            namespace.update(test.globs)
        else:
            exec(compile("\n" * (line - 1) + text, str(page), "exec"), namespace)
    assert runner.failures == 0 if hasattr(runner, "failures") else not report, "".join(report)


def test_every_page_has_code() -> None:
    assert {page for page, _ in BLOCKS} == set(PAGES)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_command_lines_are_understood(page: Path) -> None:
    """Every ``fastconv ...`` line in a shell block names a command and options that exist."""
    group = typer.main.get_command(app)
    for _, text in code_blocks(page, "sh"):
        for line in text.splitlines():
            program, *arguments = shlex.split(line)
            assert program == "fastconv", line
            command, name = group, "fastconv"
            while hasattr(command, "commands") and arguments[0] in command.commands:
                name = arguments.pop(0)
                command = command.commands[name]
            command.make_context(name, arguments)


def test_readme_names_both_set_ups() -> None:
    lines = (ROOT / "README.md").read_text("utf-8").splitlines()
    assert '    python -m pip install -e ".[examples]" && fastconv train' in lines
    assert '    python -m pip install -e ".[test]" && python -m pytest' in lines


def test_links_between_pages_lead_somewhere() -> None:
    pages = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
    links = [(p, target) for p in pages for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", p.read_text("utf-8"))]
    assert links
    assert [f"{page.name}: {target}" for page, target in links if not (page.parent / target).exists()] == []


def test_table_of_speeds_is_current() -> None:
    text = readme.README.read_text("utf-8")
    assert text == readme.current(text), "run python -m bench.readme"


def test_table_of_kernels_is_current() -> None:
    spec = importlib.util.spec_from_file_location("kernel_table", ROOT / "docs" / "kernel_table.py")
    assert spec is not None
    assert spec.loader is not None
    kernel_table = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kernel_table)
    text = kernel_table.README.read_text("utf-8")
    assert text == kernel_table.current(text), "run python docs/kernel_table.py"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_examples_run(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(path), run_name="__main__")
    printed = capsys.readouterr().out
    expected = {
        "x_recogniser": ["best match 9 of 9", "distorted X"],
        "signal_filter": ["spikes at [40, 130, 260, 333], found at [40, 130, 260, 333]"],
        "train_small_net": ["epoch 5", "loaded again: 9"],
    }
    for text in expected[path.stem]:
        assert text in printed
    assert os.listdir(tmp_path) == []
