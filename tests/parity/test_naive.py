"""Each step of training, option by option, against the naive formulas of naive.py, from the same weights."""

import numpy as np
import pytest
import torch
from naive import Naive, Recipe

import emmental
from emmental import set_packing
from emmental.contrast.bank import Bank, sample
from emmental.contrast.encoding import fill_from_teacher
from emmental.data.batches import Plan
from emmental.data.examples import Examples
from emmental.pruning.schedule import MaskSchedule
from emmental.training.loop import Progress, train
from emmental.training.objective import Objective
from emmental.training.optimizer import Optimizer
from emmental.utils.precision import Precision

ROWS, LENGTH, CPU = 20, 10, torch.device("cpu")
SOFT = {"method": "sigmoied_threshold", "initial": 0.01, "penalty": "l1", "final_lambda": 50}
GLOBAL = {"method": "threshold", "cut_every": 3}
SPANS = {"task": "spans", "supervised": 0.0, "unsupervised": 0.5}
CASES = {
    "topK": {},
    "one epoch and a half": {"epochs": 1.5, "warmup": 1},
    "max_steps": {"max_steps": 4, "warmup": 1},
    "no warm-up": {"warmup": 0},
    "accumulation, decay": {"accumulation": 2, "decay": 0.1, "warmup": 1},
    "tight clipping": {"clip": 0.01},
    "mean-pooling, three classes": {"alignrep": "mean-pooling", "classes": 3},
    "supcon": {"normalization": "supcon", "supervised": 1.0, "tau": 0.05},
    "PrC": {"banks": ("pretrained",)},
    "SnC, more extra examples than there are": {"banks": ("snapshots",), "extra": 500},
    "FiC": {"banks": ("finetuned",), "alignrep": "mean-pooling"},
    "no contrast": {"banks": ()},
    "magnitude": {"method": "magnitude", "final": 0.3},
    "threshold": {"method": "threshold", "initial": -2, "final": 0.5, "penalty": "l0", "final_lambda": 20},
    "soft": SOFT,
    "soft, mean-pooling": SOFT | {"alignrep": "mean-pooling"},
    "l0": {"method": "l0", "penalty": "l0", "final_lambda": 25, "banks": ("finetuned",)},
    "global": GLOBAL,
    "scores": {"task": "scores", "supervised": 0.0, "classes": 1},
    "spans": SPANS,
    "spans, mean-pooling": SPANS | {"alignrep": "mean-pooling"},
    "spans, soft": SPANS | SOFT,
    "spans, global": SPANS | GLOBAL | {"initial": 0.8, "initial_warmup": 0},
}


def model_of(recipe: Recipe, method: str | None, classes: int, chance: torch.Generator) -> torch.nn.Module:
    """A random model, with random scores."""
    sizes = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 24, "max_position_embeddings": 16, "num_labels": classes}
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = emmental.MaskedBertConfig(**sizes, **none, pruning_method=method, alignrep=recipe.alignrep)
    head = "QuestionAnswering" if recipe.task == "spans" else "SequenceClassification"
    model = getattr(emmental, f"MaskedBertFor{head}")(config)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if not name.endswith("LayerNorm.weight"):
                value.normal_(0, 1.0 if name.endswith("mask_scores") else 0.2, generator=chance)
    set_packing(model, recipe.task != "spans")  # as released padding is a part of a span
    return model.eval()


def state_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def data_of(recipe: Recipe, classes: int, chance: torch.Generator) -> tuple[tuple, tuple]:
    """A random set, padded: input_ids, attention_mask and token_type_ids; and its labels."""
    mask = (torch.arange(LENGTH) < torch.randint(3, LENGTH + 1, (ROWS, 1), generator=chance)).long()
    ids, types = (torch.randint(0, most, mask.shape, generator=chance) * mask for most in (30, 2))
    if recipe.task == "scores":
        return (ids, mask, types), (5 * torch.rand(ROWS, generator=chance),)
    tensors = 2 if recipe.task == "spans" else 1
    return (ids, mask, types), tuple(torch.randint(0, classes, (ROWS,), generator=chance) for _ in range(tensors))


def start_training(recipe: Recipe, plan: Plan, model, teacher, inputs: tuple, labels: tuple, folder) -> tuple:
    """The steps of `train`, each of which is made when asked for, and the banks that it fills."""
    ids, mask, types = inputs
    offsets = np.concatenate([[0], mask.sum(1).cumsum(0).numpy()])
    examples = Examples(ids[mask == 1].numpy(), types[mask == 1].numpy(), offsets, labels, pad_to=LENGTH)
    precision, banks = Precision(CPU), {name: Bank(folder, CPU, torch.float32) for name in recipe.banks}
    bank = banks.get("finetuned", Bank(folder, CPU, torch.float32))
    logits = fill_from_teacher(bank, teacher, examples, precision, contrasted="finetuned" in banks)
    masks = MaskSchedule(
        *(recipe.total, recipe.warmup, recipe.initial, recipe.final, recipe.initial_warmup, recipe.final_warmup),
        *(recipe.final_lambda, recipe.first_step, recipe.cut_every),
    )
    rates = {"learning_rate": recipe.lr, "mask_scores_learning_rate": recipe.scores_lr, "weight_decay": recipe.decay}
    length = {"warmup_steps": recipe.warmup, "total_steps": recipe.total}
    optimizer = Optimizer(model, **rates, **length, epsilon=1e-8, max_grad_norm=recipe.clip)
    objective = Objective(
        *(recipe.ce, recipe.kl, recipe.temperature, recipe.tau, recipe.unsupervised, recipe.supervised),
        *(recipe.normalization, recipe.penalty, recipe.extra),
    )
    return train(model, examples, banks, logits, plan, masks, objective, optimizer, Progress(), precision), banks


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_step_is_that_of_the_formulas(case, tmp_path):
    settings, chance = dict(case), torch.Generator().manual_seed(1)
    plan_of = {"accumulation": 1, "epochs": 3, "max_steps": -1}
    plan = Plan(ROWS, 6, seed=5, **{name: settings.pop(name, value) for name, value in plan_of.items()})
    classes = settings.pop("classes", 2)
    recipe = Recipe(total=plan.total_steps, per_epoch=plan.steps_per_epoch, **settings)
    inputs, labels = data_of(recipe, classes, chance)
    model, teacher = (model_of(recipe, method, classes, chance) for method in (recipe.method, None))
    naive = Naive(
        *(recipe, state_of(model), state_of(teacher), inputs, labels),
        draw=lambda bank, step, number, count: sample(ROWS, count, (plan.seed, step, number, bank)),
    )
    steps, banks = start_training(recipe, plan, model, teacher, inputs, labels, tmp_path)

    limit = 2e-5 if recipe.warmup else 1e-4  # Adam's first step at full rate is its sign, rounding's where that is all
    for step in range(recipe.total):
        if step % recipe.per_epoch == 0:
            naive.epoch(step // recipe.per_epoch)
        torch.manual_seed(step)  # l0's noise
        expected, norm, threshold, regu_lambda = naive.step(step, plan.micro_batches(step))
        torch.manual_seed(step)
        done = next(steps)
        assert (done.threshold, done.regu_lambda) == pytest.approx((threshold, regu_lambda), rel=1e-12)
        assert {name: float(value) for name, value in done.parts.items()} == pytest.approx(expected, rel=1e-5, abs=1e-6)
        assert float(done.grad_norm) == pytest.approx(norm, rel=1e-4)
        for name, value in state_of(model).items():
            if not name.endswith(("key.bias", "qa_outputs.bias")):  # their gradients are rounding
                assert (value - naive.weights[name]).abs().max() < limit, (step, name)
        naive.weights = state_of(model)  # so that every step starts from the same masks
    assert next(steps, None) is None
    for name, columns in naive.banks.items():
        assert len(banks[name].columns) == len(columns)
        for ours, column in zip(banks[name].columns, columns, strict=True):
            torch.testing.assert_close(ours, column, atol=1e-5, rtol=0)
