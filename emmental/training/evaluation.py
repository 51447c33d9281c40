"""What is reported of a run: log lines on the way, evaluations, and the results at the end."""

from collections.abc import Callable
from pathlib import Path

from emmental.model.masked_model import MaskedModel
from emmental.pruning.counting import count, heat_map
from emmental.pruning.masked_linear import set_threshold
from emmental.training import resume
from emmental.training.logs import Log
from emmental.training.loop import StepResult
from emmental.utils.errors import print_once
from emmental.utils.files import write_json

Evaluate = Callable[[MaskedModel, Path], dict[str, float]]  # a model and the folder for its files -> metrics by name


def scalars(model: MaskedModel, done: StepResult, losses: dict[str, float]) -> dict[str, float]:
    """One log line: the schedule, what remains, the learning rates, the mean of every loss part."""
    line = {"learning_rate/weights": done.learning_rates["weights"], "grad_norm": float(done.grad_norm)}
    if model.config.pruning_method is not None:
        line |= {"threshold": done.threshold, "lambda": done.regu_lambda}
        line["remaining_weights"] = count(model).remaining
        line["learning_rate/mask_scores"] = done.learning_rates["mask_scores"]
    return line | losses


def log_evaluation(log: Log, step: int, model: MaskedModel, results: dict[str, float]) -> None:
    """The results of an evaluation at `step`, and the picture of what remains."""
    if model.config.pruning_method is not None:
        counted = count(model)
        results = results | {"remaining_weights": counted.remaining, "threshold": model.config.threshold}
        log.figure(step, "remaining_weights/by_matrix", lambda: heat_map(counted))
    log.scalars(step, {f"eval/{name}": value for name, value in results.items()})


def evaluate_checkpoints(
    output_dir: Path, files: Path, load: Callable[[Path], MaskedModel], evaluate: Evaluate
) -> dict[str, dict[str, float]]:
    """The results of every complete checkpoint of `output_dir`, by its step; `load` loads the model of a folder.

    What an evaluation writes goes to a folder of the checkpoint's name in `files`.
    """
    folders = list(reversed(list(resume.complete(output_dir))))
    if not folders:
        print_once(f"--eval_all_checkpoints: {output_dir} holds no checkpoints")
    return {str(resume.read_state(folder)["step"]): evaluate(load(folder), files / folder.name) for folder in folders}


def target_report(
    model: MaskedModel, target_sparsity: float | None, final_threshold: float, scores_lr: float
) -> dict[str, float]:
    """What remains at the final threshold, before calibration, if there is a target; warns where that is far from it.

    Leaves the masks of that threshold.
    """
    if not target_sparsity:
        return {}
    set_threshold(model, final_threshold)
    before, asked = count(model).remaining, 100 * (1 - target_sparsity)
    if abs(before - asked) > 2:
        missed = f"{before:.2f} % remaining weights, not {asked:.2f} %"
        too_short = f"the run was too short for --mask_scores_learning_rate {scores_lr:g}"
        remedy = f"take more steps, or a {'higher' if before > asked else 'lower'} rate"
        print_once(f"warning: steering ended at {missed}: {too_short}; {remedy}")
    return {"target_sparsity": target_sparsity, "remaining_weights_before_calibration": before}


def check_calibration(target_sparsity: float, remaining: float) -> None:
    """Warns where calibration did not reach the target."""
    if abs(remaining - (asked := 100 * (1 - target_sparsity))) > 0.1:
        print_once(f"warning: {remaining:.2f} % remaining weights, not {asked:.2f} %: too many scores are the same")


def say_how_masked(name: str, model: MaskedModel) -> None:
    """Says which masks the evaluation of a model goes by: those that it was saved with (D66)."""
    if model.config.pruning_method is not None:
        masks = f"its own masks, {model.config.pruning_method} at threshold {model.config.threshold:g}"
        print_once(f"{name}: evaluated with {masks}; --pruning_method and --final_threshold are for training")


def write_results(results: dict, folder: Path) -> None:
    """Leaves eval_results.txt for people and result.json for programs, and prints the former.

    result.json comes last: where it is, a run is finished.
    """
    folder.mkdir(exist_ok=True)
    lines = [f"{name} = {value:.6g}" for name, value in results.items() if isinstance(value, int | float)]
    lines += [f"step {step}: {values}" for step, values in results.get("checkpoints", {}).items()]
    (folder / "eval_results.txt").write_text("\n".join(lines) + "\n")
    write_json(results, folder / resume.RESULT)
    print("\n".join(lines))
    print(f"results in {folder / resume.RESULT}")
