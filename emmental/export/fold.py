"""Folds a masked model's masks into its weights: transformers' plain model, dense or packed, without idle neurons.

Movement pruning leaves 3 to 50 % of the encoder's weights; what is pruned becomes a zero of a plain model, which needs
no code of ours. `compact` also removes the feed-forward neurons that pruning has left without input or output.
"""

import re
import shutil
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.activations import ACT2FN

from emmental.export.sparse_format import rounded, save_sparse
from emmental.model.families import FAMILIES, LAYER, Family, family_of
from emmental.model.masked_classes import HEADS, plain_class
from emmental.model.masked_model import MaskedModel
from emmental.model.validation import TOKENIZER_FILES
from emmental.pruning.masked_linear import masked_linears
from emmental.utils.files import open_to_others, write_errors


@torch.no_grad()
def fold(model: MaskedModel) -> PreTrainedModel:
    """transformers' plain model with the present masks multiplied into its weights."""
    family = family_of(model.config.model_type)
    head = next(head for head, (kind, _) in HEADS.items() if isinstance(model, kind))
    values = {name: value for name, value in model.config.to_dict().items() if name not in model.config.OWN}
    with torch.random.fork_rng(devices=[]):  # a checkpoint is folded amid a run, whose dropout must not notice
        folded = plain_class(family, head)(plain_class(family, "Config")(**values))
    weights = {name: x for name, x in model.state_dict().items() if not name.endswith("mask_scores")}
    for name, linear in masked_linears(model).items():
        weights[f"{name}.weight"] = linear.eval().masked_weight()
    folded.load_state_dict(weights)
    return folded.eval()


def save_folded(model: MaskedModel, source: Path, target: Path, form: str, dtype: str, compacted: bool) -> str:
    """Writes the model with its masks folded in, as transformers' plain model, and the tokenizer of `source`.

    `form` and `dtype` as in export.sparse_format; `compacted` removes idle feed-forward neurons where all layers can
    spare some, and where only some can makes the form sparse, in which they take no room. Returns a report to print.
    """
    plain, family = fold(model), model.family
    state, config = plain.state_dict(), plain.config.to_dict() | {"architectures": [type(plain).__name__]}
    dense, report = state, []
    if compacted:
        size = family.key("intermediate_size")
        before, idle = config[size], [int(mask.sum()) for mask in idle_neurons(state, config)]
        state, config = compact(state, config)
        report.append(f"feed-forward neurons in each layer: {before} -> {config[size]}")
        if form == "dense" and any(idle) and config[size] == before:
            form = "sparse"
            report.append(f"idle neurons by layer: {idle}; a plain model's layers are all of one size, so it is packed")
    target.mkdir(parents=True)
    if form == "sparse":
        stored = save_sparse(state, config, target, dtype)
    else:
        smaller = type(plain)(type(plain.config)(**config))
        smaller.to(getattr(torch, dtype)).load_state_dict(rounded(state, dtype))
        with write_errors(target):
            smaller.save_pretrained(target)
        stored = smaller.state_dict()
    open_to_others(*target.glob("*.safetensors"))
    report.append(f"{'part':12}{'dense float32':>16}{'as saved':>16}{'ratio':>8}")
    report += [
        f"{part:12}{before:16,}{after:16,}{ratio:8.2f}" for part, before, after, ratio in size_table(dense, stored)
    ]
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copy(source / name, target / name)
    return "\n".join(report)


def part_of(name: str) -> str:
    """The part of a model to which a tensor belongs: encoder, embeddings, or head with pooler."""
    if re.search(LAYER, name):
        return "encoder"
    return "embeddings" if ".embeddings" in name else "head"


def size_table(state_dict: dict[str, Tensor], saved: dict[str, Tensor]) -> list[tuple[str, int, int, float]]:
    """Rows (part, bytes as dense float32, bytes as saved, their ratio): encoder, embeddings, head with pooler, total.

    `saved` holds the tensors stored, packed or not.
    """
    rows = []
    for part in ("encoder", "embeddings", "head", "total"):
        dense = sum(4 * value.numel() for name, value in state_dict.items() if part in (part_of(name), "total"))
        stored = sum(value.nbytes for name, value in saved.items() if part in (part_of(name), "total"))
        rows.append((part, dense, stored, dense / max(stored, 1)))
    return rows


def feed_forward(state_dict: dict[str, Tensor], family: Family) -> list[tuple[str, str]]:
    """Each layer's two feed-forward matrices, by the names of their modules, from the first layer to the last."""
    first, second = family.feed_forward
    names = [name.removesuffix(f".{first}.weight") for name in state_dict if name.endswith(f".{first}.weight")]
    layers = sorted(names, key=lambda name: int(name.rpartition(".")[2]))
    return [(f"{layer}.{first}", f"{layer}.{second}") for layer in layers]


def constants(state_dict: dict[str, Tensor], config: dict, first: str) -> tuple[Tensor, Tensor]:
    """Of a layer whose first feed-forward matrix is `first`: which neurons are constant, and their values then.

    Both (intermediate,). A neuron is act(W x + b), or that times a gate's W' x + b': one without input weights is
    act(b), and a gated one constant where neither factor has any, or one has none and is zero.
    """
    family = FAMILIES[family_of(config["model_type"])]
    weight = state_dict[f"{first}.weight"]
    bias, still = state_dict.get(f"{first}.bias", torch.zeros(len(weight))).double(), (weight == 0).all(1)
    act = ACT2FN[config[family.key("hidden_act")]]
    if not family.gated:
        return still, act(bias)
    (bias, gate), (still, gate_still) = bias.chunk(2), still.chunk(2)
    value = act(bias)
    return still & gate_still | still & (value == 0) | gate_still & (gate == 0), value * gate


def idle_neurons(state_dict: dict[str, Tensor], config: dict) -> list[Tensor]:
    """For each layer, which feed-forward neurons are constant or are read by nothing, (intermediate,)."""
    return [
        constants(state_dict, config, first)[0] | (state_dict[f"{second}.weight"] == 0).all(0)
        for first, second in feed_forward(state_dict, FAMILIES[family_of(config["model_type"])])
    ]


def compact(state_dict: dict[str, Tensor], config: dict) -> tuple[dict[str, Tensor], dict]:
    """Removes feed-forward neurons without input or output weights; returns new state and config, of the same logits.

    A neuron without input weights is constant, which moves into the second matrix's bias (without biases it is zero);
    without output weights (its column there is zero) it is dropped. `intermediate_size` is one number for all layers,
    so each loses as many as the layer that can spare fewest; if that is none, both are returned as they came.
    """
    family = FAMILIES[family_of(config["model_type"])]
    idle, key = idle_neurons(state_dict, config), family.key("intermediate_size")
    size = max([1, *(int((~mask).sum()) for mask in idle)])
    if size == config[key]:
        return state_dict, config
    state = dict(state_dict)
    for mask, (first, second) in zip(idle, feed_forward(state_dict, family), strict=True):
        keep, drop = (part.sort().values for part in mask.int().argsort(stable=True).tensor_split([size]))
        weight, bias = f"{second}.weight", f"{second}.bias"
        if bias in state:
            moved = state[weight][:, drop].double() @ constants(state_dict, config, first)[1][drop]
            state[bias] = (state[bias] + moved).to(state[bias].dtype)
        state[weight] = state[weight][:, keep].contiguous()
        rows = torch.cat([keep, keep + config[key]]) if family.gated else keep
        for name in (f"{first}.weight", f"{first}.bias"):
            if name in state:
                state[name] = state[name][rows]
    return state, config | {key: size}
