"""The flags of both scripts, in groups that check themselves, with the released names and defaults.

No torch here: a bad flag is answered in a moment, in one line that names it. What depends on files (the number of
examples, the teacher's config) is checked where those are read.
"""

import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import ClassVar

from emmental.data import glue
from emmental.data.batches import Plan
from emmental.model.families import TYPES, is_masked
from emmental.pruning.methods import METHODS
from emmental.training import resume
from emmental.utils.errors import InputError, print_once
from emmental.utils.flags import default_of, defaults_of, flag, given_of, refuse
from emmental.utils.launch import world_size

START_LAMBDA = 100.0  # where steering starts if --final_lambda is not given
BANKS = ("pretrained", "finetuned", "snapshots")  # PrC, FiC, SnC


@dataclass
class ModelArguments:
    """Which model, on which device, to where."""

    model_type: str = flag("masked", "dense fine-tunes a model without masks, a teacher", TYPES)
    model_name_or_path: str = flag("", "a model's folder, or its name on the Hub (required)", affects_training=False)
    config_name: str = flag("", "another folder's config", affects_training=False)
    tokenizer_name: str = flag("", "another folder's tokenizer", affects_training=False)
    cache_dir: str = flag(
        "", "where data sets and tokenised sets are kept (default: Hugging Face's)", affects_training=False
    )
    output_dir: str = flag("", "where results, checkpoints and the model go (required)", affects_training=False)
    do_train: bool = flag(False, "train", affects_training=False)
    do_eval: bool = flag(
        False, "evaluate at the end; alone: evaluate the model of --model_name_or_path", affects_training=False
    )
    do_lower_case: bool = flag(False, "lower-case the text, whatever the tokenizer's own files say")
    max_seq_length: int = flag(128, "longest input in tokens; the rest is truncated")
    pad_to_max_length: bool = flag(False, "compute every position of fully padded inputs, as released (D37)")
    resume_from_checkpoint: str = flag(
        "", "a checkpoint's folder, or auto: the newest complete one of output_dir", affects_training=False
    )
    overwrite_output_dir: bool = flag(
        False,
        "remove what an earlier run left in output_dir: checkpoints, banks, model, results",
        affects_training=False,
    )
    overwrite_cache: bool = flag(False, "tokenise again", affects_training=False)
    no_cuda: bool = flag(False, "stay on the CPU", affects_training=False)
    seed: int = flag(42, "of initial weights, data order, extra examples and dropout")

    def __post_init__(self):
        refuse(not self.model_name_or_path, "--model_name_or_path is required")
        refuse(not self.output_dir, "--output_dir is required")
        refuse(not (self.do_train or self.do_eval), "nothing to do: give --do_train, --do_eval or both")
        refuse(self.max_seq_length < 4, f"--max_seq_length {self.max_seq_length}: at least 4")
        refuse(not 0 <= self.seed < 2**63, f"--seed {self.seed}: at least 0 and less than 2^63")
        resumed = self.resume_from_checkpoint
        refuse(bool(resumed) and not self.do_train, "--resume_from_checkpoint needs --do_train")
        lost = resumed not in ("", "auto") and not os.path.isfile(os.path.join(resumed, "state.json"))
        refuse(lost, f"--resume_from_checkpoint {resumed}: no checkpoint, it has no state.json")
        self.check_output_dir()

    def check_output_dir(self) -> None:
        """Results can be written, and a run starts in an empty folder unless --overwrite_output_dir is given."""
        try:
            os.lstat(os.path.join(self.output_dir, "result.json"))
        except FileNotFoundError:
            pass
        except OSError as error:  # a file on the way, a loop of links, a name too long
            raise InputError(f"--output_dir {self.output_dir}: {error.strerror}") from None
        if self.do_train and not (self.overwrite_output_dir or self.resume_from_checkpoint):
            resume.check_empty(Path(self.output_dir))
        existing = Path(self.output_dir)
        while not os.path.lexists(existing):
            existing = existing.parent
        refuse(not os.access(existing, os.W_OK), f"--output_dir {self.output_dir}: {existing} is not writable")

    @property
    def masked(self) -> bool:
        return is_masked(self.model_type)

    @property
    def trains(self) -> str:
        """The model_type that is trained, "" where a model is only evaluated."""
        return self.model_type if self.do_train else ""


@dataclass
class TrainingArguments:
    """Optimisation, its length, and what is logged and saved on the way."""

    per_gpu_train_batch_size: int = flag(8, "examples per process and batch", affects_training=False)
    per_gpu_eval_batch_size: int = flag(
        8, "kept for old commands; passes without order size their batches by tokens", affects_training=False
    )
    learning_rate: float = flag(5e-5, "peak learning rate of the weights")
    mask_scores_learning_rate: float = flag(1e-2, "peak learning rate of the mask scores")
    weight_decay: float = flag(0.0, "decoupled; not for biases, LayerNorm weights and scores")
    adam_epsilon: float = flag(1e-8, "AdamW's epsilon, outside the bias correction")
    max_grad_norm: float = flag(1.0, "gradients of weights and scores are clipped jointly to this norm")
    num_train_epochs: float = flag(3.0, "may be fractional")
    max_steps: int = flag(-1, "optimizer steps, in place of epochs")
    warmup_steps: int = flag(0, "warm-up of the learning rate, and the unit of initial_warmup and final_warmup")
    warmup_epochs: float = flag(0.0, "the same in epochs, in place of warmup_steps")
    gradient_accumulation_steps: int = flag(1, "batches per optimizer step")
    evaluate_during_training: bool = flag(False, "evaluate every logging_steps", affects_training=False)
    evaluate_at: str = flag(
        "final",
        "threshold of evaluations during training: the saved model's, as released, or the schedule's at that step",
        ("final", "running"),
        affects_training=False,
    )
    logging_steps: int = flag(50, "optimizer steps between log lines", affects_training=False)
    save_steps: int = flag(50, "optimizer steps between checkpoints; 0: none", affects_training=False)
    save_total_limit: int = flag(0, "checkpoints to keep, the newest ones; 0: all", affects_training=False)
    eval_all_checkpoints: bool = flag(
        False, "evaluate every checkpoint of output_dir at the end", affects_training=False
    )
    fp16: bool = flag(False, "float16 autocast with loss scaling (GPU)")
    bf16: bool = flag(False, "bfloat16 autocast")
    tf32: bool = flag(False, "TF32 matrix products on GPUs that have them")

    def __post_init__(self):
        super().__post_init__()
        for name in ("per_gpu_train_batch_size", "per_gpu_eval_batch_size", "gradient_accumulation_steps"):
            refuse(getattr(self, name) < 1, f"--{name} {getattr(self, name)}: at least 1")
        for name in ("learning_rate", "mask_scores_learning_rate", "weight_decay", "warmup_steps", "warmup_epochs"):
            refuse(not 0 <= getattr(self, name) < float("inf"), f"--{name} {getattr(self, name)}: at least 0")
        for name in ("adam_epsilon", "max_grad_norm", "num_train_epochs"):
            refuse(not 0 < getattr(self, name) < float("inf"), f"--{name} {getattr(self, name)}: above 0")
        for name in ("logging_steps", "save_steps", "save_total_limit"):
            refuse(getattr(self, name) < 0, f"--{name} {getattr(self, name)}: at least 0 (0: never)")
        refuse(self.max_steps < 1 and self.max_steps != -1, f"--max_steps {self.max_steps}: at least 1, or -1 for none")
        both = bool(self.warmup_steps and self.warmup_epochs)
        refuse(both, "--warmup_steps and --warmup_epochs: one of them, not both")
        for name in ("evaluate_during_training", "eval_all_checkpoints"):
            refuse(getattr(self, name) and not self.do_eval, f"--{name} needs --do_eval")
        never = self.evaluate_during_training and not self.logging_steps
        refuse(never, "--evaluate_during_training evaluates every --logging_steps, which is 0")
        unused = self.evaluate_at == "running" and not self.evaluate_during_training
        refuse(unused, "--evaluate_at running needs --evaluate_during_training")
        refuse(self.fp16 and self.bf16, "--fp16 and --bf16: one of them, not both")
        refuse(self.fp16 and self.no_cuda, "--fp16 needs a GPU; on a CPU use --bf16 or neither")


@dataclass
class PruningArguments:
    """Masks, their schedule and the penalty on their scores."""

    pruning_method: str = flag("topK", "movement pruning: hard is topK, soft sigmoied_threshold", tuple(METHODS))
    mask_init: str = flag("constant", "the scores at the start", ("constant", "uniform", "kaiming"))
    mask_scale: float = flag(0.0, "the constant, or the uniform range")
    initial_threshold: float = flag(
        1.0,
        "at the start: the share of weights kept (topK, magnitude, global_topk), "
        "or what a score (threshold) or its sigmoid (sigmoied_threshold) must exceed",
    )
    final_threshold: float = flag(0.7, "the same at the end, and of the saved model")
    initial_warmup: int = flag(1, "warm-ups before the threshold moves")
    final_warmup: int = flag(2, "warm-ups after it has stopped")
    regularization: str = flag(
        "null",
        "penalty on the scores: their mean sigmoid (l1), or the mean chance that a gate of the method l0 is open (l0)",
        ("l0", "l1", "null"),
    )
    final_lambda: float = flag(0.0, "the penalty's weight at the end; with --target_sparsity, where steering starts")
    target_sparsity: float | None = flag(
        None, "steer lambda to this share of weights pruned, not kept (threshold and sigmoied_threshold)", kind=float
    )
    global_topk: bool = flag(False, "rank the scores of all matrices together; with --pruning_method threshold")
    global_topk_frequency_compute: int = flag(25, "optimizer steps between two rankings")

    def __post_init__(self):
        super().__post_init__()
        method, name = METHODS[self.pruning_method], self.pruning_method
        ranked = method.ranked or self.global_topk  # thresholds are the fraction kept, not a value to exceed
        for which in ("initial_threshold", "final_threshold"):
            value = getattr(self, which)
            low, high = (0, 1) if method.fraction or self.global_topk else (-1e30, 1e30)
            refuse(not low <= value <= high, f"--{which} {value}: between {low:g} and {high:g} with {name}")
        nothing = method.ranked and self.do_train and self.final_threshold == 0  # D72
        refuse(nothing, f"--final_threshold 0: with {name} the fraction that is kept, of which nothing would be left")
        for which in ("initial_warmup", "final_warmup"):
            refuse(getattr(self, which) < 0, f"--{which} {getattr(self, which)}: at least 0")
        refuse(not 0 <= self.mask_scale < 1e30, f"--mask_scale {self.mask_scale}: at least 0")
        refuse(not 0 <= self.final_lambda < 1e30, f"--final_lambda {self.final_lambda}: at least 0")
        penalised = self.regularization != "null"
        if self.target_sparsity and not self.final_lambda and penalised:
            self.final_lambda = START_LAMBDA
        refuse(penalised and not method.scored, f"--regularization {self.regularization}: {name} has no scores")
        refuse(bool(self.final_lambda) and not penalised, "--final_lambda needs --regularization l1 or l0")
        unscaled = bool(self.final_lambda) and self.final_threshold == 0
        refuse(unscaled, "--final_threshold 0: lambda is final_lambda * threshold / final_threshold; give another")
        below = f"--initial_threshold {self.initial_threshold}: lambda, which follows the threshold, would be below 0"
        refuse(bool(self.final_lambda) and self.initial_threshold * self.final_threshold < 0, below)
        refuse(self.global_topk and name != "threshold", f"--global_topk needs --pruning_method threshold, not {name}")
        if (target := self.target_sparsity) is not None:
            refuse(not 0 < target < 1, f"--target_sparsity {target}: above 0 and below 1")
            refuse(ranked, f"--target_sparsity: {name} fixes its sparsity by the threshold; use sigmoied_threshold")
            refuse(method.smooth, f"--target_sparsity: {name} has no threshold to calibrate; use sigmoied_threshold")
            edge = method.sigmoid and self.final_threshold in (0, 1)
            refuse(edge, f"--target_sparsity: --final_threshold {self.final_threshold} is the sigmoid of no score")
            refuse(not penalised, "--target_sparsity needs --regularization l1 or l0, whose weight it steers")
        every = self.global_topk_frequency_compute
        refuse(every < 1, f"--global_topk_frequency_compute {every}: at least 1")
        if self.do_train and not method.smooth:
            given = f"--initial_threshold {self.initial_threshold} and --final_threshold {self.final_threshold}"
            rises = self.initial_threshold < self.final_threshold
            refuse(ranked and rises, f"{given}: the fraction that is kept cannot rise")
            falls = self.initial_threshold > self.final_threshold
            refuse(not ranked and falls, f"{given}: what scores have to exceed cannot fall")


@dataclass
class ContrastiveArguments:
    """Contrasting with the pre-trained model (PrC), snapshots (SnC) and the fine-tuned teacher (FiC)."""

    use_contrastive_loss: bool = flag(False, "add the contrastive losses")
    contrast_with: list[str] = flag(BANKS, "the banks to contrast with: PrC, FiC, SnC", BANKS, "+", str)
    contrastive_temperature: float = flag(0.01, "tau, of the contrastive softmax")
    extra_examples: int = flag(512, "rows of other examples drawn from each bank for each batch")
    cl_unsupervised_loss_weight: float = flag(0.1, "weight of the terms whose positives are the same example")
    alignrep: str = flag("mean-pooling", "what represents a text", ("cls", "mean-pooling"))
    cl_normalization: str = flag("released", "released divides by the positives twice", ("released", "supcon"))
    bank_dtype: str = flag("float32", "float16 halves the banks' memory", ("float32", "float16"))
    snapshot_mode: str = flag("train", "encode snapshots with dropout on (train, as released, D8)", ("train", "eval"))

    def __post_init__(self):
        super().__post_init__()
        positive = 0 < self.contrastive_temperature < float("inf")
        refuse(not positive, f"--contrastive_temperature {self.contrastive_temperature}: above 0")
        refuse(self.extra_examples < 0, f"--extra_examples {self.extra_examples}: at least 0")
        weight = self.cl_unsupervised_loss_weight
        refuse(not 0 <= weight < float("inf"), f"--cl_unsupervised_loss_weight {weight}: at least 0")

    @property
    def contrast_weights(self) -> tuple[float, ...]:
        return (self.cl_unsupervised_loss_weight,)

    @property
    def banks(self) -> tuple[str, ...]:
        """The banks this run contrasts with, in the order of BANKS."""
        wanted = self.use_contrastive_loss and any(self.contrast_weights)
        return tuple(name for name in BANKS if wanted and name in self.contrast_with)


@dataclass
class DistillationArguments:
    """The fine-tuned teacher."""

    use_distill: bool = flag(False, "distil the teacher")
    teacher_type: str = flag("dense", "dense, or masked for a pruned teacher", TYPES)
    teacher_name_or_path: str = flag("", "the fine-tuned teacher's folder or name on the Hub", affects_training=False)
    ce_loss_weight: float = flag(1.0, "weight of the task's own loss")
    distill_loss_weight: float = flag(0.0, "weight of distillation")
    temperature: float = flag(2.0, "of distillation, softens both distributions")

    def __post_init__(self):
        super().__post_init__()
        for name in ("ce_loss_weight", "distill_loss_weight"):
            refuse(not 0 <= getattr(self, name) < float("inf"), f"--{name} {getattr(self, name)}: at least 0")
        refuse(not 0 < self.temperature < float("inf"), f"--temperature {self.temperature}: above 0")
        if self.do_train:
            self.check_teacher_flags()

    def check_teacher_flags(self) -> None:
        """Refuses losses without a teacher that they need, and weights that leave no loss."""
        if not self.teacher_name_or_path:
            refuse(self.use_distill, "--use_distill needs --teacher_name_or_path")
            without = "--use_contrastive_loss needs --teacher_name_or_path for the finetuned bank; "
            refuse("finetuned" in self.banks, without + "--contrast_with pretrained snapshots does without a teacher")
        weight = self.distill_loss_weight
        refuse(self.use_distill and not weight, "--use_distill needs --distill_loss_weight above 0")
        refuse(bool(weight) and not self.use_distill, f"--distill_loss_weight {weight} needs --use_distill")
        nothing = not (self.ce_loss_weight or self.use_distill or self.banks)
        refuse(nothing, "--ce_loss_weight 0: no loss is left; give another weight above 0")
        if self.use_contrastive_loss and not self.banks:
            print_once("--use_contrastive_loss: no term has a weight above 0, so nothing is contrasted")
        self.say_unused()

    def say_unused(self) -> None:
        """Names flags that have no effect, since what they are about is off."""
        about = {item.name for item in fields(ContrastiveArguments)} | {"cl_supervised_loss_weight"}
        about -= {"alignrep"}  # the model's config keeps it
        if not self.use_contrastive_loss and (unused := given_of(self, about)):
            names = " ".join(f"--{item.name}" for item in unused)
            print_once(f"nothing is contrasted without --use_contrastive_loss; ignored: {names}")
        if self.teacher_name_or_path and not self.needs_teacher:
            print_once("nothing is distilled, nor contrasted with a teacher; ignored: --teacher_name_or_path")

    @property
    def needs_teacher(self) -> bool:
        return self.do_train and (self.use_distill or "finetuned" in self.banks)


class CommonArguments(DistillationArguments, ContrastiveArguments, PruningArguments, TrainingArguments, ModelArguments):
    """Every flag that both scripts have."""

    EPILOG: ClassVar = (
        "Defaults are the released ones, not those of the published recipe (contrastive_temperature 0.1, alignrep cls, "
        "extra_examples 4096, ...), which the run_*.sh scripts pass."
    )

    def __post_init__(self):
        self.world_size = world_size()
        if not self.masked:
            self.ignore_pruning()
        super().__post_init__()
        if self.do_train and self.overwrite_output_dir and self.resume_from_checkpoint in ("", "auto"):
            self.check_models_outlast()

    def check_models_outlast(self) -> None:
        """Refuses a model among the checkpoints that --overwrite_output_dir removes: a killed run would lose it."""
        for name in ("model_name_or_path", "teacher_name_or_path"):
            given, output = getattr(self, name), Path(self.output_dir).resolve()
            path = Path(given).resolve()
            inside = path.relative_to(output).parts if output in path.parents else ()
            removed = bool(inside) and inside[0].startswith("checkpoint-")
            refuse(removed, f"--{name} {given}: --overwrite_output_dir removes it; give another --output_dir")

    def ignore_pruning(self) -> None:
        """Takes back the flags that a dense model has no use for, with one line that names them."""
        groups = (PruningArguments, ContrastiveArguments, DistillationArguments)
        names = {item.name for group in groups for item in fields(group)} | {"cl_supervised_loss_weight"}
        if given := given_of(self, names):
            for item in given:
                setattr(self, item.name, default_of(item))
            names = " ".join(f"--{item.name}" for item in given)
            print_once(
                f"--model_type {self.model_type} trains without masks, contrast and distillation; ignored: {names}"
            )

    @property
    def record(self) -> dict:
        """What arguments.json keeps of a run."""
        return asdict(self) | {"global_batch_size": self.per_gpu_train_batch_size * self.world_size}

    @property
    def fixed(self) -> dict:
        """The part of it that a resumed run cannot change."""
        names = {item.name for item in fields(self) if item.metadata["affects_training"]} | {"global_batch_size"}
        return {name: value for name, value in self.record.items() if name in names}

    def nothing_to_do(self) -> bool:
        """Whether `--resume_from_checkpoint auto` finds a finished run.

        InputError where it could only do harm, or would go on with other flags than the run had.
        """
        found = Path(self.output_dir), self.record, defaults_of(self), self.overwrite_output_dir
        return self.resume_from_checkpoint == "auto" and resume.nothing_to_do(*found, set(self.fixed))

    def plan(self, examples: int) -> Plan:
        """The plan of a run on so many examples; refused where no step is left to prune in, or no snapshot is taken."""
        batch_size = self.per_gpu_train_batch_size * self.world_size
        accumulation, epochs = self.gradient_accumulation_steps, self.num_train_epochs
        plan = Plan(examples, batch_size, accumulation, epochs, self.seed, self.max_steps)
        warmup_steps = plan.warmup_steps(self.warmup_steps, self.warmup_epochs)
        refuse(
            0 < plan.total_steps <= warmup_steps,
            f"the warm-up outlasts the run: {warmup_steps} warm-up steps, and the run has {plan.total_steps} steps; "
            "give fewer (--warmup_steps; in the scripts WARMUP, which if empty is an epoch) or more epochs",
        )
        refuse(
            self.banks == ("snapshots",) and plan.total_steps <= plan.steps_per_epoch,
            f"--contrast_with snapshots: the first is taken after an epoch, {plan.steps_per_epoch} steps, and the run "
            f"has {plan.total_steps}",
        )
        if self.masked:
            plan.check_warmup(warmup_steps, self.initial_warmup, self.final_warmup)
        return plan


@dataclass
class GlueArguments(CommonArguments):
    """masked_run_glue.py: trains and evaluates masked BERT on a GLUE task, with contrastive pruning (CAP)."""

    USAGE: ClassVar = "%(prog)s --task_name TASK --model_name_or_path MODEL --output_dir DIR --do_train --do_eval ..."

    task_name: str = flag("", "one of the nine GLUE tasks (required)")
    data_dir: str = flag(
        "", "folder of the official TSV files; default: nyu-mll/glue from the Hub", affects_training=False
    )
    cl_supervised_loss_weight: float = flag(2.0, "weight of the terms whose positives have the same label")

    def __post_init__(self):
        self.task_name = self.task_name.lower()
        super().__post_init__()
        weight = self.cl_supervised_loss_weight
        refuse(not 0 <= weight < float("inf"), f"--cl_supervised_loss_weight {weight}: at least 0")
        refuse(not self.task_name, "--task_name is required")

    @property
    def contrast_weights(self) -> tuple[float, ...]:
        labels = self.task_name in glue.TASKS and glue.TASKS[self.task_name].labels  # a regression has none
        return self.cl_unsupervised_loss_weight, self.cl_supervised_loss_weight if labels else 0.0


@dataclass
class SquadArguments(CommonArguments):
    """masked_run_squad.py: trains and evaluates masked BERT on SQuAD, with contrastive pruning (CAP)."""

    USAGE: ClassVar = "%(prog)s --model_name_or_path MODEL --output_dir DIR --do_train --do_eval ..."

    train_file: str = flag("", "SQuAD JSON to train on; default: rajpurkar/squad from the Hub", affects_training=False)
    predict_file: str = flag("", "SQuAD JSON to evaluate on; default likewise", affects_training=False)
    data_dir: str = flag(
        "", "folder of train-v1.1.json and dev-v1.1.json, or of the files above", affects_training=False
    )
    max_seq_length: int = flag(384, "longest window, question included, in tokens")
    doc_stride: int = flag(128, "tokens between the starts of two windows of a passage")
    max_query_length: int = flag(64, "longest question in tokens; the rest is truncated")
    version_2_with_negative: bool = flag(False, "SQuAD v2.0: some questions have no answer")
    null_score_diff_threshold: float = flag(
        0.0, "no answer if the null score leads by more than this", affects_training=False
    )
    n_best_size: int = flag(20, "candidates per question", affects_training=False)
    max_answer_length: int = flag(30, "longest answer in tokens", affects_training=False)
    verbose_logging: bool = flag(False, "name every question that reading found fault with", affects_training=False)
    threads: int = flag(1, "kept for old commands; the tokenizer uses all cores by itself", affects_training=False)
    logging_steps: int = flag(500, "optimizer steps between log lines", affects_training=False)
    save_steps: int = flag(500, "optimizer steps between checkpoints; 0: none", affects_training=False)

    def __post_init__(self):
        super().__post_init__()
        for name in ("doc_stride", "max_query_length", "n_best_size", "max_answer_length", "threads"):
            refuse(getattr(self, name) < 1, f"--{name} {getattr(self, name)}: at least 1")
