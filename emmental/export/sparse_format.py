"""A pruned and folded model made small on disk.

Movement pruning leaves 3 to 50 % of the encoder's weights, yet its folded model (plain BERT whose pruned weights are
zeros) is as large as before. Here those matrices are stored as kept values and an index. Nothing is approximated:
weights come back as they were (a zero loses its sign), or as their float16 rounding.
"""

import json
import math
import re
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from emmental.model.families import LAYER
from emmental.model.validation import PACKED as FILE
from emmental.utils.errors import InputError
from emmental.utils.files import atomic_write

VERSION = 1
DTYPES = {"float32": torch.float32, "float16": torch.float16}


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


def rounded(state_dict: dict[str, Tensor], dtype: str) -> dict[str, Tensor]:
    """The tensors with floating-point ones as `dtype`, "float32" or "float16"; InputError where that overflows."""
    state = {}
    for name, weight in state_dict.items():
        value = weight.to("cpu", DTYPES[dtype] if weight.is_floating_point() else weight.dtype).contiguous()
        if value.isinf().sum() != weight.isinf().sum():
            raise InputError(f"--dtype {dtype}: {name} holds a value too large for it")
        state[name] = value
    return state


def pack(state_dict: dict[str, Tensor], dtype: str = "float32") -> tuple[dict[str, Tensor], dict]:
    """The folded `state_dict` in packed form: the tensors to store, and the header that describes them.

    Every floating-point tensor is first rounded to `dtype`, "float32" or "float16". An encoder matrix then becomes
    `NAME.values` (kept,) and `NAME.bitmask` or `NAME.gaps` (uint8), whichever is smaller, unless dense is smaller
    still. Kept is what differs from zero, so NaN is and -0.0 is not.
    """
    tensors, entries = {}, {}
    for name, value in rounded(state_dict, dtype).items():
        forms = {"dense": {name: value}}
        if re.search(LAYER, name) and name.endswith(".weight") and value.dim() == 2:
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
    with atomic_write(Path(directory) / FILE) as weights, atomic_write(Path(directory) / "config.json") as settings:
        save_file(tensors, weights, {"format": "pt", "sparse": json.dumps(header)})
        settings.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    return tensors


def read_sparse(directory: str | Path) -> dict[str, Tensor]:
    """The dense float32 state dict stored in `directory`; InputError names the file, and the tensor at fault."""
    path = Path(directory) / FILE
    tensors = read_tensors(path)
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


def read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: no safetensors file, or not a whole one ({error})") from None
