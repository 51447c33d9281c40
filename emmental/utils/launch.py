"""What torchrun tells a process of how many there are, read from its environment and checked before torch is loaded."""

import os

from emmental.utils.errors import InputError

TORCHRUN = ("LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def world_size() -> int:
    """How many processes torchrun started, 1 without it; InputError where a part of its environment is missing."""
    if "LOCAL_RANK" not in os.environ:
        return 1
    for name in TORCHRUN:
        value = os.environ.get(name, "")
        if not value:
            raise InputError(f"LOCAL_RANK is set and {name} is not; torchrun sets {', '.join(TORCHRUN)}")
        if name != "MASTER_ADDR" and not value.isdecimal():
            raise InputError(f"{name}={value}: not a number; torchrun sets it")
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if rank >= size:
        raise InputError(f"RANK={rank}, and WORLD_SIZE={size}: ranks count from 0")
    return size
