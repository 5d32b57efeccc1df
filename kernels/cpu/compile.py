"""Compiling with Numba: the ``jit`` decorator, and the only code that touches Numba's cache.

Numba's own cache ignores edits in helper modules and may be corrupted by two processes that save different
signatures of one function at once. Here compiled kernels live in a directory of their own,

    cache_dir() / <digest of every kernel source, numba, llvmlite and the target CPU> / *.nbi, *.nbc

so an edit anywhere or another CPU starts afresh, and saving holds a file lock. Nothing process-wide is changed:
each function gets a cache object of its own, ``numba.config.CACHE_DIR`` is never written.
A directory that cannot be written costs one warning and compilation in every process, nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any


def cache_dir() -> Path:
    """The directory of compiled kernels: ``FASTCONV_CACHE_DIR`` if set, else one under the user's cache directory.

    >>> cache_dir().is_absolute()
    True
    """
    override = os.environ.get("FASTCONV_CACHE_DIR")
    if override:
        return Path(override).absolute()
    import platformdirs

    return platformdirs.user_cache_path("fastconv", appauthor=False)


def jit(function: Callable[..., Any] | None = None, *, parallel: bool = False, inline: bool = False) -> Any:
    """Compile a module-level function: without the GIL, with NumPy's division, cached on disk.

    ``inline`` is for helpers that only other kernels call: they are compiled into each caller, and neither cached nor
    able to run alone.
    """
    if function is None:
        return lambda f: jit(f, parallel=parallel, inline=inline)
    import numba

    if numba.config.DISABLE_JIT:
        raise RuntimeError("NUMBA_DISABLE_JIT is set, and fastconv's kernels run only when compiled: unset it")
    options = {"no_cpython_wrapper": True, "pipeline_class": _helper_compiler()} if inline else {}
    dispatcher = numba.njit(
        function, nogil=True, error_model="numpy", parallel=parallel, no_cfunc_wrapper=True, **options
    )
    if inline:
        _take_literals_as_numbers(dispatcher)
    else:
        dispatcher._cache = _cache_class()(function)
    return dispatcher


@cache
def _helper_compiler() -> type:
    """Numba's compiler, which by itself optimises a helper and makes machine code of it before a kernel inlines it, and
    then optimises it again there. Without that a convolution's first call takes 4.2 s instead of 6.6, and runs as fast.
    """
    from numba.core import codegen, compiler

    class Library(codegen.JITCodeLibrary):
        """Code that is only linked into kernels' libraries, which optimise and compile it."""

        def _optimize_functions(self, module: Any) -> None:
            module.data_layout = self._codegen._data_layout

        def _optimize_final_module(self) -> None:
            pass

        def _finalize_final_module(self) -> None:
            self._finalized = True

        def get_pointer_to_function(self, name: str) -> int:
            return 0  # as for other functions without a wrapper for Python

        @property
        def codegen(self) -> Library:  # asked for set_env alone
            return self

        def set_env(self, name: str, env: Any) -> None:
            """Nothing to set: the variable is in no machine code, and helpers raise nothing."""

    class Compiler(compiler.CompilerBase):
        def define_pipelines(self) -> list[Any]:
            self.state.library = Library(self.state.targetctx.codegen(), self.state.func_id.func_qualname)
            return [compiler.DefaultPassBuilder.define_nopython_pipeline(self.state)]

    return Compiler


def _take_literals_as_numbers(dispatcher: Any) -> None:
    """Numba compiles a callee anew for every literal (and every bool where another call passes an int): here once.

    An int16 stays what it is: the element type of bfloat16 arrays.
    """
    from numba import types

    original = dispatcher.get_call_template

    def number(a: Any) -> Any:
        plain = types.unliteral(a)
        return types.int64 if isinstance(plain, (types.Integer, types.Boolean)) and plain != types.int16 else a

    def get_call_template(args: Any, kws: Any) -> Any:
        return original([number(a) for a in args], kws)

    dispatcher.get_call_template = get_call_template


_KERNELS = Path(__file__).resolve().parent.parent


@cache
def source_digest(root: Path = _KERNELS) -> str:
    """A digest of every Python source under ``root``."""
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


@cache
def _directory() -> Path:
    """Where this process reads and writes compiled kernels."""
    import llvmlite
    import numba
    from numba.core.registry import cpu_target

    target = cpu_target.target_context.codegen().magic_tuple()  # triple, CPU name, features
    key = repr((source_digest(), numba.__version__, llvmlite.__version__, target, sys.version_info[:2]))
    return cache_dir() / hashlib.sha256(key.encode()).hexdigest()[:20]


_warned = threading.Event()


def _give_up(reason: object) -> None:
    if not _warned.is_set():
        _warned.set()
        warnings.warn(
            f"compiled kernels cannot be kept in {cache_dir()} ({reason}); every process will compile them again. "
            "Set FASTCONV_CACHE_DIR to a writable directory.",
            RuntimeWarning,
            stacklevel=2,
        )


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold the directory's lock against other processes, where the platform has one."""
    with open(directory / "lock", "ab") as file:
        try:
            import fcntl
        except ImportError:  # Windows: renames are atomic, and a lost entry is only compiled again
            yield
            return
        fcntl.flock(file, fcntl.LOCK_EX)
        yield  # closing the file releases the lock


@cache
def _cache_class() -> type:
    from numba.core import caching
    from numba.core.runtime import rtsys

    class Locator(caching._CacheLocator):
        """Points Numba at our directory, whose name already tells sources and CPUs apart."""

        def __init__(self, function: Callable[..., Any], file: str) -> None:
            self._py_file = file  # named in Numba's own warnings
            self._disambiguator = f"{function.__module__}-{function.__code__.co_firstlineno}"

        def get_cache_path(self) -> str:
            return str(_directory())

        def get_source_stamp(self) -> str:
            return source_digest()

        def get_disambiguator(self) -> str:
            return self._disambiguator

        @classmethod
        def from_function(cls, py_func: Callable[..., Any], py_file: str) -> Locator:
            return cls(py_func, py_file)

    class Implementation(caching.CompileResultCacheImpl):
        _locator_classes = [Locator]  # noqa: RUF012 (Numba's attribute, read once)

    class KernelCache(caching.FunctionCache):
        _impl_class = Implementation

        def load_overload(self, sig: Any, target_context: Any) -> Any:
            """Numba refreshes its context first, which takes 0.25 s; compiled code needs only the runtime's symbols."""
            try:
                rtsys.initialize(target_context)
                with self._guard_against_spurious_io_errors():
                    return self._load_overload(sig, target_context)
            except Exception:  # a damaged or foreign file must not be worse than no file
                return None

        def save_overload(self, sig: Any, data: Any) -> None:
            try:
                directory = _directory()
                directory.mkdir(parents=True, exist_ok=True)
                with _locked(directory):
                    try:
                        super().save_overload(sig, data)
                    except OSError:
                        raise
                    except Exception:  # the index is damaged: begin a new one
                        self.flush()
                        super().save_overload(sig, data)
            except OSError as error:
                _give_up(error)

    return KernelCache
