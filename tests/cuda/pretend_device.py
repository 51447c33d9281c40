"""A pretend CUDA device: tensors say cuda:0, hold host memory and refuse to mix with the CPU's; waits are recorded.

device.cpp is the device. This module compiles and loads it, which has to happen before torch is asked for a device;
afterwards the scripts run on it as they are. It does not show time, memory, streams, NCCL, or what real kernels round.
"""

import atexit
import ctypes
import hashlib
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from watch import watch_step

SOURCE = Path(__file__).with_name("device.cpp")
FREE = 8 << 30  # bytes of memory that the device says it has free


def build() -> Path:
    """The compiled device, made once for each torch and each state of its source."""
    torch = Path(importlib.util.find_spec("torch").origin).parent
    key = hashlib.sha256(SOURCE.read_bytes() + str(torch).encode() + (torch / "version.py").read_bytes()).hexdigest()
    library = Path(tempfile.gettempdir()) / f"pretend-device-{os.getuid()}-{key[:16]}.so"
    if not library.exists():
        temporary = library.with_suffix(f".{os.getpid()}")
        paths = [f"-I{torch}/include", f"-I{torch}/include/torch/csrc/api/include", f"-L{torch}/lib"]
        linked = [f"-Wl,-rpath,{torch}/lib", "-ltorch_cpu", "-lc10"]
        command = ["g++", "-std=c++20", "-O0", "-shared", "-fPIC", *paths, str(SOURCE), "-o", str(temporary), *linked]
        subprocess.run(command, check=True, capture_output=True, text=True)
        temporary.rename(library)
    return library


assert "torch" not in sys.modules
device = ctypes.CDLL(str(build()), ctypes.RTLD_GLOBAL)
device.launches.restype = ctypes.c_long

import torch  # noqa: E402
from torch._C._distributed_c10d import _create_work_from_future  # noqa: E402

random_state = [torch.arange(16, dtype=torch.uint8)]


class Event:
    """torch.cuda.Event; waiting for one is a wait of the host."""

    def record(self) -> None:
        pass

    def synchronize(self) -> None:
        waited(b"event")


def set_random_state(state: torch.Tensor, where: object) -> None:
    assert state.device.type == "cpu"
    random_state[0] = state


torch.cuda._lazy_init = lambda: None
torch.cuda.is_available = lambda: True
torch.cuda.device_count = lambda: 1
torch.cuda.current_device = lambda: 0
torch.cuda.set_device = lambda where: None
torch.cuda.is_bf16_supported = lambda *_: True
torch.cuda.mem_get_info = lambda where=None: (FREE, FREE)
torch.cuda.get_rng_state = lambda where: random_state[0].clone()
torch.cuda.set_rng_state = set_random_state
torch.cuda.Event = Event
torch.backends.cuda.is_built = lambda: True


def on_host(x: torch.Tensor) -> torch.Tensor:
    """The memory of a tensor as one of the CPU's."""
    assert x.is_contiguous()
    if x.device.type == "cpu" or not x.numel():
        return x.cpu()
    memory = (ctypes.c_char * (x.numel() * x.element_size())).from_address(x.data_ptr())
    return torch.frombuffer(memory, dtype=x.dtype).view(x.shape)


class Collectives(torch.distributed.ProcessGroup):
    """NCCL's part, played by gloo on the host's view of the memory."""

    def __init__(self, store, rank: int, size: int, timeout):
        super().__init__(rank, size)
        self.gloo = torch.distributed.ProcessGroupGloo(store, rank, size, timeout)

    def allreduce(self, tensors, options):
        return self.done(self.gloo.allreduce([on_host(x) for x in tensors], options), tensors)

    def broadcast(self, tensors, options):
        return self.done(self.gloo.broadcast([on_host(x) for x in tensors], options), tensors)

    def allgather(self, outputs, inputs, options):
        parts = [[on_host(x) for x in part] for part in outputs]
        return self.done(self.gloo.allgather(parts, [on_host(x) for x in inputs]), outputs)

    def barrier(self, opts):
        return self.gloo.barrier(opts)

    def done(self, work, result):
        work.wait()
        future = torch.futures.Future(devices=["cuda:0"])
        future.set_result(result)
        return _create_work_from_future(future)

    def getBackendName(self):
        return "pretended"


class Logger:
    """DistributedDataParallel's, without the times of a step, which a device would take."""

    def __init__(self, logger):
        self.logger = logger

    def set_runtime_stats_and_log(self) -> None:
        pass


def parallel(self, *args, **settings) -> None:
    build_parallel(self, *args, **settings)
    self.logger = Logger(self.logger)


build_parallel = torch.nn.parallel.DistributedDataParallel.__init__
torch.nn.parallel.DistributedDataParallel.__init__ = parallel
join = torch.distributed.init_process_group
torch.distributed.Backend.register_backend("pretended", Collectives, devices=["cpu", "cuda"])
torch.distributed.init_process_group = lambda backend, **settings: join("pretended", **settings)


class Record:
    """What a run did: its waits inside the steps and elsewhere, by what waited and where; the launches of each step."""

    def __init__(self):
        self.inside, self.elsewhere, self.launches = Counter(), Counter(), []
        self.now = self.elsewhere

    def begin(self) -> None:
        self.now, self.before = self.inside, device.launches()

    def end(self) -> None:
        self.now = self.elsewhere
        self.launches.append(device.launches() - self.before)

    def write(self, path: Path) -> None:
        path.write_text(json.dumps({name: getattr(self, name) for name in ("inside", "elsewhere", "launches")}))


record = Record()


@ctypes.CFUNCTYPE(None, ctypes.c_char_p)
def waited(what: bytes) -> None:
    """Notes a wait, by the innermost function of the package that it happened in."""
    frame, place = sys._getframe(), "backward"
    while frame:
        if "/emmental/" in frame.f_code.co_filename:
            place = frame.f_code.co_qualname
            break
        frame = frame.f_back
    record.now[f"{what.decode()} in {place}"] += 1


def start(report: str, fault: str | None = None, may_wait: bool = False) -> None:
    """Called in a script's process before it runs: watches it, and writes to `report` what it did.

    `fault` is the function of faults.py that injects one; `may_wait` is for a real device.
    """
    watch_step(record.begin, record.end)
    if fault:
        getattr(importlib.import_module("faults"), fault)()
    device.watch(waited)
    atexit.register(lambda: record.write(Path(report)))
