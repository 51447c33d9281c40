"""What both scripts do once their data are read: load, fill the banks, train, evaluate, save.

This is the one module below the scripts that knows the flags; it hands every other function the values it needs.
"""

import shutil
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path

import torch
import transformers

from emmental.arguments import CommonArguments
from emmental.contrast.bank import Bank
from emmental.contrast.encoding import encode_epoch, fill_from_teacher, restore_from_teacher
from emmental.data.batches import Plan
from emmental.data.examples import Examples
from emmental.model.loading import build, load, load_teacher
from emmental.model.masked_bert import MaskedBert, MaskedBertConfig, fold
from emmental.model.packing import set_packing
from emmental.pruning.counting import count, heat_map
from emmental.pruning.masked_linear import set_threshold
from emmental.pruning.methods import METHODS
from emmental.pruning.schedule import (
    Steering,
    calibrated_threshold,
    global_cut,
    regularization,
    schedule_threshold,
    score_at,
)
from emmental.training import checkpoint
from emmental.training.console import Stop, bars
from emmental.training.logs import Log, Losses, write_json
from emmental.training.loop import Precision, Progress, Record, build_optimizer, rate_factor, train
from emmental.training.objective import objective
from emmental.utils import distributed
from emmental.utils.errors import InputError
from emmental.utils.files import writing


def prepare(args: CommonArguments) -> Precision:
    """Quiets the libraries, seeds, joins the other processes, and chooses device and precision."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    device = distributed.start(args.no_cuda)
    if args.fp16 and device.type == "cpu":
        raise InputError("--fp16 needs a GPU, and there is none; on a CPU use --bf16 or neither")
    torch.set_float32_matmul_precision("high" if args.tf32 else "highest")
    return Precision(device, torch.float16 if args.fp16 else torch.bfloat16 if args.bf16 else None)


def settle(args: CommonArguments, model: MaskedBert) -> None:
    """Sets the masks that a model in training is evaluated and saved with, those of the final threshold."""
    if model.config.pruning_method is not None and args.do_train:
        threshold = args.final_threshold
        if args.global_topk:
            threshold = global_cut(model, threshold)
        elif args.target_sparsity:
            threshold = calibrated_threshold(model, args.target_sparsity)
        model.config.threshold = threshold
        set_threshold(model, threshold)


def steered_to(args: CommonArguments, model: MaskedBert) -> dict[str, float]:
    """What remains at the final threshold, before calibration, if a target was given; and whether that is near it."""
    if not (args.target_sparsity and args.masked):
        return {}
    set_threshold(model, args.final_threshold)
    before, asked = count(model).remaining, 100 * (1 - args.target_sparsity)
    if abs(before - asked) > 2 and distributed.rank() == 0:
        rate = f"--mask_scores_learning_rate {args.mask_scores_learning_rate:g}"
        missed = f"{before:.2f} % remaining weights, not {asked:.2f} %"
        print(f"warning: steering ended at {missed}: the run was too short for {rate}")
    return {"target_sparsity": args.target_sparsity, "remaining_weights_before_calibration": before}


def comparable(args: CommonArguments, plan: Plan, examples: Examples) -> dict:
    """What a resumed run must have in common with the one it goes on from; of batch and processes, the product."""
    fixed = {item.name: getattr(args, item.name) for item in fields(args) if not item.metadata["free"]}
    config, _ = MaskedBertConfig.get_config_dict(args.config_name or args.model_name_or_path)
    data = [examples.input_ids.tobytes(), *(labels.numpy().tobytes() for labels in examples.labels)]
    digests = {"model_config": zlib.crc32(repr(sorted(config.items())).encode()), "data": zlib.crc32(b"".join(data))}
    return {**fixed, "global_batch_size": plan.batch_size, "examples": len(examples), **digests}


def pruning_schedule(args: CommonArguments, plan: Plan, warmup_steps: int) -> Callable[[int], tuple[float, float]]:
    """Threshold and lambda as a function of the step in the schedule."""
    values = (args.initial_threshold, args.final_threshold, args.initial_warmup, args.final_warmup, args.final_lambda)
    return lambda step: schedule_threshold(step, plan.total_steps, warmup_steps, *values)


def steering(args: CommonArguments, plan: Plan, warmup_steps: int) -> Steering | None:
    """What steers lambda to the target sparsity, where one is given."""
    if not args.target_sparsity:
        return None
    cut = score_at(args.final_threshold, METHODS[args.pruning_method])
    start, end = args.initial_warmup * warmup_steps, plan.total_steps - args.final_warmup * warmup_steps
    return Steering(args.target_sparsity, cut, start, end)


def scalars(args: CommonArguments, model: MaskedBert, record: Record, losses: dict[str, float]) -> dict[str, float]:
    """One log line: the schedule, what remains, the learning rates, the mean of every loss part."""
    line = {"learning_rate/weights": args.learning_rate * record.rate, "grad_norm": float(record.grad_norm)}
    if args.masked:
        line |= {"threshold": record.threshold, "lambda": record.regu_lambda}
        line["remaining_weights"] = count(model).remaining
        line["learning_rate/mask_scores"] = args.mask_scores_learning_rate * record.rate
    return line | losses


def log_evaluation(log: Log, step: int, model: MaskedBert, results: dict[str, float]) -> None:
    """The results of an evaluation at `step`, and the picture of what remains."""
    if model.config.pruning_method is not None:
        counted = count(model)
        results = results | {"remaining_weights": counted.remaining, "threshold": model.config.threshold}
        log.figure(step, "remaining_weights/by_matrix", lambda: heat_map(counted))
    log.scalars(step, {f"eval/{name}": value for name, value in results.items()})


def teach(
    args: CommonArguments,
    session: checkpoint.Session,
    teacher: MaskedBert | None,
    examples: Examples,
    precision: Precision,
    resumed: Path | None,
) -> tuple[torch.Tensor, ...] | None:
    """Fills the teacher's bank, by one pass or from a resumed run's files; returns the logits to be distilled."""
    if not args.needs_teacher:
        return None
    bank = session.banks["finetuned"]
    if resumed:
        logits = restore_from_teacher(bank, checkpoint.read_state(resumed)["banks"]["finetuned"])
    else:
        logits = fill_from_teacher(bank, teacher.to(precision.device), examples, precision, full_length(args))
    return logits if args.use_distill else None


def full_length(args: CommonArguments) -> int | None:
    """The length to which every input is padded, if to any."""
    return args.max_seq_length if args.pad_to_max_length else None


def fit(
    args: CommonArguments,
    session: checkpoint.Session,
    plan: Plan,
    examples: Examples,
    teacher_logits: tuple[torch.Tensor, ...] | None,
    precision: Precision,
    *,
    first_step: int,
    supervised_weight: float,
):
    """The records of a training run, with all that the flags say of it."""
    banks = {name: session.banks[name] for name in args.banks}
    warmup = plan.warmup_steps(args.warmup_steps, args.warmup_epochs)
    return train(
        session.model,
        examples,
        banks,
        teacher_logits,
        session.optimizer,
        plan,
        session.progress,
        schedule=pruning_schedule(args, plan, warmup) if args.masked else None,
        rate=partial(rate_factor, warmup_steps=warmup, total_steps=plan.total_steps),
        encode=partial(
            encode_epoch,
            banks=banks,
            model=session.model,
            examples=examples,
            precision=precision,
            length=full_length(args),
            snapshot_mode=args.snapshot_mode,
        ),
        objective=partial(
            objective,
            ce_weight=args.ce_loss_weight if args.masked else 1.0,
            distill_weight=args.distill_loss_weight,
            distill_temperature=args.temperature,
            temperature=args.contrastive_temperature,
            unsupervised_weight=args.cl_unsupervised_loss_weight,
            supervised_weight=supervised_weight,
            normalization=args.cl_normalization,
        ),
        penalty=partial(regularization, mode=args.regularization) if args.regularization != "null" else None,
        global_topk_every=args.global_topk_frequency_compute if args.global_topk else None,
        steering=steering(args, plan, warmup) if args.masked else None,
        first_step=first_step,
        extra_examples=args.extra_examples,
        supervised=bool(supervised_weight),
        epsilon=args.adam_epsilon,
        max_grad_norm=args.max_grad_norm,
        precision=precision,
        length=full_length(args),
    )


def observe(
    args: CommonArguments, session: checkpoint.Session, record: Record, evaluate, log: Log, ended: bool
) -> dict[str, float]:
    """Logs where the run stands, and evaluates if asked to; returns what it logged."""
    line = scalars(args, session.model, record, session.losses.means(record.step))
    log.scalars(record.step, line)
    if args.evaluate_during_training and not ended:
        settle(args, session.model)
        log_evaluation(log, record.step, session.model, evaluate(session.model, Path(args.output_dir)))
    return line


def follow(
    args: CommonArguments, records, session: checkpoint.Session, plan: Plan, tokenizer, evaluate, log: Log
) -> None:
    """Drives a training run to its end: logs, evaluates and saves on the way, and stops when asked to."""
    output_dir, losses = Path(args.output_dir), session.losses
    with Stop() as stop, bars(plan, session.progress.step) as advance:
        for record in records:
            losses.add(record.parts)
            if len(losses.fresh) >= 100:
                losses.read(record.step)  # so that what is no number any more is seen, however rarely one logs
            ended = record.step == plan.total_steps
            due = ended or (args.logging_steps and record.step % args.logging_steps == 0)
            line = observe(args, session, record, evaluate, log, ended) if due else {}
            shown = {"loss": "loss/total", "remaining": "remaining_weights"}
            advance(record.step, {name: f"{line[key]:.4g}" for name, key in shown.items() if key in line})
            stopped = distributed.agreed(stop.received)
            saving = stopped or (args.save_steps and record.step % args.save_steps == 0)
            if saving or ended:
                checkpoint.check_finite(session)
            if saving:
                settle(args, session.model)
                session.progress.logged = log.logged
                checkpoint.save(output_dir / f"checkpoint-{record.step}", session, tokenizer)
                checkpoint.prune(output_dir, args.save_total_limit, record.step)
            if stopped:
                stop.leave(stopped, output_dir / f"checkpoint-{record.step}")


def fit_and_save(
    args: CommonArguments,
    model: MaskedBert,
    tokenizer,
    plan: Plan,
    examples: Examples,
    evaluate: Callable[[MaskedBert, Path], dict[str, float]],
    precision: Precision,
    resumed: Path | None,
    **shape,
) -> dict[str, float]:
    """Trains `model` and saves it; returns what the training itself has to report."""
    output_dir, main = Path(args.output_dir), distributed.rank() == 0
    teacher = load_teacher(args, type(model)) if args.needs_teacher and not resumed else None
    torch.manual_seed(args.seed + distributed.rank())  # every process has its own dropout
    if main:
        checkpoint.clear(output_dir, resumed is not None)
        write_json(asdict(args), output_dir / "arguments.json")
    session = open_session(args, model, plan, examples, precision)
    teacher_logits = teach(args, session, teacher, examples, precision, resumed)
    del teacher  # its bank and its logits are all that training needs
    if resumed:
        checkpoint.restore(resumed, session)
    records = fit(args, session, plan, examples, teacher_logits, precision, **shape)
    log = Log(output_dir if main else None, session.progress.step, session.progress.logged)
    follow(args, records, session, plan, tokenizer, evaluate, log)
    results = steered_to(args, model)
    settle(args, model)
    if main:
        with writing(output_dir):
            (model if args.masked else fold(model)).save_pretrained(output_dir)
            tokenizer.save_pretrained(output_dir)
        if not any(output_dir.glob("checkpoint-*")):
            shutil.rmtree(output_dir / "banks", ignore_errors=True)  # nothing is left that could go on from them
    if args.do_eval:
        results = evaluate(model, output_dir) | results
        log_evaluation(log, session.progress.step, model, results)
    log.close()
    return results


def run(
    args: CommonArguments,
    model_class: type[MaskedBert],
    labels: tuple[str, ...] | None,
    tokenizer,
    plan: Plan | None,
    examples: Examples | None,
    evaluate: Callable[[MaskedBert, Path], dict[str, float]],
    precision: Precision,
    *,
    first_step: int,
    supervised_weight: float,
) -> None:
    """Trains (with a `plan` and its `examples`) and evaluates, as the flags say, and leaves the results.

    `labels` are the task's label names, () for a regression, None for a span; `evaluate` takes a model and the folder
    for its files; `first_step` is the number of the first step in the threshold's schedule.
    """
    started, output_dir, resumed = time.time(), Path(args.output_dir), None
    if args.do_train and args.resume_from_checkpoint:
        resumed = checkpoint.find(args.resume_from_checkpoint, output_dir)
        if resumed:
            checkpoint.check_arguments(resumed, comparable(args, plan, examples))
    torch.manual_seed(args.seed)
    model = build(args, model_class, labels).to(precision.device)
    set_packing(model, not args.pad_to_max_length)
    if args.do_train:
        shape = {"first_step": first_step, "supervised_weight": supervised_weight}
        results = fit_and_save(args, model, tokenizer, plan, examples, evaluate, precision, resumed, **shape)
    else:
        results = evaluate(model, output_dir)
    if model.config.pruning_method is not None:
        counted = count(model)
        results |= {"remaining_weights": counted.remaining, "remaining_weights_released": counted.remaining_released}
    if args.eval_all_checkpoints and args.do_eval:
        results["checkpoints"] = evaluate_checkpoints(args, model_class, precision, evaluate)
    if distributed.rank() == 0:
        report({**results, "seconds": time.time() - started}, output_dir)


def evaluate_checkpoints(args, model_class, precision: Precision, evaluate) -> dict[str, dict[str, float]]:
    """The results of every complete checkpoint of output_dir, by its step."""
    results = {}
    for folder in reversed(list(checkpoint.complete(Path(args.output_dir)))):
        saved = {} if args.masked else {"pruning_method": None}
        model = load(model_class, str(folder), **saved).to(precision.device)
        set_packing(model, not args.pad_to_max_length)
        results[str(checkpoint.read_state(folder)["step"])] = evaluate(model, folder)
    return results


def report(results: dict, output_dir: Path) -> None:
    """Leaves result.json for programs and eval_results.txt for people, and prints the latter."""
    write_json(results, output_dir / "result.json")
    lines = [f"{name} = {value:.6g}" for name, value in results.items() if isinstance(value, int | float)]
    lines += [f"step {step}: {values}" for step, values in results.get("checkpoints", {}).items()]
    (output_dir / "eval_results.txt").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    print(f"results in {output_dir / 'result.json'}")


def open_session(
    args: CommonArguments, model: MaskedBert, plan: Plan, examples: Examples, precision: Precision
) -> checkpoint.Session:
    """A run's state at its start."""
    names = [*args.banks] + (["finetuned"] if args.needs_teacher and "finetuned" not in args.banks else [])
    folder, dtype = Path(args.output_dir) / "banks", getattr(torch, args.bank_dtype)
    banks = {name: Bank(folder, precision.device, dtype) for name in names}
    optimizer = build_optimizer(model, args.learning_rate, args.mask_scores_learning_rate, args.weight_decay)
    arguments = comparable(args, plan, examples)
    device, scaler = precision.device, precision.scaler
    return checkpoint.Session(model, optimizer, Progress(), Losses(), banks, arguments, device, scaler)
