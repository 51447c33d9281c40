"""The one error that a user's input can cause: a bad flag, file, folder or checkpoint.

The scripts print it as one line and exit with status 2; anything else that is raised is a fault of the program.
This module imports no more than the standard library, so that every check can use it before torch is loaded.
"""

import errno
import io
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

GRACE = 5  # seconds that torchrun has to end a process after another one
DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}  # full, or not to be written
LOST = re.compile("closed|reset by peer|broken pipe|timed? ?out", re.IGNORECASE)  # a connection, in torch's words
AT_END: list[Callable[[int], None]] = []  # what a script does at its end, given its exit status; one may not return


class InputError(Exception):
    """Bad input from the user; the message is one line that names the flag, or the file and the line in it."""


def print_once(line: str, file: TextIO | None = None) -> None:
    """Prints a line once, however many processes there are; to standard output unless `file` is given."""
    if os.environ.get("RANK", "0") == "0":
        print(line, file=file)


@contextmanager
def may_go_unread(file: TextIO) -> Iterator[None]:
    """Lets lines to `file` be lost where what reads them has ended, as `tee` does by the Ctrl-C that stops a run."""
    try:
        yield
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())
    except RuntimeError:  # a signal's handler prints while a line is being written
        pass


def print_error(text: str) -> None:
    """Prints one line on stderr that names the script, and the process where torchrun started several."""
    where = f" [process {os.environ['RANK']}]" if "RANK" in os.environ else ""
    folder, script = os.path.split(sys.argv[0])
    script = f"emmental.{os.path.basename(folder)}" if script == "__main__.py" else script
    print(f"{script}: error:{where} {' '.join(text.splitlines())}", file=sys.stderr)


def run(main: Callable[[], None]) -> None:
    """Runs a script's `main`; InputError or a full disk become one line on stderr and exit status 2.

    Where another process has ended, one line says so, and the status is 1, as after any other exception.
    """
    code = 0
    if isinstance(sys.stdout, io.TextIOWrapper):  # a notebook's is none
        sys.stdout.reconfigure(line_buffering=True)  # so that each line is in a batch job's log at once
    try:
        main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:  # what read the output, `head` for example, wants no more of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = 128 + signal.SIGPIPE
    except SystemExit as end:
        code = end.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
            code = 1
    except Exception as error:
        code = report(error)
    while AT_END:
        AT_END.pop()(code)
    if code:
        sys.exit(code)


def report(error: Exception) -> int:
    """Says what went wrong; returns the exit status."""
    if isinstance(error, InputError) or (isinstance(error, OSError) and error.errno in DISK):
        try:
            if "torch" not in sys.modules and os.environ.get("LOCAL_RANK", "0") != "0":
                # flags and files: process 0 of the node finds the same as a rule; torchrun then ends this one unheard
                time.sleep(GRACE)
        finally:
            print_error(str(error))
        return 2
    # gloo's errors have no class of their own; torch's are named, since torch may not be loaded, and may be of this
    # process's own making: a port in use, one GPU for two processes
    lost = type(error).__name__.startswith("Dist") and LOST.search(str(error))
    if isinstance(error, RuntimeError) and ("/gloo/" in str(error) or lost):
        reason = re.sub(r"^\[\S+\] ", "", str(error)).split(". ")[0]
        print_error(f"another process has ended or cannot be reached, and so this one ends ({reason})")
        return 1
    traceback.print_exception(error)
    return 1
