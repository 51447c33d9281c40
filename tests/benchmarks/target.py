"""Asks soft pruning for exact sparsities, and holds it against topK at the same ones: a program, not a test.

    python -m tests.benchmarks.target --task sst-2 --data_dir glue_data/SST-2 --model DIR --rows 4096 --json target.json

It trains a teacher with masked_run_glue.py, then runs run_glue_soft_kd.sh with TARGET_SPARSITY and run_glue_topk_kd.sh
with FINAL_TH at each target, and the soft script from other lambdas at one. The environment may set the recipe's
variables (EPOCH, LR, ...), as for the scripts alone, and flags that are not its own go to them.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from emmental.study.data import first

ROOT = Path(__file__).resolve().parents[2]
RECIPE = {"BATCH": "32", "EPOCH": "6", "LR": "1e-4", "WARMUP": "75", "EXTRA_EXAMPLES": "1024", "SAVE_STEPS": "0"}
VARIABLES = (*RECIPE, "SEED", "MASK_LR", "CONTRAST", "DISTILL", "FINAL_LAMBDA")


def first_rows(source: Path, folder: Path, task: str, rows: int) -> Path:
    """A copy of a data folder with the first `rows` training examples."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in source.glob("*.tsv"):
        content = first(file, task, rows) if file.name == "train.tsv" else file.read_bytes()
        (folder / file.name).write_bytes(content)
    return folder


def run(folder: Path, command: list[str], **environment: str) -> dict:
    """Runs a script unless its results are there; returns them. Its command and its output go beside `folder`."""
    result, recipe = folder / "result.json", {name: os.environ.get(name, RECIPE.get(name)) for name in VARIABLES}
    made = json.dumps([command, recipe | environment], indent=1)
    kept = Path(f"{folder}.command")
    if result.exists() and not (kept.exists() and kept.read_text() == made):
        sys.exit(f"{folder}: holds the run of another command; give another --output")
    if not result.exists():
        kept.write_text(made)
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        environment = RECIPE | os.environ | environment | {"PATH": path, "OMP_NUM_THREADS": "1"}
        with open(f"{folder}.log", "w") as log:
            done = subprocess.run(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
        if done.returncode:
            sys.exit(f"{shlex.join(command)}: status {done.returncode}, see {folder}.log")
    return json.loads(result.read_text())


def parse(argv: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--task", default="sst-2")
    parser.add_argument("--data_dir", type=Path, required=True, help="the task's TSV files")
    parser.add_argument("--model", type=Path, required=True, help="folder of a BERT")
    parser.add_argument("--teacher", type=Path, help="folder of a teacher; default: trained here")
    parser.add_argument("--rows", type=int, help="train on the first so many examples; default: all")
    parser.add_argument("--targets", type=float, nargs="*", default=[0.5, 0.8, 0.9, 0.95, 0.97])
    parser.add_argument("--lambdas", nargs="*", default=["55", "5500"], help="to start from, beside the script's own")
    parser.add_argument("--at", type=float, default=0.9, help="the target that is reached from --lambdas")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time, each with one thread")
    parser.add_argument("--output", type=Path, default=Path("runs/target"), help="for runs and their logs")
    parser.add_argument("--json", type=Path, help="write all figures to this file too")
    return parser.parse_known_args(argv)


def main(argv: list[str] | None = None) -> None:
    options, more = parse(argv)
    output = options.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    model, data = options.model.resolve(), options.data_dir.resolve()
    if options.rows:
        data = first_rows(data, output / f"data-{options.rows}", options.task, options.rows)
    flags = ["--cache_dir", str(output / "cache"), "--overwrite_output_dir", *more]
    teacher = options.teacher.resolve() if options.teacher else output / "teacher"
    if not options.teacher:
        recipe = RECIPE | os.environ
        settings = f"""--model_type bert --model_name_or_path {model} --task_name {options.task} --data_dir {data}
            --output_dir {teacher} --do_train --do_eval --per_gpu_train_batch_size {recipe["BATCH"]}
            --learning_rate {recipe["LR"]} --num_train_epochs 3 --save_steps 0"""
        print("teacher:", run(teacher, [sys.executable, "masked_run_glue.py", *settings.split(), *flags]), flush=True)
    places = {"TASK": options.task, "DATA_DIR": str(data), "MODEL": str(model), "TEACHER_PATH": str(teacher)}

    def train(script: str, name: str, **numbers: str) -> dict:
        folder = output / name
        return run(folder, ["bash", f"run_glue_{script}_kd.sh", *flags], **places, OUTPUT=str(folder), **numbers)

    def soft(target: float, start: str | None) -> dict:
        numbers = {"FINAL_LAMBDA": start} if start else {}
        found = train("soft", f"soft-{target}" + f"-from-{start}" * bool(start), TARGET_SPARSITY=str(target), **numbers)
        return found | {"asked": 100 * (1 - target), "start": start or "the script's"}

    def top(target: float) -> dict:
        return train("topk", f"topk-{target}", FINAL_TH=f"{1 - target:.6g}")

    starts = [(target, None) for target in options.targets] + [(options.at, start) for start in options.lambdas]
    with ThreadPoolExecutor(options.jobs) as pool:
        softs = [pool.submit(soft, *start) for start in starts]
        tops = {target: pool.submit(top, target) for target in dict.fromkeys(target for target, _ in starts)}
        rows = []
        print("remaining weights, %: asked   before   reached | metric: soft    topK | lambda to start from")
        for (target, _), found in zip(starts, softs, strict=True):
            row, other = found.result(), tops[target].result()
            metric = next(iter(row))
            rows.append(row | {"topk": other})
            before, reached = row["remaining_weights_before_calibration"], row["remaining_weights"]
            shares = f"{row['asked']:26.2f} {before:8.2f} {reached:9.3f}"
            print(f"{shares} | {metric:6} {row[metric]:6.4f}  {other[metric]:6.4f} | {row['start']}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
