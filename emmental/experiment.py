"""What both scripts do once their data are read: load, fill the banks, train, evaluate, save; `run` comes first.

What the flags describe is made in build.py.
"""

import shutil
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
import transformers

from emmental.arguments import CommonArguments
from emmental.build import (
    Task,
    build_objective,
    initial_state,
    load_saved,
    load_student,
    load_teacher,
    resume_fingerprint,
)
from emmental.contrast.encoding import fill_from_teacher, restore_from_teacher
from emmental.data.batches import Plan
from emmental.data.examples import Examples
from emmental.export.fold import fold
from emmental.export.model_card import write_card
from emmental.model.masked_model import MaskedModel
from emmental.pruning.counting import count
from emmental.training import checkpoint, evaluation
from emmental.training.console import Stop, bars
from emmental.training.evaluation import Evaluate
from emmental.training.logs import Log
from emmental.training.loop import StepResult, train
from emmental.training.memory import disk_lines, plan_memory
from emmental.training.objective import Classifications
from emmental.training.resume import (
    ARGUMENTS,
    RESULT,
    Start,
    check_arguments,
    evaluation_folder,
    find_start,
    read_state,
)
from emmental.utils import distributed
from emmental.utils.errors import InputError, print_once
from emmental.utils.files import open_to_others, write_errors, write_json
from emmental.utils.flags import defaults_of
from emmental.utils.lock import lock_folder
from emmental.utils.precision import Precision


def run(args: CommonArguments, task: Task, tokenizer, precision: Precision) -> None:
    """Trains and evaluates, as the flags say, and leaves the results in output_dir."""
    started, output_dir = time.time(), Path(args.output_dir)
    folder = output_dir if args.do_train else evaluation_folder(output_dir)
    if args.do_train:
        model, results = train_and_save(args, task, tokenizer, precision)
    else:
        model = load_student(args, task, precision)
        evaluation.say_how_masked(args.config_name or args.model_name_or_path, model)
        results = task.evaluate(model, folder)
    if model.config.pruning_method is not None:
        counted = count(model)
        if args.do_train and args.target_sparsity:
            evaluation.check_calibration(args.target_sparsity, counted.remaining)
        results |= {"remaining_weights": counted.remaining, "remaining_weights_released": counted.remaining_released}
    if args.eval_all_checkpoints and args.do_eval:
        results["checkpoints"] = evaluation.evaluate_checkpoints(
            output_dir, folder, lambda name: load_saved(args, task, str(name), precision), task.evaluate
        )
    if distributed.rank() == 0:
        if args.do_train:
            write_card(output_dir, sys.argv, asdict(args) | {"banks": args.banks}, results, task.rows)
        evaluation.write_results({**results, "seconds": time.time() - started}, folder)


def prepare(args: CommonArguments) -> Precision:
    """Quiets the libraries, joins the other processes, locks output_dir, and chooses device and precision."""
    # A pruned weight has no gradient: its first moment ends at a few 1e-45, on which a CPU's Adam is ten times as slow
    # (D71). This holds for the thread and those that it starts, so it comes before any tensor is computed.
    torch.set_flush_denormal(True)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    device = distributed.start(args.no_cuda)
    distributed.from_main(lambda: lock_folder(Path(args.output_dir)))
    print_once(distributed.describe(device))
    if args.fp16 and device.type == "cpu":
        raise InputError("--fp16 needs a GPU, and there is none; on a CPU use --bf16 or neither")
    # in half precision torch 2.11 prefers cuDNN's attention on some GPUs, by its sources made anew for every shape of a
    # batch (not measured)
    torch.backends.cuda.enable_cudnn_sdp(False)
    torch.set_float32_matmul_precision("high" if args.tf32 else "highest")
    return Precision(device, torch.float16 if args.fp16 else torch.bfloat16 if args.bf16 else None)


def train_and_save(
    args: CommonArguments, task: Task, tokenizer, precision: Precision
) -> tuple[MaskedModel, dict[str, float]]:
    """Trains the student and saves it; returns it, and what training and the evaluation after it have to report."""
    output_dir, main = Path(args.output_dir), distributed.rank() == 0
    plan = args.plan(len(task.examples))
    fingerprint = resume_fingerprint(args, task.examples)
    start = decide_start(args, fingerprint)
    resumed = start.checkpoint
    model = load_student(args, task, precision)
    memory = plan_memory(model, task.examples, plan, args.banks, getattr(torch, args.bank_dtype), precision.device)
    banks, checkpoints = memory.columns * memory.column_bytes, (args.save_steps, args.save_total_limit)
    disk = [] if resumed else disk_lines(output_dir, model, plan.total_steps, banks, *checkpoints)
    print_once("\n".join(memory.lines() + disk))
    teacher = load_teacher(args, task, precision) if args.needs_teacher and not resumed else None
    torch.manual_seed(args.seed + distributed.rank())  # every process has its own dropout
    distributed.wait()  # every process has read its models, which may be in output_dir
    if main:
        models = {Path(name).resolve() for name in (args.model_name_or_path, args.teacher_name_or_path) if name}
        checkpoint.clear(output_dir, resumed is not None, keep_model=output_dir.resolve() in models)
        write_json(args.record, output_dir / ARGUMENTS)
    state = initial_state(args, task, model, plan, fingerprint, precision, memory.on_device)
    teacher_logits = fill_teacher_bank(args, state, teacher, task.examples, precision, resumed)
    del teacher  # its bank and its logits are all that training needs
    state.passed_over = set(start.passed_over)
    if resumed:
        checkpoint.restore(resumed, state)
        print_once(f"{resumed}: training goes on from step {state.progress.step:,} of {plan.total_steps:,}")
    log = Log(output_dir if main else None, state.progress.step, state.progress.logged)
    steps = train(
        model,
        task.examples,
        {name: state.banks[name] for name in args.banks},
        teacher_logits if args.use_distill else None,
        plan,
        state.masks,
        build_objective(args, task),
        state.optimizer,
        state.progress,
        precision,
    )
    log_and_save_steps(args, steps, state, plan, tokenizer, task.evaluate, log)
    target, scores_lr = args.target_sparsity, args.mask_scores_learning_rate
    results = evaluation.target_report(model, target, args.final_threshold, scores_lr)
    if state.masks:
        state.masks.set_final_masks(model)
    if main:
        (output_dir / RESULT).unlink(missing_ok=True)  # of a run that went back: until the end this one is not finished
        save_model(model, tokenizer, output_dir)
        if not any(output_dir.glob("checkpoint-*")):
            shutil.rmtree(output_dir / "banks", ignore_errors=True)  # nothing is left that could go on from them
    if args.do_eval:
        results = task.evaluate(model, output_dir) | results
        evaluation.log_evaluation(log, state.progress.step, model, results)
    log.close()
    return model, results


def decide_start(args: CommonArguments, fingerprint: dict) -> Start:
    """From where the run starts, as process 0 finds it."""
    which, folder, overwrite = args.resume_from_checkpoint, Path(args.output_dir), args.overwrite_output_dir
    defaults = defaults_of(args)
    start = distributed.from_main(lambda: find_start(which, folder, args.record, defaults, overwrite))
    if start.checkpoint:
        if not start.checkpoint.is_dir():
            lacks = f"process {distributed.rank()} does not find {start.checkpoint.name}, from which process 0 goes on"
            raise InputError(f"--output_dir {args.output_dir}: {lacks}; all nodes have to share the folder")
        check_arguments(start.checkpoint, fingerprint, defaults)
    return start


def save_model(model: MaskedModel, tokenizer, folder: Path) -> None:
    """Saves a masked model as it is and a dense one as a plain model, with the tokenizer."""
    with write_errors(folder):
        (model if model.config.pruning_method else fold(model)).save_pretrained(folder)
        open_to_others(*folder.glob("*.safetensors"))
        tokenizer.save_pretrained(folder)


def save_checkpoint(args: CommonArguments, state: checkpoint.TrainingState, tokenizer, log: Log) -> None:
    """Saves a checkpoint with the final masks, and removes what `--save_total_limit` leaves no room for."""
    if state.masks:
        state.masks.set_final_masks(state.model)
    state.progress.logged = log.logged
    folder = Path(args.output_dir) / checkpoint.name_of(state.progress.step)
    checkpoint.save(folder, state, partial(save_model, state.model, tokenizer))
    checkpoint.remove_old(folder.parent, args.save_total_limit, state)
    distributed.wait()  # else a stopped run's other processes end while this one removes


def log_and_save_steps(
    args: CommonArguments,
    steps: Iterable[StepResult],
    state: checkpoint.TrainingState,
    plan: Plan,
    tokenizer,
    evaluate: Evaluate,
    log: Log,
) -> None:
    """Drives a training run to its end: logs, evaluates and saves on the way, and stops when asked to."""
    output_dir, losses = Path(args.output_dir), state.losses
    with Stop() as stop, bars(plan, state.progress.step) as advance:
        for done in steps:
            losses.add(done.parts)
            if len(losses.fresh) >= 100:
                losses.read(done.step)  # so that NaN and infinity are noticed, however rarely one logs
            ended = done.step == plan.total_steps
            due = ended or (args.logging_steps and done.step % args.logging_steps == 0)
            line = log_and_evaluate(args, state, done, evaluate, log, ended) if due else {}
            shown = {"loss": "loss/total", "remaining": "remaining_weights"}
            advance(done.step, {name: f"{line[key]:.4g}" for name, key in shown.items() if key in line})
            stopped = distributed.all_max(stop.received)
            saving = stopped or (args.save_steps and done.step % args.save_steps == 0)
            if saving or ended:
                checkpoint.check_finite(state)
            if saving:
                save_checkpoint(args, state, tokenizer, log)
            if stopped:
                stop.leave(stopped, output_dir / checkpoint.name_of(done.step))


def log_and_evaluate(
    args: CommonArguments, state: checkpoint.TrainingState, done: StepResult, evaluate: Evaluate, log: Log, ended: bool
) -> dict[str, float]:
    """Logs the step, and evaluates if asked to; returns what it logged."""
    line = evaluation.scalars(state.model, done, state.losses.means(done.step))
    log.scalars(done.step, line)
    if args.evaluate_during_training and not ended:
        if state.masks and args.evaluate_at == "running":
            state.masks.set_masks_at(state.model, done.threshold)
        elif state.masks:
            state.masks.set_final_masks(state.model)
        evaluation.log_evaluation(log, done.step, state.model, evaluate(state.model, Path(args.output_dir)))
    return line


def fill_teacher_bank(
    args: CommonArguments,
    state: checkpoint.TrainingState,
    teacher: MaskedModel | None,
    examples: Examples,
    precision: Precision,
    resumed: Path | None,
) -> Classifications | None:
    """Fills the FiC bank, by one pass of the teacher or from a resumed run's files; returns the teacher's logits."""
    if not args.needs_teacher:
        return None
    bank = state.banks["finetuned"]
    if resumed:
        return restore_from_teacher(bank, read_state(resumed)["banks"]["finetuned"])
    return fill_from_teacher(bank, teacher, examples, precision, contrasted="finetuned" in args.banks)
