"""One run per folder: a lock that ends with the process that took it, however that process ends.

The lock is the kernel's (flock) on a file in the folder; the file only says who took it. A process that ends by itself
removes it; one that is left behind locks nothing.
"""

import atexit
import fcntl
import os
import socket
import threading
import time
from pathlib import Path

from emmental.utils.errors import InputError, print_once

FILE = ".lock"
HELD: dict[Path, int] = {}  # folder -> the process of this program that holds it; a forked child holds nothing


def lock_folder(folder: Path) -> None:
    """Makes this process the only one to write to `folder`, which is made if need be, until it ends.

    InputError names the process that holds the lock already. A process may run scripts one after the other: what it
    has locked stays its own.
    """
    if HELD.get(folder.resolve()) == os.getpid():
        return
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    tries = 0
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(folder / FILE, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            tries += 1
            if isinstance(error, FileNotFoundError) and tries < 100:  # another process may just have removed it
                continue
            raise InputError(f"--output_dir {folder}: {error.strerror}") from None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"--output_dir {folder}: in use by {_holder(handle)}; one run per folder") from None
        except OSError as error:  # some network file systems
            print_once(f"--output_dir {folder}: cannot be locked ({error.strerror}); let no other run write to it")
            return
        if os.fstat(handle).st_nlink:
            break
        os.close(handle)  # it was removed at its holder's end, between our opening it and locking it
    HELD[folder.resolve()] = os.getpid()
    atexit.register(_unlock, folder, made, os.getpid())
    try:
        os.ftruncate(handle, 0)
        since = time.strftime("%Y-%m-%d %H:%M:%S %Z")
        os.write(handle, f"process {os.getpid()} on {socket.gethostname()} since {since}".encode())
    except OSError:  # a full disk: the lock holds all the same
        pass


def _holder(handle: int) -> str:
    """Who holds the lock, by its file, which its holder writes just after it has taken it."""
    end = time.monotonic() + 2
    time.sleep(0.05)  # a file left behind names the process before, until then
    while not (name := os.pread(handle, 1000, 0).decode(errors="replace").strip()) and time.monotonic() < end:
        time.sleep(0.02)
    return name or "another process"


def _unlock(folder: Path, made: list[Path], process: int) -> None:
    """Removes the file, and the folders that were made for it where nothing else came into them.

    Not where another thread ends the process: the main one may write until the end, when the kernel unlocks.
    """
    if os.getpid() == process and threading.current_thread() is threading.main_thread():
        (folder / FILE).unlink(missing_ok=True)
        for path in made:
            try:
                path.rmdir()
            except OSError:
                return
