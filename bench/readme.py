"""The README's tables of speeds, made from stored runs of ``bench.compare`` and of whole networks.

python -m bench.readme           rewrite the tables in README.md
python -m bench.readme --check   exit with 1 if they are not current (a test does this too)
"""

from __future__ import annotations

import argparse
import json
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

from .judge import CASES, CLASSES, EVERYONE, mean, ratio

ROOT = Path(__file__).resolve().parent.parent
README, RESULTS = ROOT / "README.md", ROOT / "bench" / "results" / "forward.json"
BEGIN, END = "<!-- speed:begin -->\n", "<!-- speed:end -->\n"
BATCHES = (1, 16)
ROWS = {
    "3×3, stride 1, at least 64 channels and 14 pixels": ("3×3, 512 channels at 14 px", "3×3, ≥ 64 channels, ≥ 14 px"),
    "5×5": ("5×5",),
    "1×1, strided, first layers, 1-D, 3-D and others": ("other convolutions",),
    "depthwise": ("depthwise",),
    "pooling": ("pooling",),
}
"""The classes of :mod:`bench.judge` by what a reader knows them as."""
NETWORKS = {
    "resnet18": "ResNet-18",
    "resnet50": "ResNet-50",
    "vgg16": "VGG-16",
    "mobilenetv2": "MobileNetV2",
    "unet": "U-Net",
}
CALLS = "any convolution by one call, nothing prepared, beside PyTorch's alone"


def table() -> str:
    """Where and with what it was measured, the ratios by class and batch size, and where fastconv is behind."""
    report = json.loads(RESULTS.read_text("utf-8"))
    versions = report["versions"]
    peers = {"PyTorch": "torch", "ONNX Runtime": "onnxruntime", "OpenVINO": "openvino", "ncnn": "ncnn"}
    named = ", ".join(f"{name} {versions[library].partition('+')[0]}" for name, library in peers.items())
    rounds = f"{report['rounds']} round" + "s" * (report["rounds"] != 1)
    machine = f"{report['threads']} threads of an {report['machine']['cpu']}"
    about = (
        f"The time of the best of {named} (at batch 1) over fastconv's, geometric mean (worst to best): on {machine}, "
        f"{report['date'][:10]}, {rounds}, each library alone in its process; float32, NCHW in and out, weights "
        "prepared where a library can."
    )
    lines = [
        textwrap.fill(about, 118),
        "",
        "| layers | " + " | ".join(f"batch {n}" for n in BATCHES) + " |",
        "|---|" + "---:|" * len(BATCHES),
    ]
    found = ratios(report["results"])
    for row in (*ROWS, CALLS):
        cells = [found.get((row, n), {}).values() for n in BATCHES]
        lines.append(f"| {row} | " + " | ".join(_cell([*values]) for values in cells) + " |")
    return "\n".join([*lines, "", *(_behind(found, n) for n in BATCHES), "", *networks()]) + "\n"


def networks() -> list[str]:
    """Milliseconds of whole networks: ONNX models, and PyTorch's before and after ``convert``."""
    reports = [
        json.loads((RESULTS.parent / f"{name}.json").read_text("utf-8")) for name in ("onnx_networks", "torch_networks")
    ]
    onnx, converted = (report["results"] for report in reports)
    machines = " and ".join(sorted({report["machine"]["cpu"] for report in reports}))
    about = (
        f"Whole networks, milliseconds for one image of 224×224, 2 threads of an {machines}: an ONNX model on "
        "fastconv's executor and on the best of ONNX Runtime, OpenVINO and PyTorch channels-last; a PyTorch model, "
        "eager and channels-last, and the same after `convert(model)`."
    )
    lines = [textwrap.fill(about, 118), "", "| network | ONNX | best other | | PyTorch | converted | |"]
    lines.append("|---|" + "---:|" * 6)
    for name, shown in NETWORKS.items():
        times = {library: _best(runs) for library, runs in onnx[name].items()}
        own, other = times.pop("fastconv"), min(times.values())
        eager, new = _best(converted[name]["eager-channels-last"]), _best(converted[name]["converted"])
        cells = (
            f"{own:.1f}",
            f"{other:.1f}",
            f"{other / own:.2f}×",
            f"{eager:.1f}",
            f"{new:.1f}",
            f"{eager / new:.2f}×",
        )
        lines.append(f"| {shown} | " + " | ".join(cells) + " |")
    return lines


def _best(runs: list[dict[str, float]]) -> float:
    return min(run["ms"] for run in runs)


def ratios(results: list[dict[str, Any]]) -> dict[tuple[str, int], dict[str, float]]:
    """fastconv's rate over the best other's, by case, for each row of the table and batch size."""
    found: dict[tuple[str, int], dict[str, float]] = {}
    for r in results:
        if r["direction"] not in ("forward", "call") or r["layout"] != "channels_first":
            continue
        kind = next(k.name for k in CLASSES if k.takes(CASES[r["case"]], r)).partition(", batch")[0]
        row = next((row for row, kinds in ROWS.items() if kind in kinds), CALLS)
        value = ratio(r, ["torch"] if row == CALLS else EVERYONE)
        if value is not None:
            found.setdefault((row, r["batch"]), {})[r["case"]] = value
    return found


def _cell(values: list[float]) -> str:
    return f"{mean(values):.2f} ({min(values):.2f} to {max(values):.2f})" if values else "–"


def _behind(found: dict[tuple[str, int], dict[str, float]], batch: int) -> str:
    """The layers on which another library is faster, counted by suite."""
    prepared = [item for row in ROWS for item in found.get((row, batch), {}).items()]
    slower = Counter(case.partition("/")[0] for case, value in prepared if value < 1)
    where = ", ".join(f"{suite} {n}" for suite, n in slower.most_common())
    text = f"- Batch {batch}: another library is faster on {slower.total()} of {len(prepared)} layers, by suite: "
    return textwrap.fill(f"{text}{where}.", 118, subsequent_indent="  ")


def current(text: str) -> str:
    """``text`` with what lies between the markers replaced."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + table() + END + rest.split(END)[1]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.readme", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if the table is not current")
    check = parser.parse_args().check
    text = README.read_text("utf-8")
    if check and text != current(text):
        raise SystemExit("README.md: the table of speeds is not current; run python -m bench.readme")
    if not check:
        README.write_text(current(text), "utf-8")


if __name__ == "__main__":
    main()
