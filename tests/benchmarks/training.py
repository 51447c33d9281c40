"""Times a training step and an encoding pass, the released way and this project's, side by side: a program, no test.

    python -m tests.benchmarks.training --model DIR --data_dir glue_data/QQP --growth --floor --json speed.json

The released way is written here from its formulas (tests/parity/README.md) on transformers' own padded BertModel: a
full sort per matrix and forward, a teacher forward in every step, bank rows gathered on the CPU, banks grown by
concatenation. Both ways first have to give the same losses, gradient norms and encodings on the same batches.
"""

import argparse
import ctypes
import json
import math
import platform
import random
import shlex
import sys
import time
from collections import defaultdict
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import torch
import transformers
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoTokenizer, BertConfig, BertModel

from emmental import experiment
from emmental.arguments import GlueArguments
from emmental.arguments import parse as parse_flags
from emmental.contrast.bank import Bank, sample
from emmental.contrast.encoding import encode_epoch
from emmental.data import glue
from emmental.data.batches import Plan
from emmental.data.examples import Examples
from emmental.model import loading
from emmental.model.inference import predict
from emmental.model.masked_bert import MaskedBertConfig, MaskedBertForSequenceClassification
from emmental.pruning import schedule
from emmental.pruning.masked_linear import masked_linears, set_threshold
from emmental.pruning.masks import StraightThrough
from emmental.training import loop, objective
from emmental.training.optimizer import lr_factor
from emmental.utils.precision import Precision
from tests.benchmarks.sparse import cpu

SIZES = {
    "base": {},
    "mini": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
    "tiny": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
}
PUBLISHED = """--do_train --overwrite_output_dir --task_name qqp --learning_rate 3e-5 --mask_scores_learning_rate 1e-2
    --use_contrastive_loss --contrastive_temperature 0.1 --alignrep cls --cl_unsupervised_loss_weight 0.1
    --cl_supervised_loss_weight 10 --use_distill --ce_loss_weight 0.1 --distill_loss_weight 0.9"""
KEPT = 0.1  # share of the weights that is left late in a run
QQP = 363_846  # training examples
COUNTS = (10_000, 50_000, QQP)  # examples for --growth
MEASURED = 50_000  # above it the released way is extrapolated
WARM, PASSES = 2, 2  # steps before the first one timed, of encoding passes one; encoding passes timed
WAYS = "released", "project"
PEAK = "peak MB"  # of memory, beyond what is held between steps or passes


# --- What both ways work on


@dataclass(frozen=True)
class Case:
    """A run shortly after it has taken its last snapshot, the same for both ways."""

    args: GlueArguments
    device: torch.device
    examples: Examples
    plan: Plan
    student: MaskedBertForSequenceClassification
    teacher: MaskedBertForSequenceClassification
    columns: dict[str, list[torch.Tensor]]  # of every bank

    @property
    def first_step(self) -> int:
        return self.plan.steps_per_epoch * len(self.columns["snapshots"]) + 1


def subset(examples: Examples, index: np.ndarray) -> Examples:
    tokens = np.concatenate([np.arange(*examples.offsets[[i, i + 1]]) for i in index])
    offsets = np.concatenate([[0], np.cumsum(examples.lengths[index])])
    labels = tuple(values[torch.from_numpy(index)] for values in examples.labels)
    return Examples(examples.input_ids[tokens], examples.token_type_ids[tokens], offsets, labels)


def generated(count: int, length: int) -> Examples:
    """Random tokens in QQP's lengths, about log-normal with a mean of 31; 37 % duplicates, as in its training set."""
    rng = np.random.default_rng(0)
    lengths = np.exp(rng.normal(3.36, 0.38, count)).astype(int).clip(8, length)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    place = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    second = (place > np.repeat(lengths, lengths) // 2).astype(np.int64)
    labels = torch.from_numpy((rng.random(count) < 0.37).astype(np.int64))
    return Examples(rng.integers(1000, 30000, offsets[-1]), second, offsets, (labels,))


def unit_rows(count: int, hidden: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.empty(count, hidden).normal_(generator=torch.Generator().manual_seed(seed)))


def arguments(options: argparse.Namespace, folder: Path) -> GlueArguments:
    """The flags of a run as run_glue_topk_kd.sh has them, late in it."""
    name = str(options.model or options.size)
    flags = [
        "--model_name_or_path",
        name,
        "--teacher_name_or_path",
        name,
        "--output_dir",
        str(folder),
        *PUBLISHED.split(),
    ]
    values = {
        "max_seq_length": options.length,
        "per_gpu_train_batch_size": options.batch,
        "num_train_epochs": options.snapshots + 1,
        "extra_examples": options.extra,
        "initial_threshold": KEPT,
        "final_threshold": KEPT,
    }
    switches = [f"--{name}" for name in ("bf16", "tf32") if getattr(options, name)]
    pairs = [text for flag, value in values.items() for text in (f"--{flag}", str(value))]
    return parse_flags(GlueArguments, flags + pairs + switches)


def build(options: argparse.Namespace, folder: Path) -> Case:
    args = arguments(options, folder)
    name = args.model_name_or_path
    if options.data_dir:
        rows, tokenizer = glue.read("qqp", options.data_dir / "train.tsv"), AutoTokenizer.from_pretrained(name)
        examples = glue.tokenise(rows, tokenizer, task="qqp", max_seq_length=options.length, cache_dir=folder)
    else:
        examples = generated(options.examples, options.length)
    torch.manual_seed(0)
    models = []
    for method in ("topK", None):
        settings = {"pruning_method": method, "alignrep": "cls", "num_labels": 2}
        if options.model:
            models.append(loading.load(MaskedBertForSequenceClassification, name, trained=False, **settings))
        else:
            models.append(MaskedBertForSequenceClassification(MaskedBertConfig(**SIZES[options.size], **settings)))
    for linear in masked_linears(models[0]).values():
        nn.init.normal_(linear.mask_scores)
    rows = [unit_rows(len(examples), models[0].config.hidden_size, seed) for seed in range(options.snapshots + 2)]
    columns = {"pretrained": rows[:1], "finetuned": rows[1:2], "snapshots": rows[2:]}
    models = [model.to(options.device) for model in models]
    return Case(args, torch.device(options.device), examples, args.plan(len(examples)), *models, columns)


# --- The released way


class SortedLinear(nn.Linear):
    """A masked layer that finds its mask anew in every forward, by sorting all its scores."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features)
        self.mask_scores = nn.Parameter(torch.empty_like(self.weight))

    @torch.no_grad()
    def sorted_mask(self) -> torch.Tensor:
        order = self.mask_scores.flatten().sort(descending=True).indices
        mask = torch.zeros_like(self.mask_scores)
        mask.view(-1)[order[: int(KEPT * order.numel())]] = 1
        return mask

    def forward(self, inputs):
        return F.linear(inputs, self.weight * StraightThrough.apply(self.mask_scores, self.sorted_mask()), self.bias)


class PaddedBert(nn.Module):
    """transformers' own BertModel and a classifier, with the weights of one of the project's models."""

    def __init__(self, source: MaskedBertForSequenceClassification, attention: str):
        super().__init__()
        masked = source.config.pruning_method is not None
        self.bert = BertModel(BertConfig.from_dict(source.config.to_dict(), attn_implementation=attention))
        for parent in list(self.bert.encoder.modules()) if masked else []:
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(parent, name, SortedLinear(child.in_features, child.out_features))
        self.dropout = nn.Dropout(source.config.hidden_dropout_prob)
        self.classifier = nn.Linear(source.config.hidden_size, source.config.num_labels)
        self.load_state_dict(source.state_dict())
        self.bert.embeddings.requires_grad_(not masked)

    def forward(self, **inputs):
        pooled = self.dropout(self.bert(**inputs).pooler_output)
        return self.classifier(pooled), pooled

    def encode(self, **inputs):
        return F.normalize(self.bert(**inputs).pooler_output, dim=-1)


class FormerAdamW:
    """transformers' former AdamW: one parameter after the other, epsilon outside the bias correction."""

    def __init__(self, model: nn.Module, weights_rate: float, scores_rate: float):
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self.rates = [(p, scores_rate if name.endswith("mask_scores") else weights_rate) for name, p in named]
        self.moments = {p: (torch.zeros_like(p), torch.zeros_like(p)) for _, p in named}

    @torch.no_grad()
    def step(self, count: int, factor: float) -> None:
        correction = (1 - 0.999**count) ** 0.5 / (1 - 0.9**count)
        for p, rate in self.rates:
            mean, square = self.moments[p]
            mean.mul_(0.9).add_(p.grad, alpha=0.1)
            square.mul_(0.999).addcmul_(p.grad, p.grad, value=0.001)
            p.addcdiv_(mean, square.sqrt().add_(1e-8), value=-rate * factor * correction)


def draw_any(step: int, number: int, examples: int, count: int) -> list[int]:
    return random.sample(range(examples), count)


class Released:
    """The training step and the encoding pass as the released code does them."""

    name = "released"

    def __init__(self, case: Case, attention: str, draw=draw_any):
        self.case, self.args, self.draw = case, case.args, draw
        self.student = PaddedBert(case.student, attention).to(case.device)
        self.teacher = PaddedBert(case.teacher, attention).to(case.device).eval()
        self.banks = [torch.stack(columns, dim=1) for columns in case.columns.values()]
        self.optimizer = FormerAdamW(self.student, self.args.learning_rate, self.args.mask_scores_learning_rate)
        self.parts = [
            (SortedLinear, "sorted_mask", "masks"),
            (self.student, "forward", "student forward"),
            (self.student, "encode", "student forward"),
            (self.teacher, "forward", "teacher forward"),
            (torch.Tensor, "backward", "backward"),
            (self, "contrastive", "contrastive"),
            (nn.utils, "clip_grad_norm_", "clip, optimizer"),
            (self.optimizer, "step", "clip, optimizer"),
        ]

    def inputs(self, examples: Examples, index: np.ndarray) -> dict[str, torch.Tensor]:
        padded = examples.inputs(index, self.args.max_seq_length)
        return {name: x.to(self.case.device) for name, x in padded.items()}

    def step(self, step: int) -> tuple[float, float]:
        """Takes one training step; returns its loss and its gradient's norm."""
        torch.set_float32_matmul_precision("high")  # TF32 on a GPU, the default of torch 1.8
        (index,) = self.case.plan.micro_batches(step)
        inputs, labels = self.inputs(self.case.examples, index), self.case.examples.labels[0]
        logits, anchors = self.student.train()(**inputs)
        with torch.no_grad():
            teacher_logits, _ = self.teacher(**inputs)
        heat = self.args.temperature
        softened = F.log_softmax(logits / heat, -1), F.softmax(teacher_logits / heat, -1)
        loss = self.args.ce_loss_weight * F.cross_entropy(logits, labels[index].to(self.case.device))
        loss = loss + self.args.distill_loss_weight * heat**2 * F.kl_div(*softened, reduction="batchmean")
        loss = loss + self.contrastive(anchors, self.banks, index, labels, step)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.student.parameters(), self.args.max_grad_norm)
        self.optimizer.step(step + 1, lr_factor(step, 0, self.case.plan.total_steps))
        self.student.zero_grad()
        return loss.item(), norm.item()

    def contrastive(self, anchors, banks, index, labels, step) -> torch.Tensor:
        """The terms of all banks, each (examples, R, hidden), for the batch `index`."""
        loss, unit, device = 0.0, F.normalize(anchors, dim=-1), anchors.device
        weights = self.args.cl_unsupervised_loss_weight, self.args.cl_supervised_loss_weight
        for number, bank in enumerate(banks):
            extra = self.draw(step, number, len(bank), self.args.extra_examples // bank.shape[1])
            members = [*index.tolist(), *extra]
            rows = bank[members].to(device)
            place = torch.cat([torch.tensor(index), torch.tensor(members).repeat_interleave(rows.shape[1])])
            keys = torch.cat([unit.detach(), rows.flatten(0, 1)])
            for weight, kind in zip(weights, (place.to(device), labels[place].to(device)), strict=True):
                loss = loss + weight * self.term(unit, keys, kind)
        return loss

    def term(self, unit: torch.Tensor, keys: torch.Tensor, kind: torch.Tensor) -> torch.Tensor:
        """One bank's supervised or unsupervised term; `kind` (keys,) are the keys' labels or indices."""
        itself = torch.eye(len(unit), len(keys), dtype=torch.bool, device=unit.device)
        log_q = (unit @ keys.T / self.args.contrastive_temperature).masked_fill(itself, -1e6).log_softmax(-1)
        positive = (kind[: len(unit), None] == kind) & ~itself
        log_p = log_q * positive
        return -(log_p.sum(1) / positive.sum(1)).sum() / (log_p != 0).sum()

    def grow(self, bank: torch.Tensor | None, column: torch.Tensor) -> torch.Tensor:
        return column[:, None] if bank is None else torch.cat([bank, column[:, None]], dim=1)

    @torch.no_grad()
    def encode(self, examples: Examples, model=None) -> torch.Tensor:
        """One snapshot of `examples`, (examples, hidden)."""
        torch.set_float32_matmul_precision("high")
        model, size = model or self.student, self.case.plan.batch_size
        model.train()
        grown = torch.empty(0)
        for start in range(0, len(examples), size):
            inputs = self.inputs(examples, np.arange(start, min(start + size, len(examples))))
            grown = torch.cat([grown, model.encode(**inputs).cpu()])
        return grown


# --- The project's way


class Project:
    """The project's own training loop, as masked_run_glue.py sets it up, and its encoding pass."""

    name = "project"

    def __init__(self, case: Case, steps: int, dtype: torch.dtype | None, bank_dtype: torch.dtype = torch.float32):
        self.case, self.folder, self.bank_dtype = case, Path(case.args.output_dir), bank_dtype
        self.precision, task = Precision(case.device, dtype), SimpleNamespace(labels=("0", "1"), first_step=0)
        state = experiment.initial_state(case.args, task, case.student, case.plan, {}, self.precision)
        for name, columns in case.columns.items():
            state.banks[name].dtype = bank_dtype
            for column in columns:
                state.banks[name].add("", column, write=False)
        adamw, state.progress.step = state.optimizer.adamw, case.first_step
        for parameter in (p for group in adamw.param_groups for p in group["params"]):
            moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
            done = torch.tensor(float(case.first_step), device=case.device)
            adamw.state[parameter] = {"step": done, **moments}
        self.optimizer = state.optimizer
        # the teacher's logits are known before training; only those of the steps to come are made here
        index = np.concatenate([case.plan.micro_batches(case.first_step + step)[0] for step in range(steps)])
        (some,), _ = predict(case.teacher, subset(case.examples, index), self.precision, "teacher")
        logits = torch.zeros(len(case.examples), some.shape[1])
        logits[torch.from_numpy(index)] = some
        given = case.student, case.examples, state.banks, (logits,), case.plan
        built = state.masks, experiment.build_objective(case.args, task), state.optimizer
        self.steps = loop.train(*given, *built, state.progress, self.precision)
        self.parts = [
            (schedule, "set_threshold", "masks"),
            (sys.modules[__name__], "set_threshold", "masks"),
            (case.student, "forward", "student forward"),
            (case.student, "encode", "student forward"),
            (torch.Tensor, "backward", "backward"),
            (Bank, "draw", "contrastive"),
            (objective, "contrastive_loss", "contrastive"),
            (state.optimizer, "step", "clip, optimizer"),
        ]

    def step(self, step: int) -> tuple[float, float]:
        torch.set_float32_matmul_precision("high" if self.case.args.tf32 else "highest")
        done = next(self.steps)
        return sum(done.parts.values()).item(), done.grad_norm.item()

    def contrastive(self, anchors, banks, index, labels, step) -> torch.Tensor:
        """The terms by themselves; in a step the training loop puts them together."""
        args, place, terms = self.case.args, torch.from_numpy(index), []
        weights = {"temperature": args.contrastive_temperature, "unsupervised_weight": args.cl_unsupervised_loss_weight}
        for number, bank in enumerate(banks):
            rows = bank.draw(place, labels, args.extra_examples, (0, step, 0, number))
            here = place.to(anchors.device), rows.extra_index, labels[place].to(anchors.device), rows.extra_labels
            batch = anchors, rows.batch_rows, rows.extra_rows, *here
            supervised = args.cl_supervised_loss_weight
            terms.append(objective.contrastive_loss(*batch, supervised_weight=supervised, **weights))
        return sum(terms)

    def grow(self, bank: Bank | None, column: torch.Tensor) -> Bank:
        bank = bank or Bank(self.folder, self.case.device, torch.float32)
        bank.add("column.safetensors", column, write=True)
        return bank

    def encode(self, examples: Examples, model=None) -> torch.Tensor:
        """One snapshot of `examples`, (examples, hidden): masks, pass, and the column on disk."""
        torch.set_float32_matmul_precision("high" if self.case.args.tf32 else "highest")
        set_threshold(self.case.student, KEPT)
        banks = {"snapshots": Bank(self.folder, self.case.device, self.bank_dtype, dropout=True)}
        encode_epoch(1, banks, model or self.case.student, examples, self.precision)
        return banks["snapshots"].columns[0].float()


# --- Measuring


class Clock:
    """Milliseconds by part; what runs inside another part counts for itself alone."""

    def __init__(self, device: torch.device):
        self.device, self.parts, self.inner = device, defaultdict(float), []

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return 1e3 * time.perf_counter()

    def time(self, function, *args) -> float:
        start = self.now()
        function(*args)
        return self.now() - start

    def wrap(self, part: str, function):
        def timed(*args, **kwargs):
            self.inner.append(0.0)
            start = self.now()
            result = function(*args, **kwargs)
            took = self.now() - start
            self.parts[part] += took - self.inner.pop()
            if self.inner:
                self.inner[-1] += took
            return result

        return timed


def compare(ways: dict, call, rounds: int, warm: int, device: torch.device) -> dict:
    """Median milliseconds of `call(way, round)`, the ways by turns: whole, in further rounds by part; peak memory."""
    whole, parts = defaultdict(list), defaultdict(lambda: defaultdict(list))
    for number in range(-warm, 2 * rounds):
        for name, way in ways.items():
            clock = Clock(device)
            with ExitStack() as stack:
                for owner, attribute, part in way.parts if number >= rounds else ():
                    timed = clock.wrap(part, getattr(owner, attribute))
                    stack.enter_context(patch.object(owner, attribute, timed))
                clock.wrap("rest", call)(way, number + warm)
            for part, took in clock.parts.items() if number >= rounds else ():
                parts[name][part].append(took)
            if 0 <= number < rounds:
                whole[name].append(clock.parts["rest"])
    result: dict = {name: {"total": median(whole[name])} for name in ways}
    for name, way in ways.items():
        result[name] |= {part: median(took) for part, took in parts[name].items()}
        result[name][PEAK] = peak(partial(call, way, 2 * rounds + warm), device)
    return result | {"ratio": result["released"]["total"] / result["project"]["total"]}


def peak(function, device: torch.device) -> float:
    """The most megabytes that `function` needs at a time beyond what was held before."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        function()
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6

    def resident(field: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1.024e-3 for line in lines if line.startswith(field))

    ctypes.CDLL("libc.so.6").malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, the highest resident size
        before = resident("VmRSS")
        function()
        return resident("VmHWM") - before
    except (OSError, StopIteration):  # a kernel that does not keep it
        return math.nan


class RoundedProducts(TorchDispatchMode):
    """TF32 on any machine: what a matrix product takes is rounded to 10 bits after the point, ties to even."""

    PRODUCTS = "addmm", "mm", "bmm", "baddbmm"
    ATTENTION = "_scaled_dot_product_"  # its inputs; what it multiplies inside is not seen

    @staticmethod
    def rounded(x):
        if not isinstance(x, torch.Tensor) or x.dtype != torch.float32:
            return x
        bits = x.contiguous().view(torch.int32)
        return ((bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in self.PRODUCTS or name.startswith(self.ATTENTION):
            whole = 1 if name in ("addmm", "baddbmm") else 0  # the summand stays as it is
            some = 4 if name.endswith("_backward") else len(args)  # the gradient, query, key and value
            args = (*args[:whole], *map(self.rounded, args[whole:some]), *args[some:])
        return function(*args, **(kwargs or {}))


def effects(case: Case, attention: str, encoded: Examples) -> dict:
    """How much each flag for speed changes the numbers, against the released way in float32."""
    ways = {"--bf16": {"dtype": torch.bfloat16}, "--fp16": {"dtype": torch.float16}}
    ways |= {"--tf32": {"around": RoundedProducts}, "--bank_dtype float16": {"bank_dtype": torch.float16}}
    return {flag: differences(case, attention, encoded, **way) for flag, way in ways.items()}


def differences(
    case: Case, attention: str, encoded: Examples, dtype=None, around=nullcontext, bank_dtype=torch.float32
) -> dict:
    """Takes two steps each way, dropout off, with the same extra examples; their largest differences.

    The released way in float32, the project's with autocast to `dtype` and banks of `bank_dtype`, inside `around`.
    Loss and gradient norm relative, encodings (unit vectors) absolute.
    """

    def draw(step: int, number: int, examples: int, count: int) -> list[int]:
        return sample(examples, count, (case.plan.seed, step, 0, number)).tolist()

    released, project = Released(case, attention, draw), Project(case, 2, dtype, bank_dtype)
    if scaling := project.optimizer.scaler.state_dict():
        # a scale that float16's gradients bear from the first step; a run comes down to it by skipping steps
        project.optimizer.scaler.load_state_dict(scaling | {"scale": 2.0**8})
    found = {"loss": 0.0, "grad_norm": 0.0}
    torch.set_float32_matmul_precision("highest")
    with ExitStack() as stack, patch.object(torch, "set_float32_matmul_precision"):
        for module in (*case.student.modules(), *released.student.modules()):
            if isinstance(module, nn.Dropout):
                stack.enter_context(patch.object(module, "p", 0.0))
        for step in (case.first_step, case.first_step + 1):
            right = released.step(step)
            with around():
                ours = project.step(step)
            for name, slow, fast in zip(found, right, ours, strict=True):
                found[name] = max(found[name], abs(slow - fast) / abs(slow))
        with around():
            rows = project.encode(encoded).cpu()
        found["encoding"] = (released.encode(encoded) - rows).abs().max().item()
    return found


def show_differences(title: str, found: dict) -> None:
    print(f"{title}:", ", ".join(f"{name} {x:.1e}" for name, x in found.items()), flush=True)


# --- How cost grows, and the floor under it


class Stub:
    """A model whose forward costs nothing."""

    def __init__(self, hidden: int, device: torch.device):
        self.rows = unit_rows(4096, hidden, 0).to(device)

    def train(self, mode: bool = True) -> None:
        pass

    def encode(self, input_ids, **_) -> torch.Tensor:
        return self.rows[: len(input_ids)]


def bookkeeping(way, case: Case, count: int, gigabytes: float) -> dict[int, dict[str, float]]:
    """What `count` examples cost one way apart from any forward, by the number of snapshots.

    `step`: ms of a step's contrastive part; `column`: seconds to add a snapshot; `encoding`: seconds of a pass. A bank
    of more than `gigabytes` is left out.
    """
    hidden, last, clock = case.student.config.hidden_size, len(case.columns["snapshots"]), Clock(case.device)
    examples, column = generated(count, case.args.max_seq_length), unit_rows(count, hidden, 1)
    anchors = torch.randn(case.plan.batch_size, hidden, device=case.device, requires_grad=True)
    encoding = clock.time(way.encode, examples, Stub(hidden, case.device)) / 1e3
    found, single, snapshots = {}, way.grow(None, column), None

    def step(number: int) -> None:
        banks = [single, single, snapshots]
        way.contrastive(anchors, banks, np.arange(len(anchors)), examples.labels[0], number).backward()

    for number in range(1, last + 1):
        if 4e-9 * count * hidden * number > gigabytes:
            break
        new, start = column.clone(), clock.now()
        snapshots = way.grow(snapshots, new)
        added = (clock.now() - start) / 1e3
        if number in (1, 3, last):
            taken = median([clock.time(step, i) for i in range(7)][2:])
            found[number] = {"step": taken, "column": added, "encoding": encoding}
    return found


def extrapolated(measured: dict[int, dict], count: int) -> dict[int, dict[str, float]]:
    """The released way's bookkeeping for `count` examples, from that of the two largest sets measured.

    The gather costs the same, a column grows linearly, a pass with a linear and a quadratic part.
    """
    (n, fewer), (m, more) = sorted(measured.items())[-2:]
    found = {}
    for number, cell in more.items():
        p, q = fewer[number]["encoding"], cell["encoding"]
        encoding = count * (p / n + (q / m - p / n) / (m - n) * (count - n))
        found[number] = cell | {"column": cell["column"] * count / m, "encoding": encoding}
    return found


def growth(ways: dict, case: Case, gigabytes: float) -> list[dict]:
    """Both ways' bookkeeping by examples and snapshots, the released way's extrapolated above MEASURED examples."""
    cells, measured = [], {}
    for count in COUNTS:
        if count <= MEASURED:
            measured[count] = released = bookkeeping(ways["released"], case, count, gigabytes)
        else:
            released = extrapolated(measured, count)
        project = bookkeeping(ways["project"], case, count, gigabytes)
        for number in project.keys() & released.keys():
            cell = {"examples": count, "snapshots": number, "extrapolated": count > MEASURED}
            cells.append(cell | {"released": released[number], "project": project[number]})
    return sorted(cells, key=lambda cell: (cell["examples"], cell["snapshots"]))


def last_epoch(step: dict, encode: dict, cell: dict, batch: int) -> dict:
    """Hours of a run's last epoch by part, for both ways; `cell` is the growth's."""
    hours: dict = {}
    for name in WAYS:
        steps = -(-cell["examples"] // batch)
        parts = {part: ms * steps / 3.6e6 for part, ms in step[name].items() if part not in ("total", PEAK)}
        parts["contrastive"] = cell[name]["step"] * steps / 3.6e6
        # the project makes its masks once in a pass, whatever the number of examples
        forward = encode[name]["student forward"] + (encode[name]["masks"] if name == "released" else 0)
        parts["encoding, forward"] = forward * cell["examples"] / 1e3 / 3.6e6
        parts["encoding, bookkeeping"] = (cell[name]["encoding"] + cell[name]["column"]) / 3.6e3
        hours[name] = {"total": sum(parts.values())} | parts
    return hours | {"ratio": hours["released"]["total"] / hours["project"]["total"]}


def bank_memory(folder: Path, count: int = 20_000, hidden: int = 768, columns: int = 10) -> dict:
    """Megabytes of a bank in host memory, and the peak beyond them while one more column of float32 is added."""
    found, host = {}, torch.device("cpu")
    for name in ("released, float32", "project, float32", "project, float16"):
        column, dtype = unit_rows(count, hidden, 0), getattr(torch, name.split()[1])
        if name.startswith("released"):
            bank = column[:, None].repeat(1, columns, 1)
            add = partial(torch.cat, [bank, column[:, None]], dim=1)
        else:
            bank = Bank(folder, host, dtype)
            for _ in range(columns):
                bank.add("", column.clone(), write=False)
            add = partial(bank.add, "column.safetensors", column, write=True)
        size = dtype.itemsize * hidden
        stored, at_qqp = size * count * columns / 1e6, size * QQP * (columns + 1) / 1e9
        found[name] = {"MB": stored, "adding MB": peak(add, host), "11 of QQP GB": at_qqp}
    return found


def machine_rates(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """The machine's matrix rate in operations a second, and its copy bandwidth in bytes read and written a second."""
    clock, size = Clock(device), 8192 if device.type == "cuda" else 2048
    square, block = torch.randn(size, size, device=device, dtype=dtype), torch.zeros(1 << 26, device=device)
    product, copied = torch.empty_like(square), torch.empty_like(block)
    multiply = min(clock.time(lambda: torch.mm(square, square, out=product)) for _ in range(7))
    copy = min(clock.time(copied.copy_, block) for _ in range(7))
    return 2e3 * size**3 / multiply, 2e3 * 4 * len(block) / copy


def floor(case: Case, rate: float, bandwidth: float) -> dict[str, float]:
    """Milliseconds that the parts of a step need at least: arithmetic at `rate` and compulsory bytes at `bandwidth`.

    Bytes are those of float32 tensors that pass through memory once: scores, masks, weights, gradients and moments;
    activations, written by the forward and read by the backward; bank rows.
    """
    config, batch, snapshots = case.student.config, case.plan.batch_size, len(case.columns["snapshots"])
    lengths = [case.examples.lengths[case.plan.micro_batches(case.first_step + i)[0]] for i in range(20)]
    tokens, squares = np.mean([x.sum() for x in lengths]), np.mean([(x**2).sum() for x in lengths])
    hidden, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    weights = layers * (4 * hidden**2 + 2 * hidden * inner)
    # of the last layer only the first token's output is asked for: all tokens' keys and values, the rest for one
    unneeded = (2 * hidden**2 + 2 * hidden * inner) * (tokens - batch)
    forward = 2 * (weights * tokens - unneeded) + 4 * hidden * ((layers - 1) * squares + tokens)
    backward = 2 * forward - 6 * hidden**2 * tokens  # embeddings are frozen: no gradient below the first layer
    activations = 4 * tokens * layers * (8 * hidden + 2 * inner)
    keys = 3 * case.args.extra_examples + batch * (2 + snapshots)
    work = {  # operations, bytes
        "masks": (0, 8 * weights),
        "student forward": (forward, 12 * weights + activations),
        "backward": (backward, 20 * weights + activations),
        "contrastive": (6 * batch * keys * hidden, 8 * keys * hidden),
        "clip, optimizer": (0, 2 * weights * (4 + 28)),
    }
    return {part: float(1e3 * (operations / rate + size / bandwidth)) for part, (operations, size) in work.items()}


# --- The program


def table(title: str, columns: list[str], rows) -> None:
    print(f"\n{title:36}" + "".join(f"{column:>17}" for column in columns))
    for name, *values in rows:
        print(f"  {name:34}" + "".join(f"{value:17.4g}" for value in values), flush=True)


def show(title: str, result: dict) -> None:
    """Prints both ways side by side, the released way's largest parts first, and the ratio."""
    released, project = result["released"], result["project"]
    parts = sorted({*released, *project}, key=lambda part: (part == PEAK, -released.get(part, 0)))
    table(title, ["released", "project"], ((part, released.get(part, 0), project.get(part, 0)) for part in parts))
    print(f"  ratio {result['ratio']:.2f}", flush=True)


def show_growth(results: dict) -> None:
    columns = [f"{what}{who}" for what in ("step ms, ", "column s, ", "pass s, ") for who in ("rel.", "proj.")]
    rows = []
    for cell in results["growth"]:
        name = f"{cell['examples']:7}, {cell['snapshots']} snapshots{', rel. ~' * cell['extrapolated']}"
        rows.append((name, *(cell[who][what] for what in ("step", "column", "encoding") for who in WAYS)))
    table("Growth without forward, ~ extrapolated", columns, rows)
    if "epoch" in results:
        show(f"The last epoch on {QQP:,} examples, hours", results["epoch"])
    banks = results["banks"].items()
    table(
        "A bank of 20,000 x 768 x 10", list(results["banks"]["project, float32"]), ((x, *y.values()) for x, y in banks)
    )


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data_dir", type=Path, help="QQP's TSV files; default: random tokens in its lengths")
    parser.add_argument("--examples", type=int, default=20_000, help="how many to generate without --data_dir")
    parser.add_argument("--model", type=Path, help="folder of a BERT; default: random weights of --size")
    parser.add_argument("--size", choices=SIZES, default="mini", help="mini is MiniLM-L6's shape")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=128, help="the released way pads every text to it")
    parser.add_argument("--extra", type=int, default=4096, help="bank rows drawn beside the batch's own")
    parser.add_argument("--snapshots", type=int, default=9)
    parser.add_argument("--steps", type=int, default=10, help="steps timed whole, and as many by part")
    parser.add_argument(
        "--encode", type=int, default=4096, help="examples of an encoding pass; the released way's has a sixteenth"
    )
    parser.add_argument("--attention", choices=("eager", "sdpa"), default="eager", help="the released way's")
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast, the project's way only")
    parser.add_argument("--tf32", action="store_true", help="TF32 for the project's way; the released always has it")
    parser.add_argument("--effects", action="store_true", help="also what the flags for speed change; TF32 is emulated")
    parser.add_argument("--growth", action="store_true", help="also how cost grows with examples and snapshots")
    parser.add_argument("--gigabytes", type=float, default=6, help="the largest bank that --growth may build")
    parser.add_argument("--floor", action="store_true", help="also how far each part is above the machine's floor")
    parser.add_argument("--json", type=Path, help="write all figures to this file too")
    options = parser.parse_args(argv)
    if options.data_dir and not options.model:
        parser.error("--data_dir needs --model, whose tokenizer reads it")
    return options


def measure(options: argparse.Namespace, case: Case) -> dict:
    """All figures, printed as they come."""
    device, dtype = case.device, torch.bfloat16 if options.bf16 else None
    # the project's batches are of like length only in a set that makes several; the released way's are all the same
    counts = {"released": max(options.batch, options.encode // 16), "project": options.encode}
    encoded = {name: subset(case.examples, np.arange(count) % len(case.examples)) for name, count in counts.items()}
    some = subset(case.examples, np.arange(64))
    results: dict = {"differences": differences(case, options.attention, some)}
    show_differences("largest differences", results["differences"])
    for name, difference in results["differences"].items():
        if not difference < 1e-3:
            raise SystemExit(f"the two ways differ: {name} by {difference:.1e}")
    if options.effects:
        results["effects"] = effects(case, options.attention, some)
        for flag, found in results["effects"].items():
            show_differences(f"with {flag}", found)
    steps = 2 * options.steps + WARM + 1
    ways = {"released": Released(case, options.attention), "project": Project(case, steps, dtype)}
    step = compare(ways, lambda way, i: way.step(case.first_step + i), options.steps, WARM, device)
    show("Training step, ms", step)
    encode = compare(ways, lambda way, _: way.encode(encoded[way.name]), PASSES, 1, device)
    for name, count in counts.items():
        encode[name] = {part: x if part == PEAK else 1e3 * x / count for part, x in encode[name].items()}
    encode["ratio"] = encode["released"]["total"] / encode["project"]["total"]
    show("Encoding 1,000 examples, ms", encode)
    results |= {"step": step, "encode": encode}
    if options.floor:
        rate, bandwidth = machine_rates(device, dtype or torch.float32)
        parts = {part: (least, step["project"][part]) for part, least in floor(case, rate, bandwidth).items()}
        parts = {part: {"floor": x, "measured": y, "times": y / x} for part, (x, y) in parts.items()}
        results["floor"] = {"rate": rate, "bandwidth": bandwidth, "parts": parts}
        title = f"At {rate / 1e9:.0f} G operations/s, {bandwidth / 1e9:.1f} GB/s"
        table(title, ["floor", "measured", "times"], ((part, *row.values()) for part, row in parts.items()))
    if options.growth:
        cells = growth(ways, case, options.gigabytes)
        results |= {"growth": cells, "banks": bank_memory(Path(case.args.output_dir))}
        if cells[-1]["examples"] == QQP:
            results["epoch"] = last_epoch(step, encode, cells[-1], options.batch)
        show_growth(results)
    return results


def main(argv: list[str] | None = None) -> dict:
    options = parse(argv)
    transformers.logging.set_verbosity_error()
    random.seed(0)
    device = torch.device(options.device)
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu()
    command = shlex.join(["python", "-m", "tests.benchmarks.training", *(sys.argv[1:] if argv is None else argv)])
    versions = f"python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}"
    about = {"machine": f"{machine}, {torch.get_num_threads()} threads", "versions": versions, "command": command}
    with TemporaryDirectory() as folder:
        case = build(options, Path(folder))
        lengths = case.examples.lengths
        print(*about.values(), f"{len(lengths)} examples, {lengths.mean():.1f} tokens on average", sep="\n", flush=True)
        results = about | measure(options, case)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")
    return results


if __name__ == "__main__":
    main()
