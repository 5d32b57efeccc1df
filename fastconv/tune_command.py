"""``fastconv tune`` and its commands: measure kernels, show, verify and merge what was measured (see ``tuning``)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(invoke_without_command=True)


@app.callback()
def tune(
    context: typer.Context,
    suite: Annotated[
        list[str] | None,
        typer.Option(help="Named layers: resnet, vgg, pointwise, …, or all; may be repeated.", show_default=False),
    ] = None,
    problems: Annotated[
        list[Path] | None,
        typer.Option(help="Problems that a program recorded (FASTCONV_RECORD=FILE).", show_default=False),
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option(help="Batch sizes of the suites; default: 1 and 16.", show_default=False)
    ] = None,
    direction: Annotated[
        list[str] | None,
        typer.Option(
            help="Of the suites: forward, grad_input or grad_weight; may be repeated; default: forward.",
            show_default=False,
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads of each call; default: as many as calls use.", show_default=False)
    ] = None,
    seconds: Annotated[float, typer.Option(help="Spent on each kernel of each problem.")] = 0.1,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File to add to; default: the one in use.", show_default=False)
    ] = None,
) -> None:
    """Measure which kernel is fastest here, and remember it.

    Give --suite, --problems or both. What is measured is added to a readable file, which later programs prefer to the
    predicted times; see also the commands below.
    """
    if context.invoked_subcommand is not None:
        return
    if not suite and not problems:
        typer.echo(context.get_help())
        raise typer.Exit
    from . import tuning

    if not seconds > 0:
        raise ValueError(f"--seconds must be positive, got {seconds:g}")
    if batch and min(batch) < 1:
        raise ValueError(f"--batch must be >= 1, got {min(batch)}")
    wanted = [problem for path in problems or () for problem in tuning.read_problems(path)]
    if suite:
        names = [] if "all" in suite else suite
        wanted += tuning.suite_problems(names, batches=batch, directions=_directions(direction))
    path = out or _tuning_file()
    known, notice = _known(path)
    table = known
    try:
        for problem in wanted:
            table = tuning.tune([problem], threads=threads, seconds=seconds, report=_print_measured, into=table)
    finally:  # Ctrl-C keeps what has been measured
        if table is not None and table is not known and table.entries:
            table.save(path)
            print(f"{len(table.entries)} problems in {path}{notice}")


def _directions(given: list[str] | None) -> list[str]:
    allowed = ("forward", "grad_input", "grad_weight")
    for name in given or ():
        if name not in allowed:
            raise ValueError(f"--direction must be one of {', '.join(allowed)}; got {name!r}")
    return given or ["forward"]


def _tuning_file() -> Path:
    from .tuning import location

    path = location()
    if path is None:
        raise ValueError("FASTCONV_TUNING switches measurements off; name a file with --out")
    return path


def _known(path: Path) -> tuple[Any, str]:
    """The measurements that new ones are added to: those in the file, if they hold here; and what became of others."""
    from .tuning import read

    if not path.exists():
        return None, ""
    table = read(path)
    reason = table.why_not()
    return (table, "") if reason is None else (None, f"; those before it are replaced: {reason}")


def _print_measured(problem: Any, entry: Any) -> None:
    if entry is None:
        print(f"  {'no choice to make':<18} {problem}", flush=True)
        return
    ranked = sorted(entry.seconds.items(), key=lambda item: item[1])
    times = ", ".join(f"{name} {t * 1e3:.3g}" for name, t in ranked)
    print(f"  {entry.choice:<18} {problem} (ms: {times})", flush=True)


@app.command("show")
def tune_show(
    file: Annotated[Path | None, typer.Argument(help="Default: the one in use.", show_default=False)] = None,
) -> None:
    """Show a file of measurements: machine, versions, and each problem's choice."""
    from .tuning import read

    path = file or _tuning_file()
    table = read(path)
    print(f"{path}, {table.date}")
    print(", ".join(f"{name} {value}" for name, value in {**table.machine, **table.versions}.items()))
    print(f"not used here: {reason}" if (reason := table.why_not()) else "used here")
    for entry in table.entries:
        print(f"{entry.threads} thread{'s' * (entry.threads > 1)}", end="")
        _print_measured(entry.problem, entry)


@app.command("verify")
def tune_verify(
    file: Annotated[Path | None, typer.Argument(help="Default: the one in use.", show_default=False)] = None,
    seconds: Annotated[float, typer.Option(help="Spent on each kernel of each problem.")] = 0.1,
) -> None:
    """Measure again, and list the choices that are now more than 10% slower than the fastest kernel (exit status 1)."""
    from .tuning import read, verify

    path = file or _tuning_file()
    table = read(path)
    stale = verify(table, seconds=seconds)
    for found in stale:
        print(f"{found.old.choice} takes {found.loss:.2f} times as long as the fastest", end=":")
        _print_measured(found.old.problem, found.new)
    print(f"{len(table.entries) - len(stale)} of {len(table.entries)} choices hold")
    if stale:
        raise typer.Exit(1)


@app.command("merge")
def tune_merge(
    first: Annotated[Path, typer.Argument(help="A file of measurements.", show_default=False)],
    second: Annotated[Path, typer.Argument(help="Another; it wins where both know a problem.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write.", show_default=False)],
) -> None:
    """Join two files of measurements of the same machine and versions."""
    from .tuning import merge, read

    table = merge(read(first), read(second))
    table.save(out)
    print(f"{len(table.entries)} problems in {out}")
