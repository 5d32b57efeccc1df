"""From a ``.cu`` file to a launch: source, NVRTC, the cache of cubins, and the driver that runs them.

    Instance           one kernel: file, symbol, #defines, and what the compile gate holds it to
    source(…)          the file's text with its headers inlined and its #defines in front
    compile_cubin(…)   NVRTC, without a GPU: machine code for one architecture, and what each kernel in it uses
    driver()           what runs kernels: CuPy on the current device, or what ``use`` installed (the tests: an emulator)

Every launcher goes through ``driver().function(instance)``, once per process, instance and device: an object called
with grid, block, arguments and bytes of dynamic shared memory. Arguments are passed by value with the size they have:
addresses as ``np.uint64``, numbers as ``np.int32`` or ``np.int64`` on purpose, a struct as a :class:`Struct`.

Cubins are kept in ``cache_dir() / "cuda"``, each named by a digest of everything that went into it.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..cpu.compile import cache_dir
from ..geometry import hashed_once

FOLDER = Path(__file__).resolve().parent

Defines = tuple[tuple[str, str | int], ...]
Grid = tuple[int, int, int]
Launch = Callable[[Grid, Grid, Sequence[Any], int], None]

AMPERE = ("sm_80", "sm_90a")
"""What kernels are tuned for, data centres' GPUs: the gate compiles every instance and allows no spill."""
EVERY = ("sm_75", "sm_80", "sm_90a", "sm_120")
"""All that kernels run on, Turing to Blackwell: the gate compiles an instance of every file at least."""

MAX_GRID = 2**31 - 1
"""Blocks along x. Along y and z there are 65,535: kernels put everything in x."""


@hashed_once
@dataclass(frozen=True)
class Instance:
    """One compiled kernel: the ``extern "C"`` function ``symbol`` of ``stem.cu``, compiled with ``defines``.

    ``threads`` a block; ``archs`` it is meant for, each of which the compile gate compiles; registers a thread may use
    at most; whether it may have a stack frame or spill.
    """

    stem: str
    symbol: str
    defines: Defines = ()
    threads: int = 256
    archs: tuple[str, ...] = AMPERE
    max_registers: int | None = None
    stack: bool = False


def words(instance: Instance) -> str:
    """An instance for messages.

    >>> words(Instance("direct", "direct_forward", (("ELEMENT", "float"), ("INDEX", "int"))))
    'direct_forward[ELEMENT=float, INDEX=int]'
    """
    return f"{instance.symbol}[{', '.join(f'{name}={value}' for name, value in instance.defines)}]"


# -------------------------------------------------------------------------------------------------------- the source

_INCLUDE = re.compile(r'^#include "([\w.]+)"\s*$', re.MULTILINE)


def source(stem: str, defines: Defines = (), folder: Path = FOLDER) -> str:
    """The text of ``stem.cu``: #defines in front, each header where it is first included, from ``folder`` or this one.

    >>> source("direct", (("ELEMENT", "float"),)).splitlines()[0]
    '#define ELEMENT float'
    """
    front = "".join(f"#define {name} {value}\n" for name, value in defines)
    return front + _text(stem, folder)


@cache
def _text(stem: str, folder: Path) -> str:
    seen: set[str] = set()

    def inlined(name: str) -> str:
        path = folder / name if (folder / name).exists() else FOLDER / name
        text = path.read_text("utf-8").replace("#pragma once\n", "")
        pieces, end = [f'#line 1 "{name}"\n'], 0
        for match in _INCLUDE.finditer(text):
            pieces.append(text[end : match.start()])
            if match[1] not in seen:
                seen.add(match[1])
                pieces += [inlined(match[1]), f'#line {text.count(chr(10), 0, match.start()) + 2} "{name}"']
            end = match.end()
        return "".join([*pieces, text[end:]])

    return inlined(f"{stem}.cu")


# --------------------------------------------------------------------------------------------------------- compiling


class Resources(NamedTuple):
    """What ptxas says that a kernel uses; bytes, but for the registers of a thread."""

    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    shared: int


def options(arch: str) -> tuple[str, ...]:
    """NVRTC's options. Not among them: ``-ftz=true``, which CuPy would add, and ``--use_fast_math``: subnormal numbers
    are kept, divisions and roots are rounded as IEEE 754 says."""
    return (f"-arch={arch}", "--std=c++17", "--ptxas-options=-v", "-default-device", "-diag-error=177,550")


def compile_cubin(instance: Instance, arch: str, folder: Path = FOLDER) -> tuple[bytes, Resources]:
    """Machine code of the instance's file for one architecture, and what the instance's kernel uses.

    Raises
    ------
    ImportError : CuPy or the NVRTC library cannot be loaded.
    RuntimeError : the source does not compile; the message is the compiler's.
    """
    cubin, log = _compiled(source(instance.stem, instance.defines, folder), f"{instance.stem}.cu", arch)
    return cubin, _resources(log, instance.symbol)


def _compiled(text: str, name: str, arch: str) -> tuple[bytes, str]:
    compiler = nvrtc()
    key = repr((text, options(arch), compiler.getVersion()))
    stem = hashlib.sha256(key.encode()).hexdigest()[:40]
    directory = cache_dir() / "cuda"
    with suppress(OSError, ValueError):
        kept = (directory / f"{stem}.cubin").read_bytes()
        length = int.from_bytes(kept[:4], "little")
        if hashlib.sha256(kept[36:]).digest() == kept[4:36]:
            return kept[36 + length :], kept[36 : 36 + length].decode()
    program = compiler.createProgram(text, name, (), ())
    try:
        try:
            compiler.compileProgram(program, options(arch))
        except compiler.NVRTCError as error:
            raise RuntimeError(f"{name} for {arch}: {error}\n{compiler.getProgramLog(program)}") from None
        cubin, log = compiler.getCUBIN(program), compiler.getProgramLog(program)
    finally:
        compiler.destroyProgram(program)
    body = log.encode() + cubin
    _keep(directory, f"{stem}.cubin", len(log.encode()).to_bytes(4, "little") + hashlib.sha256(body).digest() + body)
    return cubin, log


def _keep(directory: Path, name: str, data: bytes) -> None:
    """Write a file in one step: another process sees all of it or nothing."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=directory, delete=False) as file:
            file.write(data)
        os.replace(file.name, directory / name)
    except OSError as error:
        _warn_unkept(f"{directory} ({error})")


@cache
def _warn_unkept(where: str) -> None:
    warnings.warn(
        f"compiled CUDA kernels cannot be kept in {where}; every process will compile them again. "
        "Set FASTCONV_CACHE_DIR to a writable directory.",
        RuntimeWarning,
        stacklevel=2,
    )


_FUNCTION = re.compile(r"Compiling entry function '(\w+)'")
_NUMBERS = {
    "registers": re.compile(r"Used (\d+) registers"),
    "stack": re.compile(r"(\d+) bytes stack frame"),
    "spill_stores": re.compile(r"(\d+) bytes spill stores"),
    "spill_loads": re.compile(r"(\d+) bytes spill loads"),
    "shared": re.compile(r"(\d+) bytes smem"),
}


def _resources(log: str, symbol: str) -> Resources:
    """One kernel's part of the log that ``-v`` makes ptxas write, with the functions it calls: the most of each."""
    parts = _FUNCTION.split(log)
    for name, part in zip(parts[1::2], parts[2::2], strict=True):
        if name == symbol:
            found = {field: pattern.findall(part) for field, pattern in _NUMBERS.items()}
            return Resources(**{field: max(map(int, numbers), default=0) for field, numbers in found.items()})
    raise RuntimeError(f"no kernel {symbol!r} was compiled; the log is: {log}")


@cache
def nvrtc() -> Any:
    """CuPy's binding of NVRTC, its library found in any folder that Python imports from.

    Raises
    ------
    ImportError : CuPy or the library is missing.
    """
    from cupy_backends.cuda.libs import nvrtc as binding

    try:
        binding.getVersion()
    except Exception as error:  # CuPy looks in the environment's own folder and the system's, not along sys.path
        try:
            _load_from_path()
            binding.getVersion()
        except Exception:
            reason = " ".join(str(error).split())
            raise ImportError(
                f'NVRTC cannot be loaded: {reason}; python -m pip install "fastconv[cuda13]" (or cuda12)'
            ) from error
    return binding


def _load_from_path() -> None:
    """Load NVRTC from NVIDIA's wheels in whatever folder of ``sys.path``, and its built-ins, which it opens by name."""
    for folder in filter(None, sys.path):
        for library in sorted(Path(folder).glob("nvidia/*/lib/libnvrtc.so.*")):
            for part in (*sorted(library.parent.glob("libnvrtc-builtins.so.*")), library):
                ctypes.CDLL(str(part), ctypes.RTLD_GLOBAL)
            return


# ----------------------------------------------------------------------------------------------------------- running


class Struct(np.ndarray):
    """A struct as an argument: an array of one element of an aligned structured dtype.

    CuPy takes the array itself too, but looks at it anew in each launch, 12 µs for ``launch.CONV``; for a pointer that
    is made once, nothing. (Its first releases of version 14 take no large scalars.)
    """

    @cached_property
    def pointer(self) -> Any:
        """The bytes as CuPy's launches take them."""
        from cupy.cuda.function import CPointer

        return CPointer(self.ctypes.data)

    @classmethod
    def of(cls, dtype: np.dtype[Any], *fields: Any) -> Struct:
        """The struct with these fields; zeros without any."""
        array = np.array([fields], dtype) if fields else np.zeros(1, dtype)
        return array.view(cls)


class Driver(Protocol):
    """What runs kernels. Facts are those of the device that the next launch goes to."""

    arch: str
    multiprocessors: int
    shared_bytes_per_block: int
    l2_bytes: int

    def function(self, instance: Instance) -> Launch: ...

    def address(self, array: Any) -> int: ...


class Device:
    """The driver of a GPU: CuPy's device ``index``, which is current when it is used. ``folder`` holds the sources."""

    def __init__(self, index: int, folder: Path = FOLDER) -> None:
        import cupy

        self.folder = folder

        properties = cupy.cuda.runtime.getDeviceProperties(index)
        major, minor = properties["major"], properties["minor"]
        self.arch = f"sm_{major}{minor}" + ("a" if (major, minor) == (9, 0) else "")
        self.multiprocessors: int = properties["multiProcessorCount"]
        self.shared_bytes_per_block: int = properties["sharedMemPerBlockOptin"]
        self.l2_bytes: int = properties["l2CacheSize"]
        self._functions: dict[Instance, Launch] = {}
        self._lock = threading.Lock()

    def function(self, instance: Instance) -> Launch:
        """The instance, compiled and loaded; its launches go to CuPy's current stream."""
        known = self._functions.get(instance)
        if known is None:
            with self._lock:
                known = self._functions.get(instance) or self._load(instance)
                self._functions[instance] = known
        return known

    def _load(self, instance: Instance) -> Launch:
        import cupy
        from cupy_backends.cuda.api import driver as api

        cubin, _ = _compiled(source(instance.stem, instance.defines, self.folder), f"{instance.stem}.cu", self.arch)
        module = cupy.cuda.function.Module()
        module.load(cubin + b"\0")
        function = module.get_function(instance.symbol)
        if self.shared_bytes_per_block > 48 << 10:  # more than that has to be asked for
            static = api.funcGetAttribute(api.CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, function.ptr)
            limit = self.shared_bytes_per_block - static
            api.funcSetAttribute(function.ptr, api.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, limit)

        def launch(grid: Grid, block: Grid, args: Sequence[Any], shared_bytes: int) -> None:
            function(grid, block, [a.pointer if type(a) is Struct else a for a in args], shared_bytes)

        return launch

    @staticmethod
    def address(array: Any) -> int:
        pointer: int = array.data.ptr
        return pointer


H200_SHARED_BYTES = 227 << 10


def least_shared_bytes() -> int:
    """Shared memory that a block may have on every GPU of this machine; an H200's where there is none. 64 KiB on
    Turing, 99 KiB on consumers' cards since, 163 and 227 KiB on data centres'."""
    if _installed is not None:
        return _installed.shared_bytes_per_block
    return _least_shared_bytes()


@cache
def _least_shared_bytes() -> int:
    try:
        from cupy.cuda import runtime

        every = [runtime.getDeviceProperties(i)["sharedMemPerBlockOptin"] for i in range(runtime.getDeviceCount())]
    except Exception:  # ImportError, or one of CuPy's own about a missing driver or device
        every = []
    return min(every, default=H200_SHARED_BYTES)


_devices: dict[int, Device] = {}
_installed: Driver | None = None


def driver() -> Driver:
    """What the next launch goes to: what :func:`use` installed, else CuPy's current device.

    Raises
    ------
    RuntimeError : no CuPy, or no device it can use.
    """
    if _installed is not None:
        return _installed
    try:
        import cupy

        index = cupy.cuda.runtime.getDevice()
        known = _devices.get(index)
        if known is None:
            known = _devices.setdefault(index, Device(index))
    except Exception as error:  # ImportError, or one of CuPy's own about a missing driver or device
        reason = " ".join(str(error).split())
        if isinstance(error, ImportError):
            reason += '; python -m pip install "fastconv[cuda13]" (or cuda12)'
        raise RuntimeError(f"CUDA kernels need CuPy and a GPU that it can use: {reason}") from error
    return known


@contextmanager
def use(replacement: Driver) -> Iterator[None]:
    """Run kernels by another driver inside a ``with`` block, in every thread: for tests without a GPU."""
    global _installed
    before, _installed = _installed, replacement
    try:
        yield
    finally:
        _installed = before
