"""What a user might pick instead of `load_sparse`: the same folded model in ONNX Runtime and in OpenVINO.

ONNX Runtime runs it in float32 and with its dynamic int8 quantization (default options: int8 weights, one scale a
tensor), OpenVINO in float32, which has to be asked for where the processor multiplies bfloat16.
"""

import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

# Not in tests/requirements.txt: OpenVINO's newest has no wheel for Linux on ARM.
INSTALL = "pip install onnx==1.23.2 onnxruntime==1.32.0 openvino==2026.4.1"
PACKAGES = ("onnx", "onnxruntime", "openvino")
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def missing() -> list[str]:
    return [name for name in PACKAGES if find_spec(name) is None]


class _Logits(nn.Module):
    """The model with inputs by position and the logits alone, as the exporter wants it."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.model(**dict(zip(INPUTS, inputs, strict=True))).logits


def export(model: nn.Module, folder: Path) -> None:
    """Write `float32.onnx` and `int8.onnx`, both for any batch size and length."""
    from onnxruntime.quantization import quantize_dynamic

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # this exporter needs no further package, and says that there is a newer one
        torch.onnx.export(
            _Logits(model).eval(),  # else the exporter leaves the model in training mode
            tuple(torch.ones(2, 16, dtype=torch.long) for _ in INPUTS),
            folder / "float32.onnx",
            input_names=list(INPUTS),
            output_names=["logits"],
            dynamic_axes={name: {0: "batch", 1: "length"} for name in INPUTS},
            dynamo=False,
        )
    quantize_dynamic(folder / "float32.onnx", folder / "int8.onnx")


def _onnxruntime(path: Path, threads: int) -> Callable:
    from onnxruntime import InferenceSession, SessionOptions

    options = SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda inputs: torch.from_numpy(session.run(None, {name: inputs[name].numpy() for name in INPUTS})[0])


def _openvino(path: Path, threads: int) -> Callable:
    from openvino import Core

    settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": "1", "INFERENCE_PRECISION_HINT": "f32"}
    compiled = Core().compile_model(path, "CPU", settings)
    return lambda inputs: torch.from_numpy(compiled({name: inputs[name].numpy() for name in INPUTS})["logits"])


# A function from file and number of threads, and the file.
ENGINES = {
    "onnx": (_onnxruntime, "float32.onnx"),
    "onnx int8": (_onnxruntime, "int8.onnx"),
    "openvino": (_openvino, "float32.onnx"),
}


def load(folder: Path, threads: int) -> dict[str, Callable[[dict[str, Tensor]], Tensor]]:
    """For each engine a function from the inputs by name, each (batch, length), to the logits (batch, labels)."""
    return {name: make(folder / file, threads) for name, (make, file) in ENGINES.items()}
