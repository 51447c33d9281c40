"""The objects of a run are made of the flags: each value has its own place in them."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from emmental import MaskedBertConfig, MaskedBertForSequenceClassification, build
from emmental.arguments import GlueArguments
from emmental.data.batches import Plan
from emmental.data.examples import Examples
from emmental.training.objective import Objective
from emmental.utils.flags import parse
from emmental.utils.precision import Precision

CPU = Precision(torch.device("cpu"))
FLAGS = """--task_name qqp --model_name_or_path x --do_train --teacher_name_or_path t --use_contrastive_loss
    --use_distill --pruning_method sigmoied_threshold --initial_threshold 0.01 --final_threshold 0.2 --regularization l1
    --final_lambda 7 --warmup_steps 5 --initial_warmup 2 --final_warmup 3 --learning_rate 0.03
    --mask_scores_learning_rate 0.04 --weight_decay 0.05 --adam_epsilon 0.06 --max_grad_norm 0.07 --ce_loss_weight 0.11
    --distill_loss_weight 0.12 --temperature 3 --contrastive_temperature 0.13 --cl_unsupervised_loss_weight 0.14
    --cl_supervised_loss_weight 0.15 --cl_normalization supcon --extra_examples 17 --target_sparsity 0.6"""


@pytest.fixture
def parsed(tmp_path):
    return lambda *more: parse(GlueArguments, [*FLAGS.split(), *more, "--output_dir", str(tmp_path / "out")])


def state_of(args, task):
    """Of a run of 100 steps, 20 an epoch."""
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = MaskedBertConfig(**sizes, intermediate_size=24, pruning_method="sigmoied_threshold")
    model = MaskedBertForSequenceClassification(config)
    return build.initial_state(args, task, model, Plan(80, 4, 1, 5, 0), {}, CPU, 0)


def test_objective_has_every_weight_and_temperature(parsed):
    args = parsed()
    expected = Objective(
        ce_weight=0.11, distill_weight=0.12, distill_temperature=3, contrastive_temperature=0.13,
        unsupervised_weight=0.14, supervised_weight=0.15, normalization="supcon", penalty="l1", extra_examples=17,
    )  # fmt: skip
    assert build.build_objective(args, SimpleNamespace(labels=("0", "1"))) == expected
    for labels in ((), None):  # a regression and a span are not contrasted by label
        assert build.build_objective(args, SimpleNamespace(labels=labels)).supervised_weight == 0


@pytest.mark.parametrize("rate, warned", [(0.027, True), (0.029, False)])
def test_scores_that_cannot_reach_the_threshold_are_warned_of(parsed, capsys, rate, warned):
    """A warm-up of 5 steps and 95 down to 0 sum to 50 rates; from 0 to a sigmoid of 0.2 it is log(4) = 1.39."""
    state_of(parsed("--mask_scores_learning_rate", str(rate)), SimpleNamespace(labels=("0", "1"), first_step=0))
    line = "warning: nothing would be pruned before calibration: scores have to fall by 1.39 to --final_threshold 0.2"
    assert (line in capsys.readouterr().out) == warned


@pytest.mark.parametrize("warmup, few", [(15, False), (16, True)])
def test_a_threshold_that_moves_in_few_steps_is_warned_of(parsed, capsys, warmup, few):
    state_of(parsed("--warmup_steps", str(warmup)), SimpleNamespace(labels=("0", "1"), first_step=0))
    said = capsys.readouterr().out
    assert f"threshold: from 0.01 to 0.2 between steps {2 * warmup} and {100 - 3 * warmup} of 100\n" in said
    assert ("warning: the threshold moves in only 20 of 100 steps" in said) == few


def test_a_model_in_the_runs_own_folder_is_no_part_of_what_resuming_compares(parsed, tmp_path):
    def fingerprint(folder: str, content: str) -> dict:
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "config.json").write_text(content)
        args = parsed("--model_name_or_path", str(tmp_path / folder), "--overwrite_output_dir")
        ids = np.zeros(3, dtype=np.int32)
        return build.resume_fingerprint(args, Examples(ids, ids, np.arange(4), (torch.zeros(3),)))

    before, after = '{"model_type": "bert"}', '{"model_type": "masked_bert", "threshold": 0.1}'
    assert fingerprint("out", before) == fingerprint("out", after)
    assert fingerprint("other", before)["model_config"] != fingerprint("other", after)["model_config"]


def test_optimizer_and_schedule_have_theirs(parsed):
    state = state_of(parsed(), SimpleNamespace(labels=("0", "1"), first_step=1))
    optimizer, masks = state.optimizer, state.masks
    assert (optimizer.epsilon, optimizer.max_grad_norm, optimizer.warmup_steps) == (0.06, 0.07, 5)
    groups = [(group["rate"], group["decay"]) for group in optimizer.adamw.param_groups]
    assert groups == [("mask_scores", 0), ("weights", 0.05), ("weights", 0)]  # the last: biases and LayerNorms
    assert optimizer.learning_rates(5) == pytest.approx({"weights": 0.03, "mask_scores": 0.04})  # the warm-up's end
    assert (masks.initial_threshold, masks.final_threshold, masks.final_lambda) == (0.01, 0.2, 7)
    assert (masks.initial_warmup, masks.final_warmup, masks.first_step, masks.total_steps) == (2, 3, 1, 100)
    assert (masks.controller.start, masks.controller.end, masks.controller.target) == (10, 100 - 15, 0.6)
    assert masks.scores_lr(5) == pytest.approx(0.04)  # the warm-up's end


@pytest.mark.parametrize("mode, dtype", [("train", "float16"), ("eval", "float32")])
def test_snapshots_alone_have_dropout_and_all_banks_their_type(parsed, mode, dtype):
    args = parsed("--snapshot_mode", mode, "--bank_dtype", dtype)
    banks = state_of(args, SimpleNamespace(labels=("0", "1"), first_step=0)).banks
    assert {name: bank.dropout for name, bank in banks.items()} == {
        "pretrained": False, "finetuned": False, "snapshots": mode == "train"
    }  # fmt: skip
    assert {bank.dtype for bank in banks.values()} == {getattr(torch, dtype)}


@pytest.mark.parametrize("padded", [False, True])
def test_the_teacher_represents_a_text_as_the_student_does(monkeypatch, padded):
    made = []
    monkeypatch.setattr(build, "saved_config", lambda name: {"model_type": "bert"})
    monkeypatch.setattr(build.loading, "load", lambda head, name, **settings: made.append(settings) or nn.Module())
    monkeypatch.setattr(build, "set_packing", lambda model, on: made.append(on))
    args = SimpleNamespace(teacher_name_or_path="t", alignrep="mean-pooling", pad_to_max_length=padded)
    build.load_teacher(args, SimpleNamespace(labels=("0", "1")), CPU)
    settings, packing = made
    assert settings["alignrep"] == "mean-pooling" and packing == (not padded)  # padding is computed where asked for
