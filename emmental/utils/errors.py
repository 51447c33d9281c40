"""The one error that a user's input can cause: a bad flag, file, folder or checkpoint.

The scripts print it as one line and exit with status 2; anything else that is raised is a fault of the program.
This module imports no more than the standard library, so that every check can use it before torch is loaded.
"""

import errno
import os
import sys
from collections.abc import Callable
from typing import TextIO

DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}  # full, or not to be written


class InputError(Exception):
    """Bad input from the user; the message is one line that names the flag, or the file and the line in it."""


def print_once(line: str, file: TextIO | None = None) -> None:
    """Prints a line once, however many processes there are; to standard output unless `file` is given."""
    if os.environ.get("RANK", "0") == "0":
        print(line, file=file)


def run(main: Callable[[], None]) -> None:
    """Runs a script's `main`, turning an InputError, or a full disk, into one line on stderr and exit status 2."""
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except (InputError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in DISK:
            raise
        script, line = os.path.basename(sys.argv[0]), " ".join(str(error).splitlines())
        where = f" [process {os.environ['RANK']}]" if "RANK" in os.environ else ""
        print(f"{script}: error:{where} {line}", file=sys.stderr)
        sys.exit(2)
