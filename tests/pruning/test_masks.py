"""Masks against a plain sort, when they are made, and the masked model as a transformers model."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForPreTraining,
    BertForSequenceClassification,
    BertModel,
)

from emmental import (
    MagnitudeBinarizer,
    MaskedBertConfig,
    MaskedBertForQuestionAnswering,
    MaskedBertForSequenceClassification,
    MaskedLinear,
    set_threshold,
)
from emmental.pruning.masked_linear import equal_sized, kept_weights, masked_linears
from emmental.pruning.masks import above_mask, binary_mask, hard_concrete, kth_largest, top_mask
from emmental.pruning.methods import METHODS
from emmental.pruning.schedule import global_cut

SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 20,
}
THRESHOLDS = {"topK": 0.3, "threshold": 0.2, "sigmoied_threshold": 0.6, "magnitude": 0.3, "l0": 0.0}
INF = math.inf


class Elsewhere(torch.Tensor):
    """A CPU tensor that says it is on a GPU, so that a device's way to the mask runs here."""

    device = property(lambda self: torch.device("cuda"))


def elsewhere(values: torch.Tensor) -> torch.Tensor:
    return values.clone().as_subclass(Elsewhere)


def plain(values: torch.Tensor) -> torch.Tensor:
    return values.as_subclass(torch.Tensor)


def largest(row: list[float], kept: int) -> list[bool]:
    """The reference: a full sort, the lowest place first among equals."""
    chosen = sorted(range(len(row)), key=lambda place: (-row[place], place))[:kept]
    return [place in chosen for place in range(len(row))]


def texts(lengths=(9, 4, 1)) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    real = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return {
        "input_ids": torch.randint(1, 50, real.shape, generator=generator) * real,
        "attention_mask": real.long(),
        "token_type_ids": torch.randint(0, 2, real.shape, generator=generator) * real,
    }


def masked(method: str | None = "topK", kind=MaskedBertForSequenceClassification, **config) -> torch.nn.Module:
    """A small masked BERT with random scores, in evaluation mode."""
    torch.manual_seed(0)
    model = kind(MaskedBertConfig(**SIZES, pruning_method=method, **config)).eval()
    for linear in masked_linears(model).values():
        if linear.method.scored:
            linear.mask_scores.data.normal_()
    return model


# the mask of one matrix

EDGES = [0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, 1e-40, -1e-40, 1.17549435e-38, 3.4e38, -3.4e38, INF, -INF]
EDGES = torch.tensor(EDGES).tolist()  # as float32 has them
numbers = st.one_of(st.floats(width=32, allow_nan=False), st.sampled_from(EDGES))
rows = st.one_of(
    st.lists(numbers, min_size=1, max_size=40),
    st.lists(st.sampled_from([0.0, -0.0, 1.0, -2.0]), min_size=1, max_size=40),  # ties
    st.integers(1, 40).flatmap(lambda size: numbers.map(lambda value: [value] * size)),  # all equal
)


@settings(max_examples=150, deadline=None)
@given(rows, st.data())
def test_top_mask_equals_a_full_sort(row, data):
    kept = data.draw(st.integers(0, len(row)))
    values, expected = torch.tensor([row]), [largest(row, kept)]
    assert top_mask(values, kept).tolist() == expected
    assert plain(top_mask(elsewhere(values), kept)).tolist() == expected


def test_top_mask_takes_rows_apart_at_every_count():
    values = torch.randn(3, 60).round(decimals=1)
    for kept in range(-1, 63):  # beyond either end: nothing, everything
        expected = [largest(row, max(kept, 0)) for row in values.tolist()]
        assert top_mask(values, kept).tolist() == expected
        assert plain(top_mask(elsewhere(values), kept)).tolist() == expected


@settings(max_examples=150, deadline=None)
@given(rows, st.data())
def test_kth_largest_equals_a_sort(row, data):
    k = data.draw(st.integers(1, len(row)))
    values = torch.tensor(row)
    expected = sorted(values.tolist(), reverse=True)[k - 1]
    assert kth_largest(values, k) == kth_largest(elsewhere(values), k) == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_kth_largest_is_exact_in_half_precision(dtype):
    values = torch.randn(100).to(dtype)
    for k in (1, 17, 100):
        assert kth_largest(elsewhere(values), k) == sorted(values.tolist(), reverse=True)[k - 1]


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 900),
    st.integers(0, 2**31),
    st.sampled_from(["normal", "tied", "equal", "low"]),
    st.booleans(),
    st.sampled_from([0.0, 0.1, 0.5, 0.99]),
)
def test_threshold_keeps_what_exceeds_it_or_the_minimum(size, seed, content, sigmoid, threshold):
    scores = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    scores = {"normal": scores, "tied": scores.round(), "equal": scores * 0, "low": scores - 20}[content]
    compared = scores.sigmoid() if sigmoid else scores
    above = [value > threshold for value in compared.tolist()]
    floor = int(0.005 * size) + 1
    expected = above if sum(above) >= floor else largest(scores.tolist(), floor)
    assert above_mask(scores[None], threshold, sigmoid)[0].tolist() == expected
    assert plain(above_mask(elsewhere(scores[None]), threshold, sigmoid))[0].tolist() == expected


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if not method.smooth])
def test_matrices_together_are_masked_as_each_alone(method):
    values = torch.randn(4, 9, 7, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    alone = torch.stack([binary_mask(METHODS[method], one[None], THRESHOLDS[method])[0] for one in values])
    assert alone.dtype == values.dtype and set(alone.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(binary_mask(METHODS[method], values, THRESHOLDS[method]), alone)
    assert torch.equal(plain(binary_mask(METHODS[method], elsewhere(values), THRESHOLDS[method])), alone)


def test_a_device_masks_bert_base_in_two_groups_of_more_than_ten_rows():
    with torch.device("meta"):
        base = MaskedBertForSequenceClassification(MaskedBertConfig())
    groups = equal_sized(list(masked_linears(base).values()))
    assert [(len(group), group[0].weight.numel()) for group in groups] == [(48, 768 * 768), (24, 768 * 3072)]
    assert all(len(group) == 1 for group in equal_sized(list(masked_linears(masked()).values())))  # on a CPU


def test_l0_is_drawn_while_training_only():
    linear = MaskedLinear(30, 20, mask_init="uniform", mask_scale=3.0, pruning_method="l0")
    set_threshold(linear, 0.0)
    x = torch.randn(2, 30)
    assert not torch.equal(linear(x), linear(x))
    linear.eval()
    assert torch.equal(linear(x), linear(x))
    # the mean of many draws is the chance that arXiv 1712.01312 gives for a gate that is not zero
    scores = torch.tensor([-2.0, 0.0, 2.0])
    share = (hard_concrete(scores.expand(40_000, 3), sample=True) > 0).float().mean(0)
    torch.testing.assert_close(share, (scores - 2 / 3 * math.log(0.1 / 1.1)).sigmoid(), atol=0.01, rtol=0)


# when masks are made


@pytest.mark.parametrize("method", METHODS)
def test_masks_are_made_by_set_threshold_alone(method):
    linear = MaskedLinear(30, 20, mask_init="uniform", mask_scale=3.0, pruning_method=method).eval()
    x = torch.randn(4, 30)
    dense = torch.nn.functional.linear(x, linear.weight, linear.bias)
    assert torch.equal(linear(x), dense) and kept_weights(linear) == 600
    threshold = THRESHOLDS[method]
    set_threshold(linear, threshold)
    before, first = linear(x), kept_weights(linear)
    assert first == int((linear.masked_weight() != 0).sum()) and 0 < first < 600
    with torch.no_grad():
        linear.ranking.neg_()
        linear.ranking[:2] *= 3
    if method not in ("l0", "magnitude"):  # l0's mask is a function of the scores, magnitude's weights changed sign
        assert torch.equal(linear(x), before)
    set_threshold(linear, threshold)  # the same value: made anew all the same
    fresh = MaskedLinear(30, 20, pruning_method=method).eval()
    fresh.load_state_dict(linear.state_dict())
    set_threshold(fresh, threshold)
    assert torch.equal(linear(x), fresh(x)) and not torch.equal(linear(x), before)


@pytest.mark.parametrize("method", METHODS)
def test_loading_drops_masks(method):
    model, other = masked(method), masked(method)
    for linear in masked_linears(other).values():
        linear.ranking.data = linear.ranking.data.flip(0)
    with torch.no_grad():
        set_threshold(model, THRESHOLDS[method])
        set_threshold(other, THRESHOLDS[method])
        stale = model(**texts()).logits
        model.load_state_dict(other.state_dict())
        assert torch.equal(model(**texts()).logits, other(**texts()).logits)
        assert not torch.equal(model(**texts()).logits, stale)


def test_straight_through_gradient_reaches_masked_weights_scores():
    linear = MaskedLinear(6, 5, mask_init="kaiming")
    set_threshold(linear, 0.2)
    x = torch.randn(3, 6)
    linear(x).sum().backward()
    through = x.sum(0).expand(5, 6)  # the gradient of the masked weight
    torch.testing.assert_close(linear.mask_scores.grad, through * linear.weight)
    torch.testing.assert_close(linear.weight.grad, through * linear.mask)
    assert int((linear.mask_scores.grad != 0).sum()) == 30 and int((linear.weight.grad != 0).sum()) == 6


def test_a_mask_made_for_inference_serves_training_too():
    linear = MaskedLinear(6, 4)
    with torch.inference_mode():
        set_threshold(linear, 0.5)
    linear(torch.ones(2, 6)).sum().backward()
    assert linear.mask_scores.grad.shape == (4, 6)


def test_magnitude_mask_is_a_constant_for_the_weight():
    weight, factor = torch.randn(5, 6, requires_grad=True), torch.randn(5, 6)
    mask = MagnitudeBinarizer.apply(weight, 0.2)
    (weight * mask * factor).sum().backward()
    assert int(mask.sum()) == 6 and torch.equal(weight.grad, mask * factor)


@pytest.mark.parametrize("wrong", [{"mask_init": "zeros"}, {"pruning_method": "topk"}])
def test_unknown_names_are_no_other_choice(wrong):
    with pytest.raises(KeyError):
        MaskedLinear(6, 5, **wrong)


def test_global_cut_is_the_released_rank_of_all_scores():
    model = masked("threshold")
    scores = torch.cat([linear.mask_scores.flatten() for linear in masked_linears(model).values()])
    assert global_cut(model, 1.0) < scores.min()  # nothing is pruned
    for threshold in (0.5, 0.1, 0.0):
        cut = global_cut(model, threshold)
        assert cut == sorted(scores.tolist())[max(len(scores) - (int(len(scores) * threshold) + 1), 1) - 1]
        set_threshold(model, cut)
        if threshold:  # at 0 the floors of the matrices decide
            kept = sum(kept_weights(linear) for linear in masked_linears(model).values())
            assert kept == int(len(scores) * threshold) + 1
    set_threshold(model, -INF)
    assert all(linear.mask.all() for linear in masked_linears(model).values())


# the masked model as a transformers model


def released_keys(layers: int, scores: bool, tail: list[str]) -> set[str]:
    keys = {f"bert.embeddings.{name}_embeddings.weight" for name in ("word", "position", "token_type")}
    keys |= {f"bert.embeddings.LayerNorm.{name}" for name in ("weight", "bias")}
    for layer in range(layers):
        start = f"bert.encoder.layer.{layer}."
        for part in ("attention.output.LayerNorm", "output.LayerNorm"):
            keys |= {f"{start}{part}.weight", f"{start}{part}.bias"}
        attention = [f"attention.{part}" for part in ("self.query", "self.key", "self.value", "output.dense")]
        for part in [*attention, "intermediate.dense", "output.dense"]:
            keys |= {f"{start}{part}.{name}" for name in ["weight", "bias"] + ["mask_scores"] * scores}
    return keys | {f"{part}.{name}" for part in tail for name in ("weight", "bias")}


@pytest.mark.parametrize("method", METHODS)
def test_state_dict_holds_the_released_keys(method):
    scores = method != "magnitude"
    classifier, span = masked(method), masked(method, MaskedBertForQuestionAnswering)
    for model in (classifier, span):
        set_threshold(model, THRESHOLDS[method])
    assert classifier.state_dict().keys() == released_keys(2, scores, ["bert.pooler.dense", "classifier"])
    assert span.state_dict().keys() == released_keys(2, scores, ["qa_outputs"])
    assert len(masked_linears(classifier)) == len(masked_linears(span)) == 12


@pytest.fixture(scope="module", params=[BertModel, BertForPreTraining, BertForSequenceClassification])
def plain_folder(request, tmp_path_factory):
    """A plain BERT as transformers saves it, with and without a head."""
    folder = tmp_path_factory.mktemp("plain")
    torch.manual_seed(1)
    request.param(BertConfig(**SIZES)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("init", ["constant", "uniform", "kaiming"])
def test_scores_after_loading_a_plain_bert(plain_folder, init):
    scale = {"constant": 0.25, "uniform": 0.5, "kaiming": 0.0}[init]
    config = MaskedBertConfig(**SIZES, pruning_method="topK", mask_init=init, mask_scale=scale)
    model = MaskedBertForSequenceClassification.from_pretrained(plain_folder, config=config)
    dense = BertModel.from_pretrained(plain_folder).state_dict()
    for name, value in model.bert.state_dict().items():
        if not name.endswith("mask_scores"):
            assert torch.equal(value, dense[name]), name
    linears = list(masked_linears(model).values())
    assert len(linears) == 12
    for linear in linears:
        assert linear.mask_scores.requires_grad
        scores, bound = linear.mask_scores.detach(), 1 / math.sqrt(linear.in_features)
        assert scores.isfinite().all()
        if init == "constant":
            assert (scores == 0.25).all()
        else:  # spread over the interval, as far as its ends
            bound = 0.5 if init == "uniform" else bound
            assert 0.9 * bound < scores.max() <= bound and -0.9 * bound > scores.min() >= -bound
            assert float(scores.std()) == pytest.approx(bound / math.sqrt(3), rel=0.15)
    if init != "constant":
        assert not torch.equal(linears[0].mask_scores, linears[1].mask_scores)
    assert not any(parameter.requires_grad for parameter in model.bert.embeddings.parameters())
    assert sum(not parameter.requires_grad for parameter in model.parameters()) == 5


def test_saved_scores_survive_a_missing_tensor(tmp_path):
    """A file that lacks one tensor of a masked layer has that one initialised, and nothing beside it."""
    model = masked("topK")
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    gone = tensors.pop("bert.encoder.layer.1.output.dense.bias")
    save_file(tensors, file, metadata={"format": "pt"})
    loaded = MaskedBertForSequenceClassification.from_pretrained(tmp_path).state_dict()
    assert (loaded["bert.encoder.layer.1.output.dense.bias"] == 0).all() and gone.isfinite().all()
    for name, value in tensors.items():
        assert torch.equal(loaded[name], value), name


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", [MaskedBertForSequenceClassification, MaskedBertForQuestionAnswering])
def test_saved_model_evaluates_at_its_threshold(tmp_path, kind, method):
    model = masked(method, kind, alignrep="mean-pooling")
    model.config.threshold = THRESHOLDS[method]
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        dense = model(**texts())
        set_threshold(model, THRESHOLDS[method])
        expected, representation = model(**texts()), model.encode(**texts())
        loaded = kind.from_pretrained(tmp_path)
        assert (loaded.config.pruning_method, loaded.config.alignrep) == (method, "mean-pooling")
        assert not loaded.training and loaded.config.threshold == THRESHOLDS[method]
        for ours, theirs, unmasked in zip(
            loaded(**texts()).classifications, expected.classifications, dense.classifications, strict=True
        ):
            assert torch.equal(ours, theirs) and not torch.equal(ours, unmasked)
        assert torch.equal(loaded.encode(**texts()), representation)
    assert not any(parameter.requires_grad for parameter in loaded.bert.embeddings.parameters())
    if kind is MaskedBertForSequenceClassification:
        auto = AutoModelForSequenceClassification.from_pretrained(tmp_path)
        assert type(auto) is kind and torch.equal(auto(**texts()).logits, expected.logits)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("method, threshold", [("topK", 0.3), ("sigmoied_threshold", 0.50028)])
def test_masks_do_not_depend_on_the_dtype(tmp_path, method, threshold, dtype):
    """Scores that differ by less than half precision can tell; asked for at loading or of a loaded model."""
    kind = MaskedBertForSequenceClassification
    model = masked(method, kind, threshold=threshold)
    with torch.no_grad():
        for linear in masked_linears(model).values():
            linear.mask_scores.copy_(1e-3 + 1e-6 * torch.randperm(linear.weight.numel()).view_as(linear.weight))
    model.save_pretrained(tmp_path)
    expected = [linear.current_mask() for linear in masked_linears(kind.from_pretrained(tmp_path).eval()).values()]
    loaded = kind.from_pretrained(tmp_path, dtype=dtype).eval()
    for other in (loaded, kind.from_pretrained(tmp_path).eval().to(dtype)):
        for linear, mask in zip(masked_linears(other).values(), expected, strict=True):
            assert 0 < mask.mean() < 1 and linear.mask_scores.dtype == torch.float32 and linear.weight.dtype == dtype
            assert linear.current_mask().dtype == dtype and torch.equal(linear.current_mask() > 0, mask > 0)
    ids = torch.randint(SIZES["vocab_size"], (2, 6))
    loaded(ids).logits.sum().backward()  # the straight-through gradient fits the scores
    assert loaded.bert.encoder.layer[0].output.dense.mask_scores.grad.dtype == torch.float32
    loaded.half()  # gradients move along
    assert loaded.bert.encoder.layer[0].output.dense.mask_scores.grad.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_new_scores_are_float32(tmp_path, dtype):
    BertForPreTraining(BertConfig(**SIZES)).save_pretrained(tmp_path)
    config = MaskedBertConfig(**SIZES, mask_scale=0.1)  # which half precision rounds
    loaded = MaskedBertForSequenceClassification.from_pretrained(tmp_path, config=config, dtype=dtype)
    for linear in masked_linears(loaded).values():
        assert torch.equal(linear.mask_scores, torch.full(linear.weight.shape, 0.1))


def test_without_a_threshold_a_masked_model_is_dense(tmp_path):
    model = masked("topK")
    model.save_pretrained(tmp_path)
    loaded = MaskedBertForSequenceClassification.from_pretrained(tmp_path)
    assert loaded.config.threshold is None
    assert torch.equal(loaded(**texts()).logits, model(**texts()).logits)
    set_threshold(model, 1.0)
    assert torch.equal(loaded(**texts()).logits, model(**texts()).logits)


def test_without_a_method_the_model_is_a_plain_bert(tmp_path):
    torch.manual_seed(2)
    theirs = BertForSequenceClassification(BertConfig(**SIZES)).eval()
    theirs.save_pretrained(tmp_path)
    config = MaskedBertConfig(**SIZES, pruning_method=None)
    ours = MaskedBertForSequenceClassification.from_pretrained(tmp_path, config=config)
    assert not masked_linears(ours) and ours.state_dict().keys() == theirs.state_dict().keys()
    assert all(parameter.requires_grad for parameter in ours.parameters())
    batch = texts()
    torch.testing.assert_close(ours(**batch).logits, theirs(**batch).logits, atol=1e-6, rtol=0)
    pooled = theirs.bert(**batch).pooler_output
    torch.testing.assert_close(ours(**batch).representation, pooled, atol=1e-6, rtol=0)
