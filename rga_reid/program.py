"""How a program of this package ends: an exit code, and one line on stderr where something went wrong."""

from __future__ import annotations

import errno
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rga_reid.errors import InputError, printable
from rga_reid.files import disk_error
from rga_reid.signals import Stopped, stoppable

_NAMES = {errno.ENAMETOOLONG, errno.ELOOP}
_NO_MEMORY = "not enough memory for this"
_CPU_ALLOCATOR = "can't allocate memory"  # torch has an error of its own for GPUs alone
_LONGEST = 4000  # characters of a line: there may be a path in it, which may have as many


def exit_code(work: Callable[[], int]) -> int:
    """Do the work of a program, and tell how it ended.

    Returns:
        What the work returned; 2 for bad input, for a disk that is full, read-only or broken, and for a name
        that no file can have; 1 if memory ran out; 128 + the number of the signal that stopped it, as shells
        say it: 130 for Ctrl-C, 143 for SIGTERM.
    """
    try:
        with _stops_as_such(), stoppable(), warnings.catch_warnings():
            # of pillow, about files that it refuses in the same breath, or that lack nothing but EXIF
            warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
            code = work()
            sys.stdout.flush()  # what a pipe or a disk does not take is told here, not at the very end
            return code
    except InputError as error:
        return _say(f"error: {error}", 2)
    except BrokenPipeError:  # `rga-reid ... | head`: the reader has left
        return _drop_output(0)
    except OSError as error:
        reason = disk_error(error) or (error.strerror if error.errno in _NAMES else None)
        if reason is None:
            raise
        if error.filename is None:
            _drop_output(2)
        return _say(f"error: {error.filename or 'output'}: {reason}", 2)
    except MemoryError:
        return _say(f"error: {_NO_MEMORY}", 1)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError" and _CPU_ALLOCATOR not in str(error):
            raise
        return _say(f"error: {_NO_MEMORY}; smaller batches take less", 1)
    except KeyboardInterrupt as stop:
        signum = stop.signum if isinstance(stop, Stopped) else signal.SIGINT
        return _say("interrupted" if signum == signal.SIGINT else "terminated", 128 + signum)


@contextmanager
def _stops_as_such() -> Iterator[None]:
    """Raise the stop itself where it brought about another error on its way.

    torch's writer of files, for one, fails at its end when it is left in the middle.
    """
    try:
        yield
    except Exception as error:
        behind: BaseException | None = error
        while behind is not None and not isinstance(behind, KeyboardInterrupt):
            behind = behind.__context__
        if behind is None:
            raise
        raise behind from None


def _say(message: str, code: int) -> int:
    """One line on stderr, whatever stood in the files that it tells of."""
    line = printable(" ".join(message.split()))
    line = line if len(line) <= _LONGEST else f"{line[: _LONGEST - 3]}..."
    print(f"rga-reid: {line}", file=sys.stderr)
    return code


def _drop_output(code: int) -> int:
    """Send what stdout still holds nowhere: the interpreter would fail on it at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code
