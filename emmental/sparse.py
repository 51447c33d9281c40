"""A pruned and folded model made small on disk and fast on a CPU.

Movement pruning leaves 3 to 50 % of the encoder's weights, yet its folded model (plain BERT whose pruned weights are
zeros) is as large and as slow as before. Here those matrices are stored as kept values and an index, feed-forward
neurons that do nothing are removed, and the encoder runs on compressed sparse rows. Nothing is approximated: weights
come back as they were (a zero loses its sign), or as their float16 rounding.
"""

import json
import math
import timeit
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig, BertForQuestionAnswering, BertForSequenceClassification
from transformers.activations import ACT2FN
from transformers.modeling_outputs import QuestionAnsweringModelOutput, SequenceClassifierOutput

from emmental.errors import InputError
from emmental.files import whole
from emmental.masked_bert import PADDING_LOGIT

FILE = "model.sparse.safetensors"
VERSION = 1
DTYPES = {"float32": torch.float32, "float16": torch.float16}
MODELS = {model.__name__: model for model in (BertForSequenceClassification, BertForQuestionAnswering)}


# --- Stored small


def _to_gaps(kept: np.ndarray) -> np.ndarray:
    zeros = np.diff(np.flatnonzero(kept), prepend=-1) - 1
    lengths = zeros // 255 + 1
    code = np.full(lengths.sum(), 255, dtype=np.uint8)
    code[lengths.cumsum() - 1] = zeros % 255
    return code


def _from_gaps(code: np.ndarray) -> np.ndarray:
    return np.cumsum(code + (code < 255).astype(np.int64))[code < 255] - 1


# How the places of the kept values are written, and read back as ascending positions in the flattened matrix.
# bitmask: a bit for each weight. gaps: a byte for each kept value, the zeros before it; 255 is 255 zeros and no value.
INDEXES = {
    "bitmask": (np.packbits, lambda code: np.flatnonzero(np.unpackbits(code))),
    "gaps": (_to_gaps, _from_gaps),
}


def pack(state_dict: dict[str, Tensor], dtype: str = "float32") -> tuple[dict[str, Tensor], dict]:
    """The folded `state_dict` in packed form: the tensors to store, and the header that describes them.

    Every floating-point tensor is first rounded to `dtype`, "float32" or "float16"; InputError where that overflows.
    An encoder matrix then becomes `NAME.values` (kept,) and `NAME.bitmask` or `NAME.gaps` (uint8), whichever is
    smaller, unless dense is smaller still. Kept is what differs from zero, so NaN is and -0.0 is not.
    """
    tensors, entries = {}, {}
    for name, weight in state_dict.items():
        value = weight.to("cpu", DTYPES[dtype] if weight.is_floating_point() else weight.dtype).contiguous()
        if value.isinf().sum() != weight.isinf().sum():
            raise InputError(f"--dtype {dtype}: {name} holds a value too large for it")
        forms = {"dense": {name: value}}
        if name.startswith("bert.encoder.") and name.endswith(".weight") and value.dim() == 2:
            kept = (value != 0).flatten()
            for index, (encode, _) in INDEXES.items():
                code = torch.from_numpy(encode(kept.numpy()))
                forms[index] = {f"{name}.{index}": code, f"{name}.values": value.flatten()[kept]}
        index = min(forms, key=lambda form: sum(piece.nbytes for piece in forms[form].values()))
        tensors |= forms[index]
        entries[name] = {"index": index, "shape": list(value.shape)}
    original = sum(weight.nbytes for weight in state_dict.values())
    return tensors, {"version": VERSION, "dtype": dtype, "original_bytes": original, "tensors": entries}


def unpack(tensors: dict[str, Tensor], header: dict) -> dict[str, Tensor]:
    """The dense float32 state dict that `pack` was given; InputError names a tensor whose pieces do not fit."""
    state = {}
    for name, entry in header["tensors"].items():
        index, shape = entry["index"], entry["shape"]
        pieces = [name] if index == "dense" else [f"{name}.values", f"{name}.{index}"]
        for piece in pieces:
            if piece not in tensors:
                raise InputError(f"{piece} is missing")
        value = tensors[pieces[0]]
        value = value.float() if value.is_floating_point() else value
        if index != "dense":
            positions = torch.from_numpy(INDEXES[index][1](tensors[pieces[1]].numpy()))
            if value.shape != positions.shape:
                raise InputError(f"{name} has {value.numel()} values for {len(positions)} positions")
            if len(positions) and positions[-1] >= math.prod(shape):
                raise InputError(f"{pieces[1]} has the index {int(positions[-1])}, out of range for shape {shape}")
            value = torch.zeros(math.prod(shape)).index_copy_(0, positions, value).view(shape)
        if list(value.shape) != shape:
            raise InputError(f"{name} has shape {list(value.shape)}, not {shape}")
        state[name] = value
    return state


def save_sparse(state_dict: dict[str, Tensor], config: dict, directory: str | Path, dtype: str = "float32"):
    """Write `config.json` and the packed `model.sparse.safetensors`; returns the tensors stored, for `size_table`."""
    tensors, header = pack(state_dict, dtype)
    with whole(Path(directory) / FILE) as weights, whole(Path(directory) / "config.json") as settings:
        save_file(tensors, weights, {"format": "pt", "sparse": json.dumps(header)})
        settings.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    return tensors


def read_sparse(directory: str | Path) -> dict[str, Tensor]:
    """The dense float32 state dict stored in `directory`; InputError names the file, and the tensor at fault."""
    path = Path(directory) / FILE
    tensors = _read(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
    try:
        header = json.loads(metadata["sparse"])
        if header["version"] != VERSION:
            raise InputError(f"format version {header['version']}, not {VERSION}")
        return unpack(tensors, header)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise InputError(f"{path}: the description of its format is missing or damaged ({error!r})") from None


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: no safetensors file, or not a whole one ({error})") from None


PARTS = {
    "encoder": "bert.encoder.",
    "embeddings": "bert.embeddings.",
    "head": ("bert.pooler.", "classifier.", "qa_outputs."),
    "total": "",
}


def size_table(state_dict: dict[str, Tensor], saved: dict[str, Tensor]) -> list[tuple[str, int, int, float]]:
    """Rows (part, bytes as dense float32, bytes as saved, their ratio): encoder, embeddings, head with pooler, total.

    `saved` holds the tensors stored, packed or not.
    """
    rows = []
    for part, prefix in PARTS.items():
        dense = sum(4 * value.numel() for name, value in state_dict.items() if name.startswith(prefix))
        stored = sum(value.nbytes for name, value in saved.items() if name.startswith(prefix))
        rows.append((part, dense, stored, dense / max(stored, 1)))
    return rows


def compact(state_dict: dict[str, Tensor], config: dict) -> tuple[dict[str, Tensor], dict]:
    """Remove feed-forward neurons that do nothing; the new `state_dict` and `config`, whose logits are the same.

    A neuron that reads nothing (its row of the first matrix is zero) is the constant act(bias), which moves into the
    second matrix's bias; one that nothing reads (its column there is zero) just goes. `intermediate_size` is one
    number for all layers, so each loses as many as the layer that can spare fewest; if that is none, both are
    returned as they came.
    """
    layers = [f"bert.encoder.layer.{i}." for i in range(config["num_hidden_layers"])]
    idle = [
        (state_dict[f"{layer}intermediate.dense.weight"] == 0).all(1)
        | (state_dict[f"{layer}output.dense.weight"] == 0).all(0)
        for layer in layers
    ]
    size = max([1, *(int((~mask).sum()) for mask in idle)])
    if size == config["intermediate_size"]:
        return state_dict, config
    state = dict(state_dict)
    for layer, mask in zip(layers, idle, strict=True):
        keep, drop = (part.sort().values for part in mask.int().argsort(stable=True).tensor_split([size]))
        names = [f"{layer}{part}" for part in ("intermediate.dense.weight", "intermediate.dense.bias")]
        weight, bias = f"{layer}output.dense.weight", f"{layer}output.dense.bias"
        constant = ACT2FN[config["hidden_act"]](state[names[1]][drop].double())
        moved = state[weight][:, drop].double() @ constant
        state[bias] = (state[bias] + moved).to(state[bias].dtype)
        state[weight] = state[weight][:, keep].contiguous()
        for name in names:
            state[name] = state[name][keep]
    return state, config | {"intermediate_size": size}


# --- Run fast: activations are (features, tokens) throughout, cut into tiles by token

# The most tokens of a tile. A sparse product reads whole rows of its input, which should stay in the cache, and 96
# floats are the 12 AVX2 registers that hold one row of its result; a dense product likes wider tiles.
TILE = {"sparse": 96, "dense": 192}


def _sparse(starts: Tensor, columns: Tensor, values: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    # A weighted bag of rows of x is the product with compressed sparse rows, and 2 to 4 times as fast as torch's own.
    return torch.embedding_bag(x, columns, starts, False, 0, False, values, True)[0].add_(bias)


def _to_sparse(weight: Tensor, bias: Tensor) -> Callable:
    row, column = weight.nonzero(as_tuple=True)
    starts = torch.searchsorted(row, torch.arange(len(weight) + 1))
    return partial(_sparse, starts.int(), column.int(), weight[row, column], bias[:, None])


def _to_dense(weight: Tensor, bias: Tensor) -> Callable:
    return partial(torch.addmm, bias[:, None], weight)


# Makers of the function x -> weight @ x + bias.
KERNELS = {"sparse": _to_sparse, "dense": _to_dense}


def _faster(weight: Tensor, bias: Tensor) -> str:
    """The name of the faster kernel for this matrix, with the present number of threads; sparse must win clearly."""
    runs = {name: partial(make(weight, bias), torch.ones(len(weight[0]), TILE[name])) for name, make in KERNELS.items()}
    rounds = [{name: timeit.timeit(run, number=1) / TILE[name] for name, run in runs.items()} for _ in range(6)]
    sparse, dense = (min(seconds[name] for seconds in rounds) for name in ("sparse", "dense"))
    return "sparse" if sparse < 0.8 * dense else "dense"


class _Layer:
    """One encoder layer on tiles; query, key and value are one matrix."""

    def __init__(self, weights: dict[str, Tensor], config: BertConfig, linear: Callable):
        self.heads, self.eps, self.act = config.num_attention_heads, config.layer_norm_eps, ACT2FN[config.hidden_act]
        scale = (config.hidden_size // self.heads) ** -0.5
        for part in ("weight", "bias"):
            query, key, value = (weights[f"attention.self.{name}.{part}"] for name in ("query", "key", "value"))
            weights[f"attention.self.{part}"] = torch.cat([query * scale, key, value])
        self.qkv, self.attended, self.intermediate, self.output = (
            linear(name, weights[f"{name}.weight"], weights[f"{name}.bias"])
            for name in ("attention.self", "attention.output.dense", "intermediate.dense", "output.dense")
        )
        self.norms = [
            [weights[f"{name}.LayerNorm.{part}"][:, None] for part in ("weight", "bias")]
            for name in ("attention.output", "output")
        ]

    def __call__(self, tiles: list[Tensor], lengths: list[int]) -> list[Tensor]:
        qkv = torch.cat([self.qkv(x) for x in tiles], dim=1)
        context = torch.cat([self._attend(row) for row in qkv.split(lengths, dim=1)], dim=1)
        context = context.split(tiles[0].shape[1], dim=1)
        return [self._feed_forward(x, c.contiguous()) for x, c in zip(tiles, context, strict=True)]

    def _attend(self, qkv: Tensor) -> Tensor:
        """Attention within one row of the batch: (3 * features, tokens) -> (features, tokens)."""
        query, key, value = qkv.view(3, self.heads, -1, qkv.shape[1])
        return (value @ torch.softmax(query.mT @ key, dim=-1).mT).flatten(0, 1)

    def _feed_forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = self._norm(0, self.attended(context).add_(x))
        return self._norm(1, self.output(self.act(self.intermediate(x))).add_(x))

    def _norm(self, which: int, x: Tensor) -> Tensor:
        # Batch statistics over the features are LayerNorm's mean and variance, and fast in this layout.
        weight, bias = self.norms[which]
        return torch.addcmul(bias, F.batch_norm(x, None, None, training=True, eps=self.eps), weight)


class SparseBert(nn.Module):
    """A folded BERT for evaluation on a CPU in float32, made from the plain model's whole `state_dict`.

    `chosen` names each matrix's kernel, sparse or dense: measured once for each shape and percent of density.
    """

    def __init__(self, config: BertConfig, state_dict: dict[str, Tensor]):
        super().__init__()
        self.config, self.layers, self.chosen, measured = config, [], {}, {}
        # Embeddings, pooler and head stay transformers' own.
        around = BertConfig.from_dict(config.to_dict() | {"num_hidden_layers": 0})
        self.plain = MODELS[config.architectures[0]](around).eval().requires_grad_(False)
        self.plain.load_state_dict({name: state_dict[name] for name in self.plain.state_dict()}, assign=True)

        def linear(layer: str, name: str, weight: Tensor, bias: Tensor) -> Callable:
            bucket = (*weight.shape, round(float((weight != 0).float().mean()), 2))
            if bucket not in measured:
                measured[bucket] = _faster(weight, bias)
            self.chosen[layer + name] = measured[bucket]
            return KERNELS[measured[bucket]](weight, bias)

        for layer in (f"bert.encoder.layer.{i}." for i in range(config.num_hidden_layers)):
            weights = {name[len(layer) :]: value for name, value in state_dict.items() if name.startswith(layer)}
            self.layers.append(_Layer(weights, config, partial(linear, layer)))
        self.tile = TILE["sparse" if "sparse" in self.chosen.values() else "dense"]

    @torch.no_grad()
    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None):
        """Padded inputs, each (batch, length) -> transformers output with logits | start_logits, end_logits.

        Only real tokens are computed; padding gets the span logit -1e4. ValueError where a row begins with padding.
        """
        attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        token_type_ids = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        real = attention_mask.bool()
        if not real[:, 0].all():
            raise ValueError("each row must begin with a real token: pad on the right")
        row, column = real.nonzero(as_tuple=True)
        lengths = real.sum(1).tolist()
        ids, types = input_ids[row, column], token_type_ids[row, column]
        x = self.plain.bert.embeddings(ids[None], types[None], position_ids=column[None])[0].T
        width = len(ids) / math.ceil(len(ids) / self.tile)
        tiles = [tile.contiguous() for tile in x.split(8 * math.ceil(width / 8), dim=1)]
        for layer in self.layers:
            tiles = layer(tiles, lengths)
        hidden = torch.zeros(*input_ids.shape, len(x))
        hidden[row, column] = torch.cat(tiles, dim=1).T

        if isinstance(self.plain, BertForSequenceClassification):
            return SequenceClassifierOutput(logits=self.plain.classifier(self.plain.bert.pooler(hidden)))
        start, end = self.plain.qa_outputs(hidden).masked_fill(~real[..., None], PADDING_LOGIT).unbind(-1)
        return QuestionAnsweringModelOutput(start_logits=start, end_logits=end)


def load_sparse(directory: str | Path) -> SparseBert:
    """The folded model in `directory`, in dense or sparse form, ready to run; InputError if there is none in it."""
    directory = Path(directory)
    path = directory / "config.json"
    try:
        values = json.loads(path.read_text())
        kind, (architecture, *_) = values["model_type"], values["architectures"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not the configuration of a model ({error!r})") from None
    if kind == "masked_bert":
        raise InputError(f"{directory}: a masked model; fold it first, with bertarize.py")
    if kind != "bert" or architecture not in MODELS:
        raise InputError(f"{path}: {architecture} of type {kind} is none of {', '.join(MODELS)}")
    config = BertConfig.from_dict(values)
    path = directory / FILE
    if path.exists():
        state = read_sparse(directory)
    else:
        path = directory / "model.safetensors"
        state = {name: value.float() for name, value in _read(path).items()}
    if any(name.endswith("mask_scores") for name in state):
        raise InputError(f"{path}: it holds mask_scores, so it is a masked model; fold it first, with bertarize.py")
    with torch.device("meta"):
        expected = MODELS[architecture](config).state_dict()
    for name, value in expected.items():
        if name not in state:
            raise InputError(f"{path}: {name} is missing")
        if state[name].shape != value.shape:
            raise InputError(f"{path}: {name} has shape {list(state[name].shape)}, not {list(value.shape)}")
    return SparseBert(config, state)
