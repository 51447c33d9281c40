"""What a cell of a grid runs: an environment and flags for the shell scripts that users run, and nothing else.

Teachers and floors are cells too. Every cell has a folder of its own, `cells/NAME` in the study's output folder, in
which the command writes to `run/`.
"""

import os
import shlex
from dataclasses import dataclass
from pathlib import Path

from emmental.study.data import Places, train_rows
from emmental.study.grids import METHODS, Experiment, Recipe, Row

ROOT = Path(os.path.relpath(Path(__file__).parents[2]))  # short, since commands are read and pasted


@dataclass(frozen=True)
class Cell:
    """One run; `about` is what its result's line says of it first, `needs` a cell that must be finished before."""

    name: str
    argv: tuple[str, ...]
    environment: dict[str, str]
    data: str
    about: dict
    needs: str = ""

    @property
    def command(self) -> str:
        """The command as it can be pasted into a shell."""
        settings = [f"{name}={value}" for name, value in self.environment.items()]
        return shlex.join([*(["env", *settings] if settings else []), *self.argv])


def grid_cells(grid: tuple[Experiment, ...], places: Places) -> list[Cell]:
    """All cells of a grid, in the order in which they are run."""
    return [cell for experiment in grid for cell in experiment_cells(experiment, places)]


def experiment_cells(experiment: Experiment, places: Places) -> list[Cell]:
    """An experiment's teacher, its floors and its pruned models."""
    teacher = teacher_cell(experiment, places)
    guesses = ("constant",) if experiment.task == "squad" else ("majority", "embeddings")
    floors = [floor_cell(experiment, guess, places) for guess in guesses]
    pruned = [pruned_cell(experiment, row, seed, teacher.name, places) for row in experiment.rows for seed in row.seeds]
    return [teacher, *floors, *pruned]


def run_folder(places: Places, name: str) -> str:
    return str(places.output / "cells" / name / "run")


def named(experiment: Experiment, *parts: object) -> str:
    """A cell's name: its data, then what sets it apart."""
    rows = () if experiment.train_rows is None else (experiment.train_rows,)
    return "-".join(str(part) for part in (experiment.task, *rows, *parts)).lower().replace(" ", "-")


def of_recipe(recipe: Recipe) -> dict:
    return {"epochs": recipe.epochs, "learning_rate": float(recipe.learning_rate)}


def program(experiment: Experiment) -> list[str]:
    """The Python program of a task, with the flags that name its data."""
    if experiment.task == "squad":
        return ["python", str(ROOT / "masked_run_squad.py")]
    return ["python", str(ROOT / "masked_run_glue.py"), "--task_name", experiment.task]


def teacher_cell(experiment: Experiment, places: Places) -> Cell:
    """The dense model that is fine-tuned on the same rows, always with seed 42."""
    name, data, recipe = named(experiment, "teacher"), places.data_of(experiment), experiment.teacher
    argv = [*program(experiment), "--model_type", "bert", "--model_name_or_path", places.model, "--do_lower_case"]
    argv += ["--data_dir", data] if data else []
    argv += ["--do_train", "--do_eval", "--per_gpu_train_batch_size", str(experiment.batch)]
    argv += ["--learning_rate", recipe.learning_rate, "--num_train_epochs", str(recipe.epochs), "--save_steps", "0"]
    argv += ["--cache_dir", str(places.output / "cache"), "--resume_from_checkpoint", "auto"]
    argv += [*experiment.teacher_flags, "--output_dir", run_folder(places, name)]
    about = {"kind": "teacher", "method": "teacher", "task": experiment.task, "seed": 42, **of_recipe(recipe)}
    return Cell(name, tuple(argv), {}, data, about)


def floor_cell(experiment: Experiment, guess: str, places: Places) -> Cell:
    """What needs no encoder."""
    name, data = named(experiment, "floor", guess), places.data_of(experiment)
    argv = ["python", "-m", "emmental.study.floors", guess, "--task_name", experiment.task, "--model", places.model]
    argv += ["--data_dir", data] if data else []
    argv += ["--cache_dir", str(places.output / "cache"), "--output_dir", run_folder(places, name)]
    about = {"kind": "floor", "method": guess, "task": experiment.task, "seed": None}
    return Cell(name, tuple(argv), {"PYTHONPATH": str(ROOT)}, data, about)


def pruned_cell(experiment: Experiment, row: Row, seed: int, teacher: str, places: Places) -> Cell:
    """A pruning run by the shell script of its method."""
    method, recipe, data = METHODS[row.method], row.recipe, places.data_of(experiment)
    parts = row.method, f"{row.keep:g}", f"e{recipe.epochs}", f"lr{recipe.learning_rate}", f"s{seed}"
    name, task = named(experiment, *parts), "squad" if experiment.task == "squad" else "glue"
    share = f"{row.keep / 100:g}"
    sparsity = {"FINAL_TH": share} if method.script == "topk" else {"TARGET_SPARSITY": f"{1 - row.keep / 100:g}"}
    environment = {"TASK": experiment.task} if task == "glue" else {}
    environment |= {"MODEL": places.model, "TEACHER_PATH": run_folder(places, teacher)}
    environment |= {"DATA_DIR": data} if data else {}
    environment |= {"EPOCH": str(recipe.epochs), "LR": recipe.learning_rate, "SEED": str(seed), **sparsity}
    if not experiment.published_warmup:  # warm-up and plateaus keep their shares of a run of another length
        steps = -(-train_rows(experiment, places) // experiment.batch) * recipe.epochs
        environment["WARMUP"] = str(max(1, steps // 10))
    environment |= dict(experiment.environment) | dict(method.environment) | {"OUTPUT": run_folder(places, name)}
    flags = ("--do_lower_case", *experiment.flags, *method.flags, "--cache_dir", str(places.output / "cache"))
    flags += ("--resume_from_checkpoint", "auto", "--save_total_limit", "1")
    argv = ("bash", str(ROOT / f"run_{task}_{method.script}_kd.sh"), *flags)
    about = {"kind": "pruned", "method": row.method, "task": experiment.task, "keep": row.keep, "seed": seed}
    return Cell(name, argv, environment, data, about | of_recipe(recipe), teacher)
