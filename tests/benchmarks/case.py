"""A run shortly after its last snapshot, the same for both ways: its flags, data, models and banks."""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoTokenizer

from emmental.arguments import GlueArguments
from emmental.data import glue
from emmental.data.batches import Plan
from emmental.data.examples import Examples
from emmental.model import loading
from emmental.model.heads import CLASSIFIES
from emmental.model.masked_classes import MaskedBertConfig, MaskedBertForSequenceClassification
from emmental.pruning.masked_linear import masked_linears
from emmental.utils.flags import parse as parse_flags

SIZES = {
    "base": {},
    "mini": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
    "tiny": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
}
PUBLISHED = """--do_train --overwrite_output_dir --task_name qqp --learning_rate 3e-5 --mask_scores_learning_rate 1e-2
    --use_contrastive_loss --contrastive_temperature 0.1 --alignrep cls --cl_unsupervised_loss_weight 0.1
    --cl_supervised_loss_weight 10 --use_distill --ce_loss_weight 0.1 --distill_loss_weight 0.9"""
KEPT = 0.1  # share of the weights that is left late in a run


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
            models.append(loading.load(CLASSIFIES, name, trained=False, **settings))
        else:
            models.append(MaskedBertForSequenceClassification(MaskedBertConfig(**SIZES[options.size], **settings)))
    for linear in masked_linears(models[0]).values():
        nn.init.normal_(linear.mask_scores)
    rows = [unit_rows(len(examples), models[0].config.hidden_size, seed) for seed in range(options.snapshots + 2)]
    columns = {"pretrained": rows[:1], "finetuned": rows[1:2], "snapshots": rows[2:]}
    models = [model.to(options.device) for model in models]
    return Case(args, torch.device(options.device), examples, args.plan(len(examples)), *models, columns)
