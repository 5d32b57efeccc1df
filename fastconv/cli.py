"""The command line: ``fastconv train``, ``run``, ``explain``, ``tune``, ``doctor``, ``warmup``, ``cache``, ``filter``.

Commands import what they need when they run, so that ``fastconv --help`` answers at once. A mistake in what was typed,
or a file that cannot be read, is one line on standard error and exit status 2; ``--debug`` shows the traceback.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, overload

import typer

from ._version import __version__
from .tune_command import app as tune_app

USER_ERROR = 2
INTERRUPTED = 130

app = typer.Typer(
    name="fastconv",
    help="Convolution and pooling kernels in Python: train a network, see which kernel runs and why.",
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
cache_app = typer.Typer(help="The compiled kernels kept on disk.", invoke_without_command=True)
app.add_typer(cache_app, name="cache")
app.add_typer(tune_app, name="tune")


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit: 0, 2 after a user's error, 130 after Ctrl-C."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        status = app(args=arguments, prog_name="fastconv", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        _say("interrupted")
        raise SystemExit(INTERRUPTED) from None
    except BrokenPipeError:  # the reader of our output, such as head, has seen enough
        raise SystemExit(0) from None
    except Exception as error:
        if "--debug" in arguments or not _is_users(error):
            raise
        _say(_one_line(error))
        raise SystemExit(USER_ERROR) from None
    raise SystemExit(status if isinstance(status, int) else 0)


def _is_users(error: Exception) -> bool:
    """Errors about input, files and libraries, and the parser's own; anything else is a mistake of ours."""
    return isinstance(error, (ValueError, OSError, ImportError, RuntimeError, MemoryError)) or hasattr(
        error, "format_message"
    )


def _one_line(error: Exception) -> str:
    text = error.format_message() if hasattr(error, "format_message") else str(error)
    text = "".join(c if c.isprintable() or c.isspace() else "?" for c in text)  # names in files may be for terminals
    return " ".join(text.split()) or type(error).__name__


def _say(text: str) -> None:
    print(f"fastconv: {text}", file=sys.stderr)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"fastconv {__version__}")
        raise typer.Exit


def _help_without_command(context: typer.Context) -> None:
    """Print the help and succeed; ``no_args_is_help`` fails with some versions of Typer and not with others."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show Python's traceback for errors.")] = False,
) -> None:
    _help_without_command(context)


@cache_app.callback()
def _cache_options(context: typer.Context) -> None:
    _help_without_command(context)


# ------------------------------------------------------------------------------------------------------------- train


@app.command()
def train(
    data: Annotated[
        Path | None,
        typer.Option(
            help="Directory with IDX files, as MNIST's; default: scikit-learn's 8×8 digits.", show_default=False
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="Training/test sizes drawn from all samples, for example 8000/2000.", show_default=False),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the training data; default: 20.", show_default=False)
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images in a batch; default: 32.", show_default=False)] = None,
    lr: Annotated[
        float | None,
        typer.Option(help="First learning rate, falling to 0; default: 0.003; sgd 0.05.", show_default=False),
    ] = None,
    optimizer: Annotated[
        str | None, typer.Option(help="adam, adamw or sgd; default: adam.", show_default=False)
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of weights, split and order; default: 0.", show_default=False)
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: cpu.", show_default=False)] = None,
    out: Annotated[
        Path | None, typer.Option(help="Directory for the results; default: the next free runs/N.", show_default=False)
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Continue the interrupted run in this directory.", show_default=False)
    ] = None,
) -> None:
    """Train a convolutional network on handwritten digits.

    conv 32 3×3, ReLU, max pool 2, conv 64 3×3, ReLU, max pool 2, dense 1024, softmax. Prints the test accuracy, the
    confusion matrix and the kernel each layer ran with; writes pictures, weights and a JSON record. Ctrl-C saves.
    """  # fmt: skip
    given = {
        "data": None if data is None else str(data), "split": None if split is None else _sizes(split),
        "epochs": epochs, "batch_size": batch_size, "lr": lr, "optimizer": optimizer, "seed": seed, "device": device,
    }  # fmt: skip
    given = {name: value for name, value in given.items() if value is not None}
    if resume is not None and (given or out is not None):
        extra = ", ".join("--" + name.replace("_", "-") for name in [*given, *(["out"] if out else [])])
        raise ValueError(f"--resume continues a run with its own settings and directory; leave out {extra}")

    from . import train as training
    from .train.console import ConsoleObserver, console, show

    output = console()
    config = training.TrainConfig(**given)  # type: ignore[arg-type]  # names and types as in the signature above
    folder = resume or out or _next_run(Path("runs"))
    try:
        with ConsoleObserver(output) as observer:
            if resume is not None:
                result = training.resume(folder, observer=observer)
            else:
                result = training.train(config, out=folder, observer=observer)
    except training.TrainInterrupted as interrupt:
        _say(f"{interrupt}; continue with: fastconv train --resume {folder}")
        raise typer.Exit(INTERRUPTED) from None
    show(result, output, folder)


def _sizes(text: str) -> tuple[int, int]:
    parts = text.split("/")
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
        raise ValueError(f"--split must be two sizes such as 8000/2000, got {text!r}")
    return int(parts[0]), int(parts[1])


def _next_run(parent: Path) -> Path:
    """``parent/1``, or the number after the highest that is there."""
    taken = [int(path.name) for path in parent.glob("*") if path.name.isdecimal()]
    return parent / str(max(taken, default=0) + 1)


# --------------------------------------------------------------------------------------------------------------- run


@app.command()
def run(
    model: Annotated[Path, typer.Argument(help="An ONNX model.", show_default=False)],
    input: Annotated[
        list[str] | None,
        typer.Option(
            "--input", "-i", help="FILE.npy, FILE.pb, NAME=FILE or FILE.npz; in the model's order.", show_default=False
        ),
    ] = None,
    random: Annotated[bool, typer.Option("--random", help="Draw the inputs instead.")] = False,
    shape: Annotated[
        list[str] | None,
        typer.Option(help="Of a drawn input, where the model leaves it open: x=1x3x224x224.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of drawn inputs.")] = 0,
    bench: Annotated[
        bool, typer.Option("--bench", help="Time every layer, and whole runs beside ONNX Runtime's.")
    ] = False,
    seconds: Annotated[float, typer.Option(help="Spent on timing whole runs of each library.")] = 5.0,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads; default: as many as cores.", show_default=False)
    ] = None,
    precision: Annotated[
        str, typer.Option(help="ieee, or emulated: float32 products made of bfloat16 ones, where the CPU has AMX.")
    ] = "ieee",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for the outputs, as .npy files.", show_default=False)
    ] = None,
) -> None:
    """Run an ONNX model.

    Prints the shapes and ranges of inputs and outputs; with --bench, a table of layers with the kernel that each runs
    on and its time, and a comparison with ONNX Runtime, where that is installed.
    """
    from .backends.onnx.command import run_model_file

    run_model_file(
        model, files=input or [], random=random, shapes=shape or [], seed=seed, bench=bench, threads=threads,
        precision=precision, seconds=seconds, output=output,
    )  # fmt: skip


# ----------------------------------------------------------------------------------------------------------- explain


@app.command()
def explain(
    operation: Annotated[
        str, typer.Argument(help="conv2d, conv_transpose1d, max_pool2d, adaptive_avg_pool3d, …", show_default=False)
    ],
    input: Annotated[str, typer.Option(help="Shape of x, for example 1x64x56x56 (N×C×spatial).", show_default=False)],
    weight: Annotated[
        str | None, typer.Option(help="Shape of the weights, for example 64x64x3x3.", show_default=False)
    ] = None,
    kernel_size: Annotated[str | None, typer.Option(help="Window of a pooling: 2 or 3x3.", show_default=False)] = None,
    output_size: Annotated[
        str | None, typer.Option(help="Result of an adaptive pooling: 1 or 7x7.", show_default=False)
    ] = None,
    norm_type: Annotated[float | None, typer.Option(help="Exponent of lp_pool.", show_default=False)] = None,
    stride: Annotated[str | None, typer.Option(help="2 or 2x1.", show_default=False)] = None,
    padding: Annotated[str | None, typer.Option(help="1, 1x2, same, same_lower or valid.", show_default=False)] = None,
    dilation: Annotated[str | None, typer.Option(help="2 or 2x1.", show_default=False)] = None,
    groups: Annotated[int | None, typer.Option(help="Independent groups of channels.", show_default=False)] = None,
    padding_mode: Annotated[
        str | None, typer.Option(help="zeros, reflect, replicate or circular.", show_default=False)
    ] = None,
    layout: Annotated[
        str | None, typer.Option(help="channels_first, channels_last, NCHW, NHWC, …", show_default=False)
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32, float64, float16 or bfloat16.")] = "float32",
    direction: Annotated[str, typer.Option(help="forward, input (gradient) or weight (gradient).")] = "forward",
    device: Annotated[str, typer.Option(help="cpu or cuda (no GPU is needed to ask).")] = "cpu",
    algorithm: Annotated[
        str | None, typer.Option(help="Force one: direct, im2col, reference, …", show_default=False)
    ] = None,
) -> None:
    """Say which kernel would run an operation, and why.

    Every kernel for the operation is listed with its predicted time, workspace and error bound, or the reason why it
    cannot run. Nothing is computed.
    """
    import contextlib

    from .inspection import explain_operation
    from .settings import options

    parameters = {
        "weight_shape": _shape("weight", weight), "kernel_size": _spatial("kernel-size", kernel_size),
        "output_size": _spatial("output-size", output_size), "norm_type": norm_type,
        "stride": _spatial("stride", stride), "padding": _padding(padding), "dilation": _spatial("dilation", dilation),
        "groups": groups, "padding_mode": padding_mode, "layout": layout,
    }  # fmt: skip
    given: dict[str, Any] = {name: value for name, value in parameters.items() if value is not None}
    with options(algorithm=algorithm) if algorithm else contextlib.nullcontext():
        shape = _shape("input", input)
        print(explain_operation(operation, shape, dtype=dtype, direction=direction, device=device, **given))


@overload
def _shape(name: str, text: str) -> tuple[int, ...]: ...
@overload
def _shape(name: str, text: None) -> None: ...
def _shape(name: str, text: str | None) -> tuple[int, ...] | None:
    """Sizes as people type them: 1x64x56x56, 1×64×56×56 or 1,64,56,56."""
    if text is None:
        return None
    from .arguments import typed_sizes

    sizes = typed_sizes(text)
    if sizes is None:
        raise ValueError(f"--{name} must be sizes such as 1x64x56x56, got {text!r}")
    return sizes


def _spatial(name: str, text: str | None) -> int | tuple[int, ...] | None:
    sizes = _shape(name, text)
    return sizes[0] if sizes is not None and len(sizes) == 1 else sizes


def _padding(text: str | None) -> int | str | tuple[int, ...] | None:
    return (
        text if text is not None and text.replace("_", "").isalpha() and "x" not in text else _spatial("padding", text)
    )


# -------------------------------------------------------------------------------------------- doctor, warmup, cache


@app.command()
def doctor() -> None:
    """Show versions, CPU, threads, GPU, cache and optional packages: what a bug report needs."""
    from .doctor import report

    for section, findings in report().items():
        print(section)
        for name, finding in findings.items():
            print(f"  {name:<16} {finding}")


@app.command()
def warmup(
    dtype: Annotated[
        list[str] | None,
        typer.Option(help="Only these dtypes; may be repeated; default: float32, float64.", show_default=False),
    ] = None,
) -> None:
    """Compile the common kernels now, so that later programs start at full speed."""
    import time

    from .inspection import warm_up

    start = time.perf_counter()
    for name, seconds in warm_up(tuple(dtype or ("float32", "float64"))):
        print(f"{seconds:7.2f} s  {name}", flush=True)
    print(f"{time.perf_counter() - start:7.2f} s  in all")


@cache_app.command("info")
def cache_info() -> None:
    """Show where compiled kernels are kept, and how much there is."""
    from .doctor import cache

    for name, finding in cache().items():
        print(f"{name:<10} {finding}")


@cache_app.command("clear")
def cache_clear() -> None:
    """Remove all compiled kernels; the next calls compile them again."""
    from .doctor import clear_cache

    directory, files, size = clear_cache()
    print(f"removed {files} files, {size / 2**20:.1f} MiB, from {directory}")


# ------------------------------------------------------------------------------------------------------------ filter


@app.command("filter")
def filter_(
    image: Annotated[Path, typer.Argument(help="A photograph, grey or colour.", show_default=False)],
    kernel: Annotated[
        str,
        typer.Option(
            "--kernel", "-k", help="sharpen, edges, strong-edges, blur, emboss, horizontal-edges or vertical-edges."
        ),
    ] = "sharpen",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File to write; default: IMAGE-KERNEL.png.", show_default=False)
    ] = None,
) -> None:
    """Convolve a photograph with one of the lecture's 3×3 filters."""
    from .filters import filter_image, read_image, write_image

    target = out or image.with_name(f"{image.stem}-{kernel}.png")
    write_image(target, filter_image(read_image(image), kernel))
    print(target)


if __name__ == "__main__":
    main()
