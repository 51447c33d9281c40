"""How far the two ways' losses, gradient norms and encodings differ, and what each flag for speed changes."""

from contextlib import ExitStack, nullcontext
from unittest.mock import patch

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from emmental.contrast.bank import sample
from emmental.data.examples import Examples
from tests.benchmarks.case import Case
from tests.benchmarks.project import Project
from tests.benchmarks.released import Released


class RoundedProducts(TorchDispatchMode):
    """TF32 on any machine: what a matrix product takes is rounded to 10 bits after the point, ties to even."""

    PRODUCTS = "addmm", "mm", "bmm", "baddbmm"
    ATTENTION = "_scaled_dot_product_"  # its inputs; what it multiplies inside is not seen

    @staticmethod
    def rounded(x):
        if not isinstance(x, torch.Tensor) or x.dtype != torch.float32:
            return x
        bits = x.contiguous().view(torch.int32)
        return ((bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in self.PRODUCTS or name.startswith(self.ATTENTION):
            whole = 1 if name in ("addmm", "baddbmm") else 0  # the summand stays as it is
            some = 4 if name.endswith("_backward") else len(args)  # the gradient, query, key and value
            args = (*args[:whole], *map(self.rounded, args[whole:some]), *args[some:])
        return function(*args, **(kwargs or {}))


def effects(case: Case, attention: str, encoded: Examples) -> dict:
    """How much each flag for speed changes the numbers, against the released way in float32."""
    ways = {"--bf16": {"dtype": torch.bfloat16}, "--fp16": {"dtype": torch.float16}}
    ways |= {"--tf32": {"around": RoundedProducts}, "--bank_dtype float16": {"bank_dtype": torch.float16}}
    return {flag: differences(case, attention, encoded, **way) for flag, way in ways.items()}


def differences(
    case: Case, attention: str, encoded: Examples, dtype=None, around=nullcontext, bank_dtype=torch.float32
) -> dict:
    """Takes two steps each way, dropout off, with the same extra examples; their largest differences.

    The released way in float32, the project's with autocast to `dtype` and banks of `bank_dtype`, inside `around`.
    Loss and gradient norm relative, encodings (unit vectors) absolute.
    """

    def draw(step: int, number: int, examples: int, count: int) -> list[int]:
        return sample(examples, count, (case.plan.seed, step, 0, number)).tolist()

    released, project = Released(case, attention, draw), Project(case, 2, dtype, bank_dtype)
    if scaling := project.optimizer.scaler.state_dict():
        # a scale that float16's gradients bear from the first step; a run comes down to it by skipping steps
        project.optimizer.scaler.load_state_dict(scaling | {"scale": 2.0**8})
    found = {"loss": 0.0, "grad_norm": 0.0}
    torch.set_float32_matmul_precision("highest")
    with ExitStack() as stack, patch.object(torch, "set_float32_matmul_precision"):
        for module in (*case.student.modules(), *released.student.modules()):
            if isinstance(module, nn.Dropout):
                stack.enter_context(patch.object(module, "p", 0.0))
        for step in (case.first_step, case.first_step + 1):
            right = released.step(step)
            with around():
                ours = project.step(step)
            for name, slow, fast in zip(found, right, ours, strict=True):
                found[name] = max(found[name], abs(slow - fast) / abs(slow))
        with around():
            rows = project.encode(encoded).cpu()
        found["encoding"] = (released.encode(encoded) - rows).abs().max().item()
    return found
