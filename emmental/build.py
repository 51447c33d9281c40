"""What a run is made of, as the flags describe it: models, the three objects of a step, and the banks.

With experiment.py and the checks of model/suitability.py this is all below the scripts that knows the flags; both hand
every other function the values it needs.
"""

import zlib
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

from emmental.arguments import CommonArguments
from emmental.contrast.bank import Bank, DeviceRoom
from emmental.data.batches import Plan
from emmental.data.examples import Examples
from emmental.export.sparse_bert import EvaluatedSparse, load_sparse
from emmental.model import loading
from emmental.model.families import is_masked
from emmental.model.heads import head_of
from emmental.model.masked_model import MaskedModel
from emmental.model.packing import set_packing
from emmental.model.validation import is_packed
from emmental.pruning.masked_linear import masked_linears
from emmental.pruning.methods import METHODS
from emmental.pruning.schedule import MaskSchedule, moving_steps
from emmental.pruning.target_sparsity import LambdaController, score_at
from emmental.training import checkpoint
from emmental.training.evaluation import Evaluate
from emmental.training.logs import Losses
from emmental.training.loop import Progress
from emmental.training.objective import Objective
from emmental.training.optimizer import MAX_SKIPPED, Optimizer
from emmental.utils.errors import InputError, print_once
from emmental.utils.files import digest
from emmental.utils.precision import Precision


@dataclass(frozen=True)
class Task:
    """What one script knows and the other does not.

    `labels` are the label names in the order of their ids, () for a regression, None for a span; `examples` the
    training set, None where a model is only evaluated; `rows` how many rows or questions were read, by set;
    `first_step` the number that the threshold's schedule gives the first step.
    """

    labels: tuple[str, ...] | None
    examples: Examples | None
    evaluate: Evaluate
    rows: dict[str, int]
    first_step: int = 0


def load_student(args: CommonArguments, task: Task, precision: Precision) -> MaskedModel | EvaluatedSparse:
    """The model that the flags describe: masked or dense to be trained, or one to be evaluated as it was saved.

    InputError where that cannot be loaded, or is packed and not to run on a CPU.
    """
    if is_packed(args.model_name_or_path):
        if precision.device.type != "cpu":
            raise InputError(f"--model_name_or_path {args.model_name_or_path}: packed, which runs on a CPU: --no_cuda")
        return EvaluatedSparse(load_sparse(args.model_name_or_path))
    torch.manual_seed(args.seed)
    settings: dict = {"alignrep": args.alignrep, "config_name": args.config_name, "trained": not args.do_train}
    if task.labels:
        names = dict(enumerate(task.labels))
        settings |= {"id2label": names, "label2id": {name: i for i, name in names.items()}}
    else:
        settings["num_labels"] = 2 if task.labels is None else 1  # a span's start and end, a regression's value
    if args.do_train and args.masked:
        masks = {name: getattr(args, name) for name in ("pruning_method", "mask_init", "mask_scale")}
        settings |= {**masks, "threshold": None}
    elif args.do_train:
        settings["pruning_method"] = None
    else:
        settings |= as_saved(args.config_name or args.model_name_or_path)
    return load(args, task, args.model_name_or_path, precision, **settings)


def load_teacher(args: CommonArguments, task: Task, precision: Precision) -> MaskedModel:
    return load_saved(args, task, args.teacher_name_or_path, precision, alignrep=args.alignrep)


def load_saved(args: CommonArguments, task: Task, name: str, precision: Precision, **settings) -> MaskedModel:
    """A model as its folder's config has it, masked or dense."""
    return load(args, task, name, precision, **as_saved(name), **settings)


def as_saved(name: str) -> dict:
    """What to load a model with so that it is masked, or dense, as its config says."""
    return {} if is_masked(saved_config(name)["model_type"]) else {"pruning_method": None}


def load(args: CommonArguments, task: Task, name: str, precision: Precision, **settings) -> MaskedModel:
    """Any model of a run: `settings` are loading.load's."""
    model = loading.load(head_of(task.labels), name, **settings).to(precision.device)
    set_packing(model, not args.pad_to_max_length)
    return model


def saved_config(name: str) -> dict:
    return transformers.PretrainedConfig.get_config_dict(name)[0]


def initial_state(
    args: CommonArguments,
    task: Task,
    model: MaskedModel,
    plan: Plan,
    fingerprint: dict,
    precision: Precision,
    columns_on_device: int,
) -> checkpoint.TrainingState:
    """A run's state at its start: the three objects of a step, and the empty banks.

    `columns_on_device`: how many columns of those that are contrasted with go on the device.
    """
    warmup_steps = plan.warmup_steps(args.warmup_steps, args.warmup_epochs)
    optimizer = Optimizer(
        model,
        learning_rate=args.learning_rate,
        mask_scores_learning_rate=args.mask_scores_learning_rate,
        weight_decay=args.weight_decay,
        epsilon=args.adam_epsilon,
        max_grad_norm=args.max_grad_norm,
        warmup_steps=warmup_steps,
        total_steps=plan.total_steps,
        scale_loss=precision.dtype == torch.float16,
    )
    masks = build_mask_schedule(args, task, plan, warmup_steps, optimizer) if args.masked else None
    if masks and METHODS[args.pruning_method].compared and not args.global_topk:
        warn_of_short_way(args, model, sum(map(masks.scores_lr, range(plan.total_steps))))
    rows = plan.examples
    if args.banks and args.extra_examples > rows:
        print_once(f"--extra_examples {args.extra_examples}: the training set has {rows}, all of which are used")
    # a teacher that is only distilled has a bank without columns, which names its logits' file for checkpoints
    names = [*args.banks] + (["finetuned"] if args.needs_teacher and "finetuned" not in args.banks else [])
    folder, dtype = Path(args.output_dir) / "banks", getattr(torch, args.bank_dtype)
    room = DeviceRoom(columns_on_device)
    # as released: snapshots are encoded with dropout on, the pre-trained model and the teacher with dropout off (D8)
    dropout = {"snapshots": args.snapshot_mode == "train"}
    banks = {
        name: Bank(folder, precision.device, dtype, dropout.get(name, False), room if name in args.banks else None)
        for name in names
    }
    losses = Losses(MAX_SKIPPED if precision.dtype == torch.float16 else 0)
    return checkpoint.TrainingState(model, optimizer, masks, Progress(), losses, banks, fingerprint, precision.device)


def build_mask_schedule(
    args: CommonArguments, task: Task, plan: Plan, warmup_steps: int, optimizer: Optimizer
) -> MaskSchedule:
    start, end = moving_steps(plan.total_steps, warmup_steps, args.initial_warmup, args.final_warmup)
    moves = args.initial_threshold != args.final_threshold and not METHODS[args.pruning_method].smooth
    if moves:
        way = f"from {args.initial_threshold:g} to {args.final_threshold:g} between steps {start:,} and {end:,}"
        print_once(f"threshold: {way} of {plan.total_steps:,}")
        if end - start < plan.total_steps / 4:
            few = f"warning: the threshold moves in only {end - start:,} of {plan.total_steps:,} steps; the others are"
            print_once(f"{few} plateaus, --initial_warmup + --final_warmup times {warmup_steps:,} steps of warm-up")
    controller = None
    if args.target_sparsity:
        controller = LambdaController(
            args.target_sparsity,
            score_at(args.final_threshold, METHODS[args.pruning_method]),
            start=start,
            end=end,
        )
    return MaskSchedule(
        total_steps=plan.total_steps,
        warmup_steps=warmup_steps,
        initial_threshold=args.initial_threshold,
        final_threshold=args.final_threshold,
        initial_warmup=args.initial_warmup,
        final_warmup=args.final_warmup,
        final_lambda=args.final_lambda,
        first_step=task.first_step,
        global_cut_every=args.global_topk_frequency_compute if args.global_topk else None,
        controller=controller,
        scores_lr=lambda step: optimizer.learning_rates(step)["mask_scores"],
    )


def warn_of_short_way(args: CommonArguments, model: MaskedModel, way: float) -> None:
    """Warns where no score can fall to the final threshold, so that nothing would be pruned.

    `way` is about how far Adam can move a score: the sum of the scores' learning rates over the run.
    """
    method = METHODS[args.pruning_method]
    if method.sigmoid and not 0 < args.final_threshold < 1:
        return
    lowest = torch.stack([linear.mask_scores.min() for linear in masked_linears(model).values()]).min().item()
    needed = lowest - score_at(args.final_threshold, method)
    if needed > way:
        far = f"scores have to fall by {needed:.3g} to --final_threshold {args.final_threshold:g}, and this run moves "
        far += f"them by about {way:.2g}, the sum of --mask_scores_learning_rate over its steps"
        before = " before calibration" if args.target_sparsity else ""
        print_once(f"warning: nothing would be pruned{before}: {far}; raise it, or take more steps")


def build_objective(args: CommonArguments, task: Task) -> Objective:
    return Objective(
        ce_weight=args.ce_loss_weight,
        distill_weight=args.distill_loss_weight,
        distill_temperature=args.temperature,
        contrastive_temperature=args.contrastive_temperature,
        unsupervised_weight=args.cl_unsupervised_loss_weight,
        # a span or a regression has no labels to contrast by
        supervised_weight=args.cl_supervised_loss_weight if task.labels else 0.0,
        normalization=args.cl_normalization,
        penalty=None if args.regularization == "null" else args.regularization,
        extra_examples=args.extra_examples,
    )


def resume_fingerprint(args: CommonArguments, examples: Examples) -> dict:
    """What a resumed run must have in common with the one it goes on from: the fixed flags, the data, and the models.

    The weights of model and teacher, though only the first run reads them: they are what its record names. Not of
    models of the Hub, nor weights and config of the one in output_dir, which this run's own will replace.
    """
    own = Path(args.output_dir).resolve()
    data = [examples.input_ids.tobytes(), *(labels.numpy().tobytes() for labels in examples.labels)]
    digests = {"data": zlib.crc32(b"".join(data))}
    if Path(name := args.config_name or args.model_name_or_path).resolve() != own:
        digests["model_config"] = zlib.crc32(repr(sorted(saved_config(name).items())).encode())
    models = {"model_weights": args.model_name_or_path}
    models |= {"teacher_weights": args.teacher_name_or_path} if args.needs_teacher else {}
    for key, folder in models.items():
        files = sorted(Path(folder).glob("*.safetensors")) or sorted(Path(folder).glob("pytorch_model*.bin"))
        if files and Path(folder).resolve() != own:
            digests[key] = [digest(file) for file in files]
    return {**args.fixed, "examples": len(examples), **digests}
