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
    line |= {
        "environment": cell.environment,
        "data": data.described(cell.data, cell.about["task"], str(places.output / "cache")),
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
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return answer.stdout.splitlines() if answer.returncode == 0 else []  # it prints errors there, too


def time_left(left: list[Cell], finished: dict[str, dict], elapsed: dict[str, float], jobs: int) -> float:
    """Seconds until the cells that are `left` have ended, by the pace of finished ones; 0 as long as none has.

    A cell's time goes with its epochs, and with its task where a grid has several; `elapsed`: of those that run.
    """
    pruned = [line for line in finished.values() if line["kind"] == "pruned"]
    pruned = [line for line in pruned if line["attempts"] == 1] or pruned  # seconds are those of the last attempt

    def pace(task: str) -> float:
        """Seconds an epoch."""
        lines = [line for line in pruned if line["task"] == task] or pruned
        return sum(line["seconds"] for line in lines) / sum(line["epochs"] for line in lines)

    trained = [cell for cell in left if pruned and "epochs" in cell.about]  # floors take seconds
    whole = {cell.name: pace(cell.about["task"]) * cell.about["epochs"] for cell in trained}
    rest = sum(max(seconds - elapsed.get(name, 0), 0) for name, seconds in whole.items())
    return rest / min(jobs, len(whole)) if whole else 0
