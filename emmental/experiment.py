"""What both scripts do once their data are read: load, fill the banks, train, evaluate, save.

This is the one module below the scripts that knows the flags; it hands every other function the values it needs.
"""

import shutil
import signal
import sys
import time
import zlib
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path

import datasets
import torch
import transformers
from tqdm import tqdm

from emmental import checkpoint, processes
from emmental.arguments import CommonArguments
from emmental.bank import Bank
from emmental.counting import count, heat_map
from emmental.encoding import encode_epoch, fill_from_teacher, restore_from_teacher
from emmental.errors import InputError
from emmental.examples import Examples
from emmental.files import writing
from emmental.logs import Log, Losses, write_json
from emmental.masked_bert import MaskedBert, MaskedBertConfig, fold
from emmental.masked_linear import set_threshold
from emmental.methods import METHODS
from emmental.objective import objective
from emmental.packing import set_packing
from emmental.plan import Plan
from emmental.sparsity import (
    Steering,
    calibrated_threshold,
    global_cut,
    regularization,
    schedule_threshold,
    score_at,
)
from emmental.training import Precision, Progress, Record, build_optimizer, rate_factor, train


def prepare(args: CommonArguments) -> Precision:
    """Quiets the libraries, seeds, joins the other processes, and chooses device and precision."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    device = processes.start(args.no_cuda)
    if args.fp16 and device.type == "cpu":
        raise InputError("--fp16 needs a GPU, and there is none; on a CPU use --bf16 or neither")
    torch.set_float32_matmul_precision("high" if args.tf32 else "highest")
    return Precision(device, torch.float16 if args.fp16 else torch.bfloat16 if args.bf16 else None)


def load(
    model_class: type[MaskedBert], name: str, config_name: str = "", *, trained: bool = True, **settings
) -> MaskedBert:
    """A model by transformers' `from_pretrained`, with `settings` in place of its config's.

    InputError where it cannot be loaded, or weights are missing; of one that is not `trained` yet scores, pooler and
    head may be.
    """
    try:
        config = MaskedBertConfig.from_pretrained(config_name or name, **settings)
        model, told = model_class.from_pretrained(name, config=config, dtype=torch.float32, output_loading_info=True)
    except Exception as error:  # transformers, safetensors and torch's unpickler share no base class
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise InputError(f"{name}: the model cannot be loaded ({reason})") from error
    new = ("bert.pooler.", "classifier.", "qa_outputs.")
    missing = [x for x in told["missing_keys"] if trained or not (x.endswith("mask_scores") or x.startswith(new))]
    if missing:
        of = model_class.__name__
        raise InputError(f"{name}: {len(missing)} weights of a {of} are missing, the first {min(missing)}")
    return model


def load_tokenizer(args: CommonArguments):
    """The model's fast tokenizer; --do_lower_case lower-cases whatever its files say."""
    settings = {"do_lower_case": True} if args.do_lower_case else {}
    name = args.tokenizer_name or args.model_name_or_path
    try:
        return transformers.AutoTokenizer.from_pretrained(name, cache_dir=args.cache_dir or None, **settings)
    except Exception as error:  # as above, and the tokenizers' own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise InputError(f"{name}: the tokenizer cannot be loaded ({reason})") from error


def cache_folder(args: CommonArguments) -> Path:
    """Where tokenised sets are kept."""
    return Path(args.cache_dir or datasets.config.HF_DATASETS_CACHE) / "emmental"


def build(args: CommonArguments, model_class: type[MaskedBert], labels: tuple[str, ...] | None) -> MaskedBert:
    """The model that the flags describe: masked or dense to be trained, or one to be evaluated as it was saved.

    `labels` are the task's label names, () for a regression, None for a span.
    """
    settings: dict = {"alignrep": args.alignrep}
    if labels:
        settings |= {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}
    else:
        settings["num_labels"] = 2 if labels is None else 1  # a span's start and end, a regression's value
    if args.do_train and args.masked:
        masks = {name: getattr(args, name) for name in ("pruning_method", "mask_init", "mask_scale")}
        settings |= {**masks, "threshold": None}
        return load(model_class, args.model_name_or_path, args.config_name, trained=False, **settings)
    saved, _ = MaskedBertConfig.get_config_dict(args.config_name or args.model_name_or_path)
    if args.do_train or saved["model_type"] != "masked_bert":
        settings["pruning_method"] = None
    return load(model_class, args.model_name_or_path, args.config_name, trained=not args.do_train, **settings)


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
    if abs(before - asked) > 2 and processes.rank() == 0:
        print(f"warning: steering ended at {before:.2f} % remaining weights, not {asked:.2f} %: the run was too short")
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
    log.scalars(step, {f"eval/{name}": value for name, value in results.items()})
    if model.config.pruning_method is not None:
        log.figure(step, "remaining_weights/by_matrix", lambda: heat_map(count(model)))


@contextmanager
def bars(plan: Plan, done: int):
    """Progress bars of epochs and steps; yields what a finished step is told to, and what stands beside the bar."""
    quiet = processes.rank() > 0
    per_epoch, epochs = plan.steps_per_epoch, -(-plan.total_steps // plan.steps_per_epoch)
    with (
        tqdm(total=epochs, initial=done // per_epoch, desc="epochs", unit="epoch", disable=quiet) as outer,
        tqdm(total=plan.total_steps, initial=done, desc="steps", unit="step", disable=quiet) as inner,
    ):

        def advance(step: int, beside: dict[str, str]) -> None:
            inner.update()
            if beside:
                inner.set_postfix(beside)
            if step % per_epoch == 0 or step == plan.total_steps:
                outer.update()

        yield advance


class Stop:
    """While entered, remembers SIGTERM or SIGINT until the step is done; `received` is the signal's number, or 0."""

    def __init__(self):
        self.received = 0

    def __enter__(self):
        numbers = (signal.SIGTERM, signal.SIGINT)
        self.before = {number: signal.signal(number, self._receive) for number in numbers}
        return self

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _) -> None:
        self.received = number

    def leave(self, number: int, folder: Path) -> None:
        if processes.rank() == 0:
            print(f"stopped by {signal.Signals(number).name}; go on with --resume_from_checkpoint {folder}")
        sys.exit(128 + number)


def load_teacher(args: CommonArguments, model_class: type[MaskedBert]) -> MaskedBert:
    own = {} if args.teacher_type == "masked_bert" else {"pruning_method": None}
    teacher = load(model_class, args.teacher_name_or_path, alignrep=args.alignrep, **own)
    set_packing(teacher, not args.pad_to_max_length)
    return teacher


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


def follow(
    args: CommonArguments, records, session: checkpoint.Session, plan: Plan, tokenizer, evaluate, log: Log
) -> None:
    """Drives a training run to its end: logs, evaluates and saves on the way, and stops when asked to."""
    output_dir, losses = Path(args.output_dir), session.losses
    with Stop() as stop, bars(plan, session.progress.step) as advance:
        for record in records:
            losses.add(record.parts)
            ended, line = record.step == plan.total_steps, {}
            if ended or (args.logging_steps and record.step % args.logging_steps == 0):
                line = scalars(args, session.model, record, losses.means(record.step))
                log.scalars(record.step, line)
                if args.evaluate_during_training and not ended:
                    settle(args, session.model)
                    log_evaluation(log, record.step, session.model, evaluate(session.model, output_dir))
            shown = {"loss": "loss/total", "remaining": "remaining_weights"}
            advance(record.step, {name: f"{line[key]:.4g}" for name, key in shown.items() if key in line})
            stopped = processes.agreed(stop.received, session.device)
            if stopped or (args.save_steps and record.step % args.save_steps == 0):
                settle(args, session.model)
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
    output_dir, main = Path(args.output_dir), processes.rank() == 0
    teacher = load_teacher(args, type(model)) if args.needs_teacher and not resumed else None
    torch.manual_seed(args.seed + processes.rank())  # every process has its own dropout
    if main:
        checkpoint.clear(output_dir, resumed is not None)
        write_json(asdict(args), output_dir / "arguments.json")
    session = open_session(args, model, plan, examples, precision)
    teacher_logits = teach(args, session, teacher, examples, precision, resumed)
    del teacher  # its bank and its logits are all that training needs
    if resumed:
        checkpoint.restore(resumed, session)
    records = fit(args, session, plan, examples, teacher_logits, precision, **shape)
    log = Log(output_dir if main else None, session.progress.step)
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
    output_dir.mkdir(parents=True, exist_ok=True)
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
    if processes.rank() == 0:
        report({**results, "seconds": time.time() - started}, output_dir)


def evaluate_checkpoints(args, model_class, precision: Precision, evaluate) -> dict[str, dict[str, float]]:
    """The results of every complete checkpoint of output_dir, by its step."""
    results = {}
    for folder in reversed(checkpoint.complete(Path(args.output_dir))):
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
