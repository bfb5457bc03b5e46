"""The frame of a command: progress bars, free memory, exit codes and one-line errors."""

from __future__ import annotations

import ast
import atexit
import ctypes
import errno
import gc
import hashlib
import importlib
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from rga_reid.errors import InputError, sanitize, short_repr
from rga_reid.files import disk_error
from rga_reid.process import Stopped, handle_signals

Item = TypeVar("Item")

SCHEDSTAT = Path(
    "/proc/self/schedstat"
)  # nanoseconds on a processor, nanoseconds of waiting for one, time slices
CGROUP = Path("/sys/fs/cgroup")  #: control group of a container


def track(items: Iterable[Item], what: str, total: int) -> Iterator[Item]:
    """Yield the items and show a progress bar on stderr if it is a terminal.

    Args:
        items: items to work on.
        what: label of the bar.
        total: number of items.
    """
    if not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(items, what, total, transient=True, console=Console(stderr=True))


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[float], None]]:
    """Show a progress bar; yield the function that sets it to a share from 0 to 1."""
    if not sys.stderr.isatty():
        yield lambda share: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=1.0)
        yield lambda share: bar.update(task, completed=share)


def import_modules(names: Iterable[str]) -> None:
    """Import the user's modules that ``--import`` names, so that their classes can be named by class path.

    Modules are also searched in the current folder, as with ``python -m``, but only by this function: the folder may
    hold data of unknown origin.

    Args:
        names: dotted names, such as ``my_attn`` or ``my_package.losses``.

    Raises:
        InputError: not a module's name, no such module, or a module that raises; the message has the error and its
            place.
    """
    for name in names:
        if name.endswith(".py") or not all(part.isidentifier() for part in name.split(".")):
            stem = Path(name).stem if Path(name).stem.isidentifier() else "my_attn"
            raise InputError(f"--import: expected a module's name, such as {stem}, got {short_repr(name)}")
        here = os.getcwd()
        sys.path.insert(0, here)
        try:
            importlib.invalidate_caches()  # the file may be newer than the cached list of the folder
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise _import_error(name, error) from None
            where = "the current folder or among the installed packages"
            raise InputError(f"--import {name}: found no module {error.name} in {where}") from None
        except (Exception, SystemExit) as error:
            raise _import_error(name, error) from None
        finally:
            with suppress(ValueError):  # the module may have changed the list
                sys.path.remove(here)


def digest_code(names: Iterable[str]) -> dict[str, str]:
    """Return a digest of the code of each loaded module with one of these names or below it, by its name.

    Comments, blank lines and formatting do not count. Modules without a ``.py`` file are left out.
    """
    parents = tuple(f"{name}." for name in names)
    loaded = [name for name in sorted(sys.modules) if f"{name}.".startswith(parents)]
    files = {name: Path(getattr(sys.modules[name], "__file__", None) or "") for name in loaded}
    return {
        name: _digest_file(file, file.stat().st_mtime_ns)
        for name, file in files.items()
        if file.suffix == ".py" and file.is_file()
    }


@cache
def _digest_file(file: Path, changed: int) -> str:
    code = file.read_bytes()
    with suppress(SyntaxError, ValueError):  # it is being edited
        code = ast.unparse(ast.parse(code)).encode()
    return hashlib.sha256(code).hexdigest()[:16]


def import_class(path: str, what: str) -> Any:
    """Return what a class path names; a module may raise anything when it is imported.

    Args:
        path: module and name, such as ``my_attn.MyAttention``.
        what: beginning of the error message.

    Raises:
        InputError: it cannot be imported.
    """
    from rga_reid.inputs import truncate

    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and f"{module}.".startswith(f"{missing}."):
            name = truncate(module)
            raise InputError(
                f"{what}: found no module {truncate(missing)} among the installed packages; if it is a file in the "
                f"current folder, add --import {name} (in a recipe or plan: imports: [{name}])"
            ) from None
        raise InputError(f"{what}: cannot import it ({truncate(error)})") from None


def find_place(error: BaseException) -> str:
    """Return the last line of a traceback in code of the user, such as `` (my_attn.py, line 9)``; "" without one.

    Code of this package, of installed packages and of the standard library is not the user's.
    """
    here, library = (str(Path(file).parent) + os.sep for file in (__file__, os.__file__))
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename)
        is_installed = {"site-packages", "dist-packages"} & set(file.parts)
        if file.is_file() and not is_installed and not str(file).startswith((here, library)):
            return f" ({file.name}, line {frame.lineno})"
    return ""


def _import_error(name: str, error: BaseException) -> InputError:
    """Return an error with the type, the message and the last line of what a module raised."""
    from rga_reid.inputs import truncate  # imports yaml, which --help does not need

    place = ""
    if isinstance(error, SyntaxError):
        place = f" ({Path(error.filename or '?').name}, line {error.lineno})"
        error = type(error)(error.msg)
    elif frames := traceback.extract_tb(error.__traceback__):
        place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})"
    return InputError(f"--import {name}: {type(error).__name__}: {truncate(error)}{place}")


def free_memory() -> int:
    """Return the bytes of memory available without swapping, within the limit of a container."""
    import psutil

    free = int(psutil.virtual_memory().available)
    with suppress(OSError, ValueError):  # no control group, or its limit is "max"
        limit, used = (int((CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        statistics = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        free = min(free, limit - used + int(statistics["inactive_file"]))  # cached files are given back
    return max(0, free)


def waited_seconds() -> float | None:
    """Return how long the main thread has waited for a processor that others used; None if the system does not say."""
    try:
        return int(SCHEDSTAT.read_text().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):  # not Linux, or a kernel without these statistics
        return None


#: parameters of glibc's mallopt
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_KEEP = {_MMAP_MAX: 0, _TRIM_THRESHOLD: -1}  # no block gets pages of its own, and the heap never shrinks
# the thresholds that glibc itself reaches when blocks of this size are freed; once set, they stay
_RETURN = {_MMAP_MAX: 65536, _TRIM_THRESHOLD: 64 << 20, _MMAP_THRESHOLD: 32 << 20}

_users, _users_lock = 0, threading.Lock()


@contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Keep freed memory in the process until the end of the block.

    Forward passes allocate and free the same large blocks again and again. By default glibc returns each of
    them to the operating system, and on a CPU the page faults of the next pass take up to a third of its
    time (``benchmarks/freed_memory.py``). Blocks may overlap, also in threads. Nothing changes without glibc
    (macOS, Windows, musl), or if the environment configures malloc (``MALLOC_...``, ``GLIBC_TUNABLES``).
    """
    global _users
    library = _load_glibc()
    if library is None or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        yield
        return
    with _users_lock:
        _users += 1
        if _users == 1:
            _set_options(library, _KEEP)
    try:
        yield
    finally:
        with _users_lock:
            _users -= 1
            if _users == 0:
                _set_options(library, _RETURN)
                library.malloc_trim(0)


def return_freed_memory() -> None:
    """Return freed memory to the operating system, where glibc can."""
    library = _load_glibc()
    if library is not None:
        library.malloc_trim(0)


def _set_options(library: ctypes.CDLL, options: dict[int, int]) -> None:
    for name, value in options.items():
        library.mallopt(name, value)


@cache
def _load_glibc() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL("libc.so.6")
    except OSError:
        return None
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None


_NAME_ERRORS = {errno.ENAMETOOLONG, errno.ELOOP}
_NO_MEMORY = "not enough memory for this"
_CPU_ALLOCATOR = "can't allocate memory"  # torch raises OutOfMemoryError for GPUs only
_MAX_LINE = 4000  # characters of an error message: a path may have as many


@contextmanager
def _shorten_own_warnings() -> Iterator[None]:
    """Show warnings about old names in one line, without file and code."""
    original = warnings.formatwarning

    def shorten(message: Any, category: Any, filename: str, lineno: int, line: str | None = None) -> str:
        if category is FutureWarning and Path(filename).is_relative_to(Path(__file__).parent):
            return f"rga-reid: warning: {message}\n"
        return original(message, category, filename, lineno, line)

    warnings.formatwarning = shorten
    try:
        yield
    finally:
        warnings.formatwarning = original


def run_main(work: Callable[[], int]) -> int:
    """Run a program and turn its errors into one line on stderr and an exit code.

    Returns:
        What ``work`` returned; 2 for bad input, a full, read-only or broken disk, or an impossible file
        name; 1 if memory ran out; 128 + the number of the signal that stopped it (130 for Ctrl-C, 143 for
        SIGTERM), as shells do.
    """
    try:
        with (
            _prefer_stop(),
            handle_signals(),
            _collect_rarely(),
            _shorten_own_warnings(),
            warnings.catch_warnings(),
        ):
            # Pillow's, about files that are refused right after, or whose EXIF block alone is damaged
            warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
            warnings.filterwarnings("ignore", category=RuntimeWarning, message="Image size")
            code = work()
            sys.stdout.flush()  # a closed pipe or full disk must be reported here, not at exit
            return code
    except InputError as error:
        return _report(f"error: {error}", 2)
    except BrokenPipeError:  # `rga-reid ... | head`
        return _discard_output(0)
    except OSError as error:
        reason = disk_error(error) or (error.strerror if error.errno in _NAME_ERRORS else None)
        if reason is None:
            raise
        if error.filename is None:
            _discard_output(2)
        return _report(f"error: {error.filename or 'output'}: {reason}", 2)
    except MemoryError:
        return _report(f"error: {_NO_MEMORY}", 1)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError" and _CPU_ALLOCATOR not in str(error):
            raise
        return _report(f"error: {_NO_MEMORY}; smaller batches take less", 1)
    except KeyboardInterrupt as stop:
        signum = stop.signum if isinstance(stop, Stopped) else signal.SIGINT
        return _report("interrupted" if signum == signal.SIGINT else "terminated", 128 + signum)


@contextmanager
def _collect_rarely() -> Iterator[None]:
    """Run Python's garbage collection less often within the block, and not at exit.

    Importing torch makes several hundred thousand objects, which stay. Looking through them again and again, and
    once more at exit, takes a quarter of the time of a short command.
    """
    old = gc.get_threshold()
    gc.set_threshold(50_000, *old[1:])
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)
    try:
        yield
    finally:
        gc.set_threshold(*old)


@contextmanager
def _prefer_stop() -> Iterator[None]:
    """Raise the ``KeyboardInterrupt`` that caused another error, as in the destructor of torch's writer."""
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, KeyboardInterrupt):
            cause = cause.__context__
        if cause is None:
            raise
        raise cause from None


def _report(message: str, code: int) -> int:
    """Print one line on stderr, safe for terminals, and return the exit code."""
    line = sanitize(" ".join(message.split()))
    line = line if len(line) <= _MAX_LINE else f"{line[: _MAX_LINE - 3]}..."
    print(f"rga-reid: {line}", file=sys.stderr)
    return code


def _discard_output(code: int) -> int:
    """Send buffered stdout to the null device: flushing it at exit would fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code
