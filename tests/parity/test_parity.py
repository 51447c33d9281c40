"""Replays what the authors' released code computed (parity/README.md) through the public names of `emmental`."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import emmental
from emmental import contrastive_loss, regularization, schedule_threshold, set_packing, set_threshold
from emmental.model.packing import Packing
from emmental.training.objective import distillation, task_loss
from emmental.training.optimizer import Optimizer

HERE = Path(__file__).parent
ROUNDING_NOISE = ("key.bias", "qa_outputs.bias")  # their gradients are mathematically zero


def load(name: str) -> dict[str, torch.Tensor]:
    with np.load(HERE / f"{name}.npz") as arrays:
        return {
            key: arrays[key].item() if arrays[key].dtype.kind == "U" else torch.from_numpy(arrays[key])
            for key in arrays.files
        }


def below(arrays: dict, prefix: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}


def close(actual, expected, atol: float = 0.0, rtol: float = 0.0) -> None:
    torch.testing.assert_close(actual, expected, atol=atol, rtol=rtol, check_dtype=False)


def tiny(weights: dict, method: str | None, alignrep: str = "cls") -> torch.nn.Module:
    """The tiny BERT with the weights of a file, of the kind that its head tells, in evaluation mode."""
    qa = "qa_outputs.weight" in weights
    head = weights["qa_outputs.weight" if qa else "classifier.weight"]
    config = emmental.MaskedBertConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        num_labels=len(head), pruning_method=method, alignrep=alignrep,
    )  # fmt: skip
    model = (emmental.MaskedBertForQuestionAnswering if qa else emmental.MaskedBertForSequenceClassification)(config)
    unused = ["pooler"] if qa else []
    if method in (None, "magnitude"):
        unused.append("mask_scores")
    model.load_state_dict({key: value for key, value in weights.items() if not any(part in key for part in unused)})
    return model.eval()


def inputs(arrays: dict, rows=slice(None)) -> dict[str, torch.Tensor]:
    return {name: arrays[name][rows] for name in ("input_ids", "attention_mask", "token_type_ids") if name in arrays}


A, B, C = load("a_binarizers"), load("b_schedule"), load("c_regularization")
D, E = load("d_tiny_forward"), load("e_contrastive")
A_COUNTS, B_SETTINGS = (json.loads((HERE / f"{name}.json").read_text()) for name in ("a_binarizers", "b_schedule"))


# a: masks and the masked linear layer


@pytest.mark.parametrize("key", [key for key in A if key.startswith(("topk/", "magnitude/"))])
def test_ranked_masks_equal_the_recorded(key):
    method, name, threshold = key.split("/")
    scores = A[f"S/{name}"]
    binarizer = emmental.TopKBinarizer if method == "topk" else emmental.MagnitudeBinarizer
    mask, expected = binarizer.apply(scores, float(threshold)), A[key]
    assert mask.dtype == scores.dtype and int(mask.sum()) == A_COUNTS[key] == int(float(threshold) * scores.numel())
    ranked = scores.abs() if method == "magnitude" else scores
    if 0 < A_COUNTS[key] < scores.numel():  # which of those that tie at the cut survive is arbitrary
        decided = ranked != ranked[expected.bool()].min()
        assert torch.equal(mask[decided], expected[decided].float())
    else:
        assert torch.equal(mask, expected.float())


@pytest.mark.parametrize("key", [key for key in A if key.startswith("threshold/")])
def test_threshold_masks_equal_the_recorded(key):
    _, name, threshold, sigmoid = key.split("/")
    scores, record = A[f"S/{name}"], A_COUNTS[key]
    mask = emmental.ThresholdBinarizer.apply(scores, float(threshold), sigmoid == "sigmoid=True")
    if record["count"] < record["floor"]:  # mended (D28): ties no longer empty the mask
        assert name in ("zeros_32x32", "zeros_1x1", "allneg_ties_40x50")
        assert int(mask.sum()) == record["floor"]
        assert scores[mask.bool()].min() >= scores[~mask.bool()].max() if 0 < mask.sum() < mask.numel() else True
    else:
        assert int(mask.sum()) == record["count"]
        assert torch.equal(mask, A[key].float())


LINEAR = sorted({tuple(key.split("/")[1:3]) for key in A if re.match("linear/.*/.*/y", key)})


@pytest.mark.parametrize(("method", "threshold"), LINEAR)
def test_masked_linear_equals_the_recorded(method, threshold):
    given, expected = below(A, "linear/"), below(A, f"linear/{method}/{threshold}/")
    linear = emmental.MaskedLinear(12, 9, pruning_method=method).eval()
    state = {"weight": given["W"], "bias": given["b"]}
    linear.load_state_dict(state if method == "magnitude" else state | {"mask_scores": given["scores"]})
    set_threshold(linear, float(threshold))
    x = given["X"].clone().requires_grad_()
    y = linear(x)
    loss = (y * given["C"]).sum()
    loss.backward()
    close(y, expected["y"], atol=1e-6, rtol=1e-6)
    close(loss, expected["loss"], atol=1e-5)
    gradients = {"W": linear.weight, "b": linear.bias, "X": x}
    if method != "magnitude":
        gradients["scores"] = linear.mask_scores
    assert {f"grad_{name}" for name in gradients} == {name for name in expected if name.startswith("grad_")}
    for name, of in gradients.items():
        close(of.grad, expected[f"grad_{name}"], atol=1e-6, rtol=1e-6)


def test_linear_covers_all_methods():
    assert {method for method, _ in LINEAR} == {"topK", "threshold", "sigmoied_threshold", "magnitude", "l0"}


# b, c: schedule and penalties


@pytest.mark.parametrize("setting", sorted({key.split("/")[0] for key in B}))
def test_schedule_equals_the_recorded(setting):
    steps = B[f"{setting}/step"].tolist()
    values = [schedule_threshold(step, **B_SETTINGS[setting]["params"]) for step in steps]
    threshold, regu_lambda = (torch.tensor(column, dtype=torch.float64) for column in zip(*values, strict=True))
    close(threshold, B[f"{setting}/threshold"], rtol=1e-12)
    close(regu_lambda, B[f"{setting}/lambda"], rtol=1e-12)


@pytest.mark.parametrize("mode", ["l1", "l0"])
@pytest.mark.parametrize("std", ["std0.0", "std1.0", "std4.0"])
def test_penalty_equals_the_recorded(std, mode):
    model = tiny(below(D, "weights/seq2/"), "sigmoied_threshold")
    scores = {name: value for name, value in below(C, f"{std}/").items() if name.endswith("mask_scores")}
    assert not model.load_state_dict(scores, strict=False).unexpected_keys and len(scores) == 12
    value = regularization(model, mode)
    value.backward()
    close(value, C[f"{std}/value_{mode}_glue"], atol=1e-6)
    close(value, C[f"{std}/value_{mode}_squad"], atol=1e-6)
    query = model.bert.encoder.layer[0].attention.self.query.mask_scores
    close(query.grad, C[f"{std}/grad_{mode}_layer0_query"], atol=1e-9, rtol=1e-5)


# d: forward of the tiny BERT

FORWARDS = sorted({tuple(key.split("/")[:3]) for key in D if re.match(r"(seq\d|qa)/", key)})


def hidden_states(model: torch.nn.Module, batch: dict) -> list[torch.Tensor]:
    """What the model's embeddings and each of its layers return."""
    seen = []

    def record(_module, _inputs, output):
        seen.append(output[0] if isinstance(output, tuple) else output)

    hooks = [part.register_forward_hook(record) for part in (model.bert.embeddings, *model.bert.encoder.layer)]
    model.hidden_states(**batch)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize(("kind", "method", "threshold"), FORWARDS)
def test_forward_equals_the_recorded(kind, method, threshold, packing):
    expected, batch = below(D, f"{kind}/{method}/{threshold}/"), inputs(D)
    real = batch["attention_mask"].bool()
    model = tiny(below(D, f"weights/{kind}/"), method)
    set_packing(model, packing)
    set_threshold(model, float(threshold))
    with torch.no_grad():
        output, hidden = model(**batch), hidden_states(model, batch)
        for alignrep in ("cls", "mean-pooling"):
            model.config.alignrep = alignrep
            close(model.encode(**batch), expected[f"encode_{alignrep}"], atol=1e-5)
            raw = model(**batch).representation
            close(raw / raw.norm(dim=-1, keepdim=True), expected[f"encode_{alignrep}"], atol=1e-5)
    assert len(hidden) == 3
    unpacked = Packing(batch["attention_mask"], model.device).unpack
    for number, states in enumerate(hidden):
        theirs = expected[f"hidden{number}"]
        close(*(unpacked(states)[real], theirs[real]) if packing else (states, theirs), atol=1e-5)
    if kind != "qa":
        close(output.logits, expected["logits"], atol=1e-5)
        close(task_loss(output.classifications, (D[f"labels{kind[-1]}"],)), expected["loss"], atol=1e-5)
        return
    for name in ("start_logits", "end_logits"):
        close(output[name][real], expected[name][real], atol=1e-5)
        if packing:  # mended: padding takes no part in the span
            assert (output[name][~real] < -1e3).all()
        else:
            close(output[name], expected[name], atol=1e-5)
    if not packing:
        positions = D["start_positions"], D["end_positions"]
        close(task_loss(output.classifications, positions), expected["loss"], atol=1e-5)


def test_forward_covers_all_models_and_methods():
    assert {kind for kind, _, _ in FORWARDS} == {"seq1", "seq2", "seq3", "qa"}
    assert {method for _, method, _ in FORWARDS} == {"topK", "sigmoied_threshold", "magnitude", "l0"}


# e: contrastive losses

CASES = sorted(key.removesuffix("/loss") for key in E if re.match("(seq|qa)/.*/loss", key))
TERMS = {"unsup": (1.0, 0.0), "sup": (0.0, 1.0), "both": (0.1, 10.0)}  # unsupervised and supervised weight


def mean_pooling(states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    return torch.stack([row[: int(mask.sum())].mean(0) for row, mask in zip(states, attention_mask, strict=True)])


def test_contrastive_cases_are_all_there():
    assert len(CASES) == 108


@pytest.mark.parametrize("case", CASES)
def test_contrastive_loss_equals_the_recorded(case):
    _, classes, alignrep, name, _, term = case.split("/")
    expected = below(E, f"{case}/")
    labels = E["labels_bank_3class" if classes == "3class" else "labels_bank"]
    bank, index, others = E[f"bank/{name}"], E["idx"], expected["extra_idx"]
    given = E["pooled_output" if alignrep == "cls" else "all_output"].clone().requires_grad_()
    anchors = given if alignrep == "cls" else mean_pooling(given, E["attention_mask"])

    def value(normalization: str) -> torch.Tensor:
        return contrastive_loss(
            anchors, bank[index], bank[others], index, others, labels[index], labels[others],
            temperature=0.1, unsupervised_weight=TERMS[term][0], supervised_weight=TERMS[term][1],
            normalization=normalization,
        )  # fmt: skip

    loss = value("released")
    loss.backward()
    close(loss, expected["loss"], rtol=1e-5)
    gradient = expected["grad_pooled_output" if alignrep == "cls" else "grad_all_output"]
    close(given.grad, gradient, atol=1e-5 * float(gradient.abs().max()), rtol=1e-4)
    if term != "both":
        close(value("supcon"), expected["standard_mean_per_anchor_value_for_single_term"], rtol=1e-5)


FULL_WEIGHTS = {"seq": (0.1, 10.0), "qa": (0.1, 0.0)}


# the recorded question-answering losses count padding, which packing leaves out
@pytest.mark.parametrize(("kind", "packing"), [("seq", False), ("seq", True), ("qa", False)])
def test_gradients_of_a_step_equal_the_recorded(kind, packing):
    case, index = below(E, f"full/{kind}/"), E["idx"]
    model = tiny(below(case, "weights/"), "topK").train()
    set_packing(model, packing)
    set_threshold(model, 0.5)
    output = model(input_ids=case["input_ids"], attention_mask=E["attention_mask"])
    labels = (E["labels_bank"][index],) if kind == "seq" else (case["start_positions"], case["end_positions"])
    loss = 0.1 * task_loss(output.classifications, labels)
    for name in ("pretrained", "finetuned", "snaps"):
        bank, others = E[f"bank/{name}"], case[f"extra_idx_{name}"]
        loss = loss + contrastive_loss(
            output.representation, bank[index], bank[others], index, others, E["labels_bank"][index],
            E["labels_bank"][others], temperature=0.1, unsupervised_weight=FULL_WEIGHTS[kind][0],
            supervised_weight=FULL_WEIGHTS[kind][1],
        )  # fmt: skip
    loss.backward()
    close(loss, case["loss"], rtol=1e-5)
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert gradients.keys() == below(case, "grad/").keys()
    for name, gradient in below(case, "grad/").items():
        close(gradients[name], gradient, atol=1e-5 * max(1.0, float(gradient.abs().max())))


# f: training, step by step


class Run:
    """A recorded run: its arguments, data and steps, and the models, optimizer and banks that replay it."""

    def __init__(self, name: str, packing: bool):
        run = load(name)
        self.args, self.meta = json.loads(run["args"]), json.loads(run["meta"])
        self.init, self.final, self.recorded_banks = below(run, "init/"), below(run, "final/"), below(run, "bank/")
        self.data, self.steps = below(run, "data/"), below(run, "step/")
        self.qa, self.total = "start_positions" in self.data, len(self.steps["sample_idx"])
        names = ("start_positions", "end_positions") if self.qa else ("labels",)
        self.labels = tuple(self.data[name] for name in names)
        self.model = tiny(self.init, self.args["pruning_method"])
        teacher = tiny(below(run, "teacher/"), None)
        for model in (self.model, teacher):
            set_packing(model, packing)
        self.banks = {"finetuned": self.column(teacher)}
        with torch.no_grad():
            outputs = [teacher(**batch).classifications for batch in self.batches()]
        self.teacher_logits = tuple(torch.cat(parts) for parts in zip(*outputs, strict=True))
        names = ("learning_rate", "mask_scores_learning_rate", "weight_decay", "max_grad_norm", "warmup_steps")
        recipe = {name: self.args[name] for name in names}
        self.optimizer = Optimizer(self.model, **recipe, epsilon=self.args["adam_epsilon"], total_steps=self.total)

    def batches(self) -> list[dict[str, torch.Tensor]]:
        return [inputs(self.data, slice(start, start + 8)) for start in range(0, 64, 8)]

    def column(self, model: torch.nn.Module) -> torch.Tensor:
        """All examples' representations, (examples, 1, hidden)."""
        with torch.no_grad():
            return torch.cat([model.encode(**batch) for batch in self.batches()])[:, None]

    def start_epoch(self, t: int, threshold: float) -> None:
        """Fills the bank of an epoch that starts, in the mode and at the threshold of the recorded run."""
        assert threshold == pytest.approx(self.meta["encode_threshold_per_batch"][t], rel=1e-12)
        set_threshold(self.model, threshold)
        self.model.train(bool(self.meta["training_flag_at_encode"][t]))
        column, name = self.column(self.model), "snaps" if t else "pretrained"
        self.banks[name] = torch.cat([self.banks[name], column], 1) if name in self.banks else column
        self.model.train()

    def schedule(self, t: int) -> tuple[float, float]:
        args = self.args
        return schedule_threshold(
            t + self.qa,  # as released, classification counts its steps from 0, question answering from 1
            self.total, args["warmup_steps"], args["initial_threshold"], args["final_threshold"],
            args["initial_warmup"], args["final_warmup"], args["final_lambda"],
        )  # fmt: skip

    def contrastive_term(self, bank: str, t: int, anchors: torch.Tensor) -> torch.Tensor:
        index, others = (self.steps[name][t] for name in ("sample_idx", f"extra_idx_{bank}"))
        others = others[others >= 0]
        if bank not in self.banks:
            assert len(others) == 0
            return torch.tensor(0.0)
        rows, labels = self.banks[bank], self.data.get("labels")
        return contrastive_loss(
            anchors, rows[index], rows[others], index, others,
            None if self.qa else labels[index], None if self.qa else labels[others],
            temperature=self.args["contrastive_temperature"],
            unsupervised_weight=self.args["cl_unsupervised_loss_weight"],
            supervised_weight=self.args["cl_supervised_loss_weight"] or 0.0,
        )  # fmt: skip

    def loss(self, t: int, regu_lambda: float) -> torch.Tensor:
        """The batch's loss; every part of it is compared with what was recorded."""
        args, index = self.args, self.steps["sample_idx"][t]
        expected = {key: value[t] for key, value in self.steps.items() if value.ndim and len(value)}
        output = self.model(**inputs(self.data, index))
        for name in ("start_logits", "end_logits") if self.qa else ("logits",):
            close(output[name], expected[name], atol=1e-4)
        loss = args["ce_loss_weight"] * task_loss(output.classifications, tuple(x[index] for x in self.labels))
        for number, bank in enumerate(("pretrained", "finetuned", "snaps")):
            term = self.contrastive_term(bank, t, output.representation)
            close(term, expected["contrastive_terms_weighted"][number], atol=1e-4)
            loss = loss + term
        close(loss, expected["model_loss"], atol=1e-4)
        teacher_logits = tuple(x[index] for x in self.teacher_logits)
        distill = distillation(output.classifications, teacher_logits, args["temperature"])
        close(distill / args["temperature"] ** 2, expected["distill_kl"].mean(), atol=1e-5)
        loss = loss + args["distill_loss_weight"] * distill
        if args["regularization"]:
            penalty = regularization(self.model, args["regularization"])
            close(penalty, expected["regu"], atol=1e-5)
            loss = loss + regu_lambda * penalty
        close(loss, expected["total_loss"], atol=1e-4)
        return loss


TRAJECTORIES = [
    ("f_topk_seq_const0", False),
    ("f_topk_seq_const0", True),
    ("f_soft_seq_l1", False),
    ("f_soft_seq_l1", True),
    ("f_topk_qa", False),
]


@pytest.mark.parametrize(("name", "packing"), TRAJECTORIES)
def test_training_follows_the_recorded_run(name, packing):
    run = Run(name, packing)
    threshold = run.args["initial_threshold"]
    for t in range(run.total):
        if t % (run.total // 3) == 0:
            run.start_epoch(t, threshold)
        threshold, regu_lambda = run.schedule(t)
        assert threshold == pytest.approx(float(run.steps["threshold"][t]), rel=1e-12)
        assert regu_lambda == pytest.approx(float(run.steps["lambda"][t]), rel=1e-12)
        set_threshold(run.model, threshold)
        run.model.zero_grad()
        run.loss(t, regu_lambda).backward()
        norm = float(run.optimizer.step(t))
        assert norm == pytest.approx(float(run.steps["grad_norm"][t]), rel=1e-4)

    assert run.banks.keys() == run.recorded_banks.keys()
    for bank, recorded in run.recorded_banks.items():
        close(run.banks[bank], recorded, atol=1e-5)
    # `final` holds what was trained; what was not, the embeddings, stays as it was
    frozen = {key: value for key, value in run.init.items() if "embeddings" in key}
    state, final = run.model.state_dict(), frozen | run.final
    assert state.keys() == {key for key in final if not (run.qa and "pooler" in key)}
    for key in state:
        if not key.endswith(ROUNDING_NOISE):
            atol = 0 if key in frozen else 1e-4 if "mask_scores" in key else 1e-5
            close(state[key], final[key], atol=atol)


# g: the optimizer


@pytest.mark.parametrize("decay", ["0.0", "0.01"])
def test_optimizer_equals_transformers_adamw(decay):
    recorded = load("g_adamw_hf")
    model = torch.nn.ParameterDict({"matrix": recorded["p0"].clone()})
    optimizer = Optimizer(
        model,
        **{"learning_rate": 0.01, "mask_scores_learning_rate": 0.0, "weight_decay": float(decay), "epsilon": 1e-8},
        **{"max_grad_norm": float("inf"), "warmup_steps": 3, "total_steps": 12},
    )
    for t, gradient in enumerate(recorded["grads"]):
        assert optimizer.learning_rates(t)["weights"] == pytest.approx(float(recorded["lr_used_at_step"][t]))
        model["matrix"].grad = gradient.clone()
        optimizer.step(t)
        close(model["matrix"].data, recorded[f"wd{decay}/params_after_step"][t], atol=1e-6)
