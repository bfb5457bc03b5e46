"""How a program of this package ends: an exit code, and one line on stderr where something went wrong."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable

from rga_reid.errors import InputError
from rga_reid.files import disk_error
from rga_reid.signals import Stopped, stoppable


def exit_code(work: Callable[[], int]) -> int:
    """Do the work of a program, and tell how it ended.

    Returns:
        What the work returned; 2 for bad input and for a disk that is full, read-only or broken; 128 + the
        number of the signal that stopped it, as shells say it: 130 for Ctrl-C, 143 for SIGTERM.
    """
    try:
        with stoppable():
            code = work()
            sys.stdout.flush()  # what a pipe or a disk does not take is told here, not at the very end
            return code
    except InputError as error:
        return _say(f"error: {' '.join(str(error).split())}", 2)
    except BrokenPipeError:  # `rga-reid ... | head`: the reader has left
        return _drop_output(0)
    except OSError as error:
        reason = disk_error(error)
        if reason is None:
            raise
        if error.filename is None:
            _drop_output(2)
        return _say(f"error: {error.filename or 'output'}: {reason}", 2)
    except KeyboardInterrupt as stop:
        signum = stop.signum if isinstance(stop, Stopped) else signal.SIGINT
        return _say("interrupted" if signum == signal.SIGINT else "terminated", 128 + signum)


def _say(message: str, code: int) -> int:
    print(f"rga-reid: {message}", file=sys.stderr)
    return code


def _drop_output(code: int) -> int:
    """Send what stdout still holds nowhere: the interpreter would fail on it at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code
