"""The caches of a core, read from directories as Linux writes them."""

import sys
from pathlib import Path

import pytest

from fastconv.kernels.cpu import caches

Row = tuple[str, str, str, str]


def write(root: Path, *rows: Row) -> Path:
    for i, row in enumerate(rows):
        index = root / f"index{i}"
        index.mkdir()
        for name, value in zip(("level", "type", "size", "shared_cpu_list"), row, strict=True):
            (index / name).write_text(value + "\n")
    return root


L1 = ("1", "Data", "32K", "0,4")
CODE = ("1", "Instruction", "64K", "0,4")
L2 = ("2", "Unified", "1M", "0,4")
L3 = ("3", "Unified", "32768K", "0-7")


def test_l3_is_divided_among_cores_not_hyperthreads(tmp_path: Path) -> None:
    assert caches.linux(write(tmp_path, L1, CODE, L2, L3)) == (32 << 10, 1 << 20, 8 << 20)


def test_a_machine_without_l3(tmp_path: Path) -> None:
    assert caches.linux(write(tmp_path, CODE, L1, L2)) == (32 << 10, 1 << 20, 0)


@pytest.mark.parametrize("rows", [(), (L1,), (CODE, L2), (("1", "Data", "", "0"), L2), (("1", "Data", "32K", "?"), L2)])
def test_what_is_missing_or_malformed_is_not_guessed(
    tmp_path: Path, rows: tuple[tuple[str, str, str, str], ...]
) -> None:
    assert caches.linux(write(tmp_path, *rows)) is None


def test_a_missing_file_is_not_guessed(tmp_path: Path) -> None:
    root = write(tmp_path, L1, L2)
    (root / "index1" / "size").unlink()
    assert caches.linux(root) is None


def test_the_fallback_serves_where_nothing_is_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(caches, "_LINUX", tmp_path)
    monkeypatch.setattr(sys, "platform", "linux")
    assert caches.caches.__wrapped__() == caches.FALLBACK
