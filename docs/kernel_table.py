"""The README's table of kernels, made from the registry.

python docs/kernel_table.py           rewrite the table in README.md
python docs/kernel_table.py --check   exit with 1 if it is not current (a test does this too)
"""

from __future__ import annotations

import argparse
from pathlib import Path

from fastconv.registry import ROWS, Row

README = Path(__file__).resolve().parent.parent / "README.md"
BEGIN, END = "<!-- kernels:begin -->\n", "<!-- kernels:end -->\n"
DIRECTIONS = {"forward": "forward", "grad_input": "input gradient", "grad_weight": "weight gradient"}
NAMES = {
    "conv": "convolution, transposed convolution",
    "max_pool": "max pooling, adaptive too",
    "min_pool": "min pooling",
    "avg_pool": "average pooling, adaptive too",
    "lp_pool": "Lp pooling",
    "max_unpool": "max unpooling",
}


def table() -> str:
    """One line for each operation, device and algorithm; the reference rows share one."""
    kernels: dict[tuple[str, str, str], list[Row]] = {}
    for row in ROWS:
        op = "everything" if row.family == "reference" else NAMES.get(row.op, row.op)
        kernels.setdefault((row.device, op, row.algorithm), []).append(row)
    lines = ["| device | operation | algorithm | directions | dtypes | how |", "|---|---|---|---|---|---|"]
    for (device, op, algorithm), rows in kernels.items():
        present = {row.direction for row in rows}
        directions = ", ".join(name for direction, name in DIRECTIONS.items() if direction in present)
        dtypes = ", ".join(rows[0].dtypes)
        lines.append(f"| {device} | {op} | `{algorithm}` | {directions} | {dtypes} | {rows[0].summary} |")
    return "\n".join(lines) + "\n"


def current(text: str) -> str:
    """``text`` with what lies between the markers replaced."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + table() + END + rest.split(END)[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if the table is not current")
    check = parser.parse_args().check
    text = README.read_text("utf-8")
    if check and text != current(text):
        raise SystemExit("README.md: the table of kernels is not current; run python docs/kernel_table.py")
    if not check:
        README.write_text(current(text), "utf-8")


if __name__ == "__main__":
    main()
