"""Replays what the authors' released code computed (parity/README.md) through the public names of `emmental`."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import emmental
from emmental import contrastive_loss, regularization, schedule_threshold, set_packing, set_threshold
from emmental.contrast.bank import Bank
from emmental.contrast.encoding import fill_from_teacher
from emmental.data.batches import Plan
from emmental.data.examples import Examples
from emmental.model.loading import load_masked
from emmental.model.packing import Packing
from emmental.pruning.schedule import MaskSchedule
from emmental.training.loop import Progress, train
from emmental.training.objective import Objective, task_loss
from emmental.training.optimizer import Optimizer
from emmental.utils.precision import Precision

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
    unscored = method in (None, "magnitude")
    model.load_state_dict({key: value for key, value in weights.items() if not (unscored and "mask_scores" in key)})
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


def test_a_released_question_answering_file_is_read(tmp_path):
    """Its state dict has a pooler, which nothing reads and ours lacks (D67)."""
    weights = below(D, "weights/qa/")
    assert "bert.pooler.dense.weight" in weights
    expected = tiny(weights, "topK")
    expected.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(weights, tmp_path / "pytorch_model.bin")
    set_threshold(expected, 0.5)
    with torch.no_grad():
        output, reference = load_masked(str(tmp_path), threshold=0.5)(**inputs(D)), expected(**inputs(D))
    assert torch.equal(output.start_logits, reference.start_logits)


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
    with pytest.raises(KeyError):
        value("relased")


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


# f: the training loop, step by step

BANKS = {"pretrained": "pretrained", "finetuned": "finetuned", "snapshots": "snaps"}  # ours -> the recorded names
TRAJECTORIES = [
    ("f_topk_seq_const0", False),
    ("f_topk_seq_const0", True),
    ("f_soft_seq_l1", False),
    ("f_soft_seq_l1", True),
    ("f_topk_qa", False),
]


def examples_of(data: dict, labels: list[str]) -> Examples:
    real = data["attention_mask"].bool()
    offsets = np.concatenate([[0], real.sum(1).cumsum(0).numpy()])
    types = data.get("token_type_ids", torch.zeros_like(data["input_ids"]))
    tokens = (values[real].numpy() for values in (data["input_ids"], types))
    return Examples(*tokens, offsets, tuple(data[name] for name in labels), pad_to=real.shape[1])


@pytest.mark.parametrize(("name", "packing"), TRAJECTORIES)
def test_training_follows_the_recorded_run(name, packing, tmp_path, monkeypatch):
    """`train` itself, with the recorded batches and extra examples in place of those that a seed decides."""
    run = load(name)
    args, init, steps, data = json.loads(run["args"]), below(run, "init/"), below(run, "step/"), below(run, "data/")
    qa, total, device = "start_positions" in data, len(steps["sample_idx"]), torch.device("cpu")
    examples = examples_of(data, ["start_positions", "end_positions"] if qa else ["labels"])
    model, teacher = tiny(init, args["pruning_method"]), tiny(below(run, "teacher/"), None)
    for each in (model, teacher):
        set_packing(each, packing)

    class RecordedPlan(Plan):
        def micro_batches(self, step):
            return [steps["sample_idx"][step].numpy()]

    def recorded_sample(examples, count, seed):
        _, step, _, number = seed
        drawn = steps[f"extra_idx_{list(BANKS.values())[number]}"][step]
        assert (drawn >= 0).sum() == count
        return drawn[drawn >= 0].numpy()

    monkeypatch.setattr("emmental.contrast.bank.sample", recorded_sample)
    plan = RecordedPlan(len(examples), batch_size=steps["sample_idx"].shape[1], accumulation=1, epochs=3, seed=0)
    assert plan.total_steps == total
    precision, common = Precision(device), {"total_steps": total, "warmup_steps": args["warmup_steps"]}
    banks = {ours: Bank(tmp_path, device, torch.float32, ours == "snapshots") for ours in BANKS}
    teacher_logits = fill_from_teacher(banks["finetuned"], teacher, examples, precision, contrasted=True)
    names = ("initial_threshold", "final_threshold", "initial_warmup", "final_warmup", "final_lambda")
    masks = MaskSchedule(**common, **{name: args[name] for name in names}, first_step=int(qa))
    names = ("learning_rate", "mask_scores_learning_rate", "weight_decay", "max_grad_norm")
    optimizer = Optimizer(model, **common, **{name: args[name] for name in names}, epsilon=args["adam_epsilon"])
    objective = Objective(
        ce_weight=args["ce_loss_weight"], distill_weight=args["distill_loss_weight"],
        distill_temperature=args["temperature"], contrastive_temperature=args["contrastive_temperature"],
        unsupervised_weight=args["cl_unsupervised_loss_weight"],
        supervised_weight=args["cl_supervised_loss_weight"] or 0.0, normalization="released",
        penalty=args["regularization"], extra_examples=args["extra_examples"],
    )  # fmt: skip

    done = train(model, examples, banks, teacher_logits, plan, masks, objective, optimizer, Progress(), precision)
    for t, step in enumerate(done):
        expected = {key: value[t] for key, value in steps.items() if value.ndim and len(value)}
        assert step.threshold == pytest.approx(float(expected["threshold"]), rel=1e-12)
        assert step.regu_lambda == pytest.approx(float(expected["lambda"]), rel=1e-12)
        contrast = [step.parts.get(ours, torch.tensor(0.0)) for ours in BANKS]
        close(torch.stack(contrast), expected["contrastive_terms_weighted"], atol=1e-4)
        close(step.parts["task"] + sum(contrast), expected["model_loss"], atol=1e-4)
        squared = args["distill_loss_weight"] * args["temperature"] ** 2
        close(step.parts["distillation"] / squared, expected["distill_kl"].mean(), atol=1e-5)
        if args["regularization"]:
            close(step.parts["penalty"], step.regu_lambda * expected["regu"], atol=1e-5 * max(1, step.regu_lambda))
        close(sum(step.parts.values()), expected["total_loss"], atol=1e-4)
        assert float(step.grad_norm) == pytest.approx(float(expected["grad_norm"]), rel=1e-4)
    assert t == total - 1

    for ours, theirs in BANKS.items():
        close(torch.stack(banks[ours].columns, 1), run[f"bank/{theirs}"], atol=1e-5)
    # `final` holds what was trained; what was not, the embeddings, stays as it was
    frozen = {key: value for key, value in init.items() if "embeddings" in key}
    state, final = model.state_dict(), frozen | below(run, "final/")
    assert state.keys() == {key for key in final if not (qa and "pooler" in key)}
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
