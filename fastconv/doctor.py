"""What a bug report needs: versions, CPU, threads, GPU, cache, optional packages. Nothing here raises."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
from pathlib import Path

from ._version import __version__
from .machine import INTERESTING_FEATURES


def report() -> dict[str, dict[str, str]]:
    """Section → name → finding, in words; calling it compiles nothing.

    >>> list(report())
    ['versions', 'cpu', 'gpu', 'cache', 'extras']
    """
    return {"versions": versions(), "cpu": cpu(), "gpu": gpu(), "cache": cache(), "extras": extras()}


def versions() -> dict[str, str]:
    """Python, the platform, fastconv and what it always needs."""
    return {
        "fastconv": __version__,
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "platform": platform.platform(),
        **{name: installed(name) or "missing" for name in ("numpy", "numba", "llvmlite", "ml_dtypes")},
    }


def cpu() -> dict[str, str]:
    """The CPU as LLVM sees it, and the threads that kernels use."""
    import llvmlite.binding
    import numba

    from .kernels.cpu.threads import threading_layer
    from .settings import get_num_threads

    features = llvmlite.binding.get_host_cpu_features()
    overrides = [
        f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith(("NUMBA_", "OMP_", "KMP_"))
    ]
    try:
        layer = threading_layer()
    except Exception as error:  # Numba raises ValueError and others where no layer loads
        layer = f"none can be loaded: {_line(error)}"
    return {
        "name": numba.config.CPU_NAME or llvmlite.binding.get_host_cpu_name(),
        "features": ", ".join(f for f in INTERESTING_FEATURES if features.get(f)) or "none of those that matter here",
        "threads": f"{get_num_threads()} of {os.cpu_count()} CPUs",
        "threading layer": layer,
        "overrides": ", ".join(overrides) or "none",
    }


def gpu() -> dict[str, str]:
    """Whether CuPy finds a device, and if not, why; whether kernels can be compiled for it."""
    if importlib.util.find_spec("cupy") is None:
        return {"cuda": 'CuPy is not installed: python -m pip install "fastconv[cuda13]" (or cuda12)'}
    return {**_devices(), "nvrtc": _compiler()}


def _devices() -> dict[str, str]:
    name = "CuPy"
    try:
        import cupy

        name = f"CuPy {cupy.__version__}"
        count = cupy.cuda.runtime.getDeviceCount()
        devices = {}
        for i in range(count):
            properties = cupy.cuda.runtime.getDeviceProperties(i)
            capability = f"compute capability {properties['major']}.{properties['minor']}"
            devices[f"device {i}"] = (
                f"{properties['name'].decode()}, {capability}, {properties['totalGlobalMem'] / 2**30:.0f} GiB"
            )
        runtime = cupy.cuda.runtime.runtimeGetVersion()
    except Exception as error:  # a missing driver, library or device: each its own class in CuPy
        return {"cuda": f"{name} finds no usable device: {_line(error)}"}
    return {"cuda": f"{name}, CUDA runtime {runtime // 1000}.{runtime % 1000 // 10}, {count} device(s)", **devices}


def _compiler() -> str:
    from .kernels.cuda.module import nvrtc

    try:
        version = nvrtc().getVersion()
    except ImportError as error:
        return _line(error)
    return ".".join(map(str, version))


def cache() -> dict[str, str]:
    """Where compiled kernels are kept, and how much there is."""
    from .kernels.cpu.compile import cache_dir

    directory = cache_dir()
    files, size = usage(directory)
    return {
        "directory": str(directory),
        "size": f"{size / 2**20:.1f} MiB in {files} files",
        "writable": _writable(directory),
    }


def clear_cache() -> tuple[Path, int, int]:
    """Remove the compiled kernels; returns the directory and what was in it, files and bytes.

    Only what the compilers write is removed (``*/*.nbi``, ``*/*.nbc``, ``*/lock``, ``cuda/*.cubin``), whatever else the
    directory holds.
    """
    from .kernels.cpu.compile import cache_dir

    directory = cache_dir()
    ours = [
        p
        for folder in directory.glob("*")
        for p in folder.glob("*")
        if p.suffix in (".nbi", ".nbc", ".cubin") or p.name == "lock"
    ]
    size = sum(p.stat().st_size for p in ours)
    for path in ours:
        path.unlink(missing_ok=True)
    for folder in {path.parent for path in ours}:
        if not any(folder.iterdir()):
            folder.rmdir()
    return directory, len(ours), size


def extras() -> dict[str, str]:
    """Each optional dependency that fastconv's metadata names, installed or not."""
    try:
        requirements = importlib.metadata.requires("fastconv") or []
    except importlib.metadata.PackageNotFoundError:
        return {"fastconv": "runs from a folder that is not installed: python -m pip install -e ."}
    found: dict[str, list[str]] = {}
    for requirement in requirements:
        match = re.fullmatch(r"([\w.-]+).*;.*extra == ['\"](\w+)['\"].*", requirement)
        if match:
            name, extra = match.groups()
            found.setdefault(extra, []).append(f"{name} {installed(name) or '(missing)'}")
    return {extra: ", ".join(names) for extra, names in sorted(found.items())}


def usage(directory: Path) -> tuple[int, int]:
    """Files under a directory, and their bytes.

    >>> usage(Path("no such directory"))
    (0, 0)
    """
    sizes = []
    for path in directory.rglob("*"):
        try:
            if path.is_file():
                sizes.append(path.stat().st_size)
        except OSError:  # removed by another process meanwhile
            continue
    return len(sizes), sum(sizes)


def installed(name: str) -> str | None:
    """The installed version of a distribution; None without it.

    >>> installed("no-such-distribution") is None
    True
    """
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _writable(directory: Path) -> str:
    existing = next(p for p in (directory, *directory.parents) if p.exists())
    if existing.is_dir() and os.access(existing, os.W_OK):
        return "yes"
    return "no: every process compiles its kernels again; set FASTCONV_CACHE_DIR to a directory"


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
