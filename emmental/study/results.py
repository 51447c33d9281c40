"""What is kept of a cell: one JSON line in GRID.jsonl, of which alone the report is made.

Lines are only ever added, of cells that failed too; of a cell with several lines the last one counts.
"""

import fcntl
import json
import os
import platform
import subprocess
import time
from pathlib import Path

from emmental.study import data
from emmental.study.cells import Cell, Places, run_folder
from emmental.utils.errors import InputError
from emmental.utils.files import write_errors
from emmental.utils.provenance import commit, versions

METRICS = ("acc", "f1", "mcc", "acc_mm", "exact")
REMAINING = ("remaining_weights", "remaining_weights_released", "remaining_weights_before_calibration")


def read(path: Path) -> list[dict]:
    """The lines of a results file, none where there is no file; InputError for a line that is not JSON."""
    if not path.exists():
        return []
    lines = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            lines.append(json.loads(line))
        except ValueError:
            raise InputError(f"{path}, line {number}: not JSON") from None
    return lines


def latest(lines: list[dict]) -> dict[str, dict]:
    """The last line of each cell, by its name."""
    return {line["cell"]: line for line in lines}


def append(path: Path, line: dict) -> None:
    """Adds a line, whole or not at all, however many runners write to the file; InputError on a full disk."""
    text = (json.dumps(line) + "\n").encode()
    with write_errors(path), path.open("ab", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        size = os.fstat(file.fileno()).st_size
        if file.write(text) < len(text):
            file.truncate(size)
            raise OSError("no space left on the device")
        os.fsync(file.fileno())


def result_line(cell: Cell, places: Places, teacher: dict, status: str, error: str = "") -> dict:
    """The line of a cell that has ended; `teacher` are its teacher's metrics, `error` a failure's last line."""
    folder = Path(run_folder(places, cell.name))
    line = {"cell": cell.name, "status": status, **cell.about, "command": cell.command}
    line |= {"environment": cell.environment, "data": data.described(cell.data, cell.about["task"])}
    line |= {
        "commit": started_from(folder.parent),
        "versions": versions(),
        "machine": machine(),
        "ended": time.strftime("%FT%TZ", time.gmtime()),
    }
    if status == "failed":
        return line | {"error": error}
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    line |= {"attempts": attempts(folder.parent / "log"), "seconds": round(result["seconds"], 1)}
    if (folder / "log.jsonl").exists():
        line["steps"] = json.loads((folder / "log.jsonl").read_text(encoding="utf-8").splitlines()[-1])["step"]
    line |= {name: result[name] for name in REMAINING if name in result}
    return line | {"metrics": {name: result[name] for name in METRICS if name in result}, "teacher": teacher}


def attempts(log: Path) -> int:
    """How often a cell was started; `seconds` are those of the last time alone."""
    return sum(line.startswith("== ") for line in log.read_text(errors="replace").splitlines()) if log.exists() else 0


def started_from(folder: Path) -> str:
    """The commit from which a cell was last started."""
    path = folder / "commit"
    return path.read_text(encoding="utf-8").strip() if path.exists() else commit()


def machine() -> dict:
    """The processor, how many cores, and the GPUs."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        processor = platform.processor() or platform.machine()
    return {"processor": processor, "cores": os.cpu_count(), "gpus": gpus()}


def gpus() -> list[str]:
    """The names of the machine's GPUs, as nvidia-smi lists them."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.split("\n")[:-1]
    except (OSError, subprocess.TimeoutExpired):
        return []
