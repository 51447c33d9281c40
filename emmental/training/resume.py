"""What an output folder holds, and from where a run in it starts. Nothing here removes or changes a file.

`--resume_from_checkpoint auto` may stand in every job script: what is finished is left alone, what was interrupted goes
on from its newest complete checkpoint, and what can be neither is refused. No torch here.
"""

import json
import math
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from emmental.model.families import is_masked
from emmental.model.validation import PACKED, WEIGHTS
from emmental.utils.errors import InputError, print_once
from emmental.utils.files import digest, read_json
from emmental.utils.lock import FILE as LOCK

ARGUMENTS, RESULT, STATE = "arguments.json", "result.json", "state.json"
EVALUATION = "evaluation"  # the folder of an evaluation alone, beside what a training run left
PASSED_OVER = ".passed-over"  # after the name of a checkpoint that could not be used, and was written again
UNUSED = (".partial", PASSED_OVER)


# What a finished run may differ in and be the same: neither its numbers nor its results depend on it. Of batch size and
# processes the product counts.
IMMATERIAL = {"output_dir", "cache_dir", "resume_from_checkpoint", "overwrite_output_dir", "overwrite_cache", "no_cuda"}
IMMATERIAL |= {"per_gpu_train_batch_size", "per_gpu_eval_batch_size", "threads", "verbose_logging"}
IMMATERIAL |= {"save_steps", "save_total_limit", "logging_steps"}
TYPES = {"model_type", "teacher_type"}  # whose family becomes known by the model's config


@dataclass(frozen=True)
class Start:
    """From where a run starts: a checkpoint, or None for the beginning; newer ones, and why they cannot be used."""

    checkpoint: Path | None = None
    passed_over: dict[Path, str] = field(default_factory=dict)


def contents(folder: Path) -> set[str]:
    """The names in a folder, without the lock's; none where there is no folder."""
    return {path.name for path in folder.iterdir()} - {LOCK} if folder.is_dir() else set()


def evaluation_folder(output_dir: Path) -> Path:
    """Where an evaluation alone leaves its files: beside a model or a training run, of which it replaces nothing."""
    trained = contents(output_dir) & {ARGUMENTS, PACKED, *WEIGHTS} or _checkpoints(output_dir)
    return output_dir / EVALUATION if trained else output_dir


def check_empty(output_dir: Path) -> None:
    """Refuses a folder that holds files."""
    if names := contents(output_dir):
        run = "; --resume_from_checkpoint auto goes on with its run" if ARGUMENTS in names else ""
        anew = "--overwrite_output_dir writes into it all the same"
        raise InputError(f"--output_dir {output_dir} is not empty{run}; {anew}")


def nothing_to_do(output_dir: Path, arguments: dict, defaults: dict, overwrite: bool, fixed: set[str]) -> bool:
    """Whether `auto` finds a finished run, in which case a line says so; the first arguments are those of auto_start.

    InputError where one would go on with other values of the `fixed` flags, before its data are read.
    """
    start = auto_start(output_dir, arguments, defaults, overwrite)
    if start is None:
        print_once(f"{output_dir}: this run is finished, nothing to do; its results are in {output_dir / RESULT}")
        return True
    if start.checkpoint:
        known = {name: value for name, value in arguments.items() if name in fixed - TYPES}
        with suppress(FileNotFoundError):  # of a run that is under way there, which the folder's lock will tell
            check_arguments(start.checkpoint, known, defaults)
    return False


def find_start(which: str, output_dir: Path, arguments: dict, defaults: dict, overwrite: bool) -> Start:
    """The start that `--resume_from_checkpoint which` means, once the folder is this run's alone."""
    if which == "auto":
        start = auto_start(output_dir, arguments, defaults, overwrite)
        if start is None:
            raise InputError(f"{output_dir}: another process has just finished this run")
        for folder, wrong in start.passed_over.items():
            print(f"{folder}: passed over, {wrong}", file=sys.stderr)
        if not start.checkpoint and (output_dir / ARGUMENTS).exists():
            print_once(f"{output_dir}: no checkpoint to go on from; training starts anew")
        return start
    if not which:
        if not overwrite:
            check_empty(output_dir)
        return Start()
    if wrong := fault(Path(which)):
        raise InputError(f"--resume_from_checkpoint {which}: no complete checkpoint, {wrong}")
    if Path(which).resolve().parent != output_dir.resolve():
        raise InputError(f"--resume_from_checkpoint {which}: not in --output_dir {output_dir}, where the banks are")
    return Start(Path(which))


def auto_start(output_dir: Path, arguments: dict, defaults: dict, overwrite: bool) -> Start | None:
    """From where `auto` starts; None where a run with these `arguments`, by flag, has finished.

    `defaults`, by flag, are what a run had that knew less flags. InputError where the folder holds no complete
    checkpoint and something would be lost, unless `overwrite`.
    """
    finished, differences = _finished(output_dir, arguments, defaults)
    if finished and not differences:
        return None
    start = Start() if finished else _newest(output_dir)
    if start.checkpoint:
        return start
    if not overwrite:
        _check_nothing_lost(output_dir, differences, start.passed_over)
    return Start()


def _finished(output_dir: Path, arguments: dict, defaults: dict) -> tuple[bool, str]:
    """Whether a training run ended here, and in which arguments it differs."""
    names, saved = contents(output_dir), read_json(output_dir / ARGUMENTS)
    if not (saved and RESULT in names and names & {*WEIGHTS}):
        return False, ""
    saved, arguments = defaults | saved, dict(arguments)
    for flags in (saved, arguments):
        for name in TYPES:
            flags[name] = "masked" if is_masked(str(flags.get(name))) else "dense"
    return True, _differences(saved, {name: value for name, value in arguments.items() if name not in IMMATERIAL})


def _check_nothing_lost(output_dir: Path, differences: str, damaged: dict[Path, str]) -> None:
    """Refuses to start anew over a finished run with `differences`, over `damaged` checkpoints, or over other files.

    A run that was interrupted before its first checkpoint and its model has nothing to lose.
    """
    where, anew = f"--resume_from_checkpoint auto: {output_dir}", "--overwrite_output_dir starts anew"
    if differences:
        raise InputError(f"{where} holds a finished run, of which {differences}; {anew}")
    if damaged:
        newest, wrong = next(iter(damaged.items()))
        banks = "" if (output_dir / "banks").is_dir() else f" (there is no folder {output_dir / 'banks'})"
        raise InputError(f"{where} has no complete checkpoint; {newest.name}: {wrong}{banks}; {anew} without them")
    names = {name for name in contents(output_dir) if not name.endswith(UNUSED)}
    if names and read_json(output_dir / ARGUMENTS) is None:
        check_empty(output_dir)
    if left := sorted(names & {*WEIGHTS, RESULT}):
        holds = f"holds {' and '.join(left)}, and no checkpoint to go on from"
        raise InputError(f"{where} {holds}; --do_eval alone evaluates a model, {anew}")


def _newest(output_dir: Path) -> Start:
    """The newest complete checkpoint, if there is one."""
    passed_over = {}
    for folder in _checkpoints(output_dir):
        if (wrong := fault(folder)) is None:
            return Start(folder, passed_over)
        passed_over[folder] = wrong
    return Start(None, passed_over)


def complete(output_dir: Path) -> Iterator[Path]:
    """The complete checkpoints of a folder, the newest first by the step in their state; others are named on stderr."""
    for folder in _checkpoints(output_dir):
        if not (wrong := fault(folder)):
            yield folder
        else:
            print_once(f"{folder}: passed over, {wrong}", file=sys.stderr)


def _checkpoints(output_dir: Path) -> list[Path]:
    """The newest first; those whose state cannot be read come before all others."""
    folders = [path for path in output_dir.glob("checkpoint-*") if path.is_dir() and not path.name.endswith(UNUSED)]
    return sorted(folders, key=step_of, reverse=True)


def step_of(folder: Path) -> float:
    """The step of a checkpoint, infinity where its state cannot be read."""
    try:
        return int(read_state(folder)["step"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return math.inf


def read_state(folder: Path) -> dict:
    return json.loads((folder / STATE).read_text(encoding="utf-8"))


def fault(folder: Path) -> str | None:
    """What keeps a folder from being a complete checkpoint, or None."""
    try:
        state = read_state(folder)
        expected = {folder / name: saved for name, saved in state["files"].items()}
        for files in state["banks"].values():
            expected |= {folder.parent / "banks" / name: saved for name, saved in files.items()}
        int(state["step"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"{STATE} is missing or damaged ({type(error).__name__})"
    for path, saved in expected.items():
        if not path.is_file():
            return f"{path.name} is missing"
        if digest(path) != saved:
            return f"{path.name} is damaged"
    return None


def check_arguments(folder: Path, arguments: dict, defaults: dict) -> None:
    """Refuses to go on with other arguments than the checkpoint's, each difference by name; `defaults` as above.

    Weights and configs of models are compared where both know them: a model may come from the Hub, and be a folder
    later.
    """
    saved = defaults | read_state(folder)["arguments"]
    optional = ("_weights", "model_config")
    arguments = {name: value for name, value in arguments.items() if name in saved or not name.endswith(optional)}
    if wrong := _differences(saved, arguments):
        anew = "without this flag, --overwrite_output_dir starts anew"
        raise InputError(f"--resume_from_checkpoint {folder}: {wrong}; {anew}")


def _differences(saved: dict, arguments: dict) -> str:
    names = [name for name in arguments if not _same(saved.get(name), arguments[name])]
    return ", ".join(f"{name} was {saved.get(name)!r} and is {arguments[name]!r}" for name in names)


def _same(saved: object, given: object) -> bool:
    """Whether two values of a flag are the same, or paths to the same place."""
    if saved == given or not (saved and given and isinstance(saved, str) and isinstance(given, str)):
        return saved == given
    return os.path.exists(given) and os.path.realpath(saved) == os.path.realpath(given)
