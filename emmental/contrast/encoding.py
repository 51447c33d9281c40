"""The passes that fill the banks: the teacher once, the student at the start of every epoch.

The teacher's pass yields its logits as well, so that distillation needs no forward of its own. A bank of another kind
is a name in BANKS (arguments.py), a pass here that fills it, and its columns in `plan_memory` (training/memory.py); the
loss takes it from there.
"""

import torch
from safetensors.torch import load_file, save_file

from emmental.contrast.bank import Bank
from emmental.data.examples import Examples
from emmental.model.inference import map_examples, predict
from emmental.model.masked_model import MaskedModel
from emmental.utils import distributed
from emmental.utils.files import atomic_write, digest
from emmental.utils.precision import Precision

TEACHER_LOGITS = "teacher-logits.safetensors"


def fill_from_teacher(
    bank: Bank, teacher: MaskedModel, examples: Examples, precision: Precision, contrasted: bool
) -> tuple[torch.Tensor, ...]:
    """Fills the FiC bank if it is `contrasted` with; returns the teacher's logits, which are kept beside it."""
    logits = predict(teacher, examples, precision, "teacher", with_representation=contrasted)
    if contrasted:
        bank.add("finetuned.safetensors", logits.pop(), write=distributed.rank() == 0)
    if distributed.rank() == 0:
        with atomic_write(bank.folder / TEACHER_LOGITS) as temporary:
            save_file({str(number): x for number, x in enumerate(logits)}, temporary)
        bank.files[TEACHER_LOGITS] = digest(bank.folder / TEACHER_LOGITS)
    return tuple(logits)


def restore_from_teacher(bank: Bank, files: dict[str, list[int]]) -> tuple[torch.Tensor, ...]:
    """The mirror image: takes up bank and logits from the files of an earlier run."""
    bank.restore({name: saved for name, saved in files.items() if name != TEACHER_LOGITS})
    bank.files = dict(files)
    teacher_logits = load_file(bank.folder / TEACHER_LOGITS)
    return tuple(teacher_logits[str(number)] for number in range(len(teacher_logits)))


def encode_epoch(
    epoch: int, banks: dict[str, Bank], model: MaskedModel, examples: Examples, precision: Precision
) -> None:
    """PrC before the first epoch: the pre-trained model; SnC at the start of each later one: a snapshot.

    The student is encoded with the masks it has, those of the step before (D7).
    """
    name = "snapshots" if epoch else "pretrained"
    if name not in banks:
        return
    model.train(banks[name].dropout)

    def compute(inputs):
        with precision.autocast():
            return (model.encode(**inputs),)

    title = f"snapshot {epoch}" if epoch else "pre-trained"
    (column,) = map_examples(compute, examples, device=precision.device, title=title)
    file = f"snapshot-{epoch}.safetensors" if epoch else "pretrained.safetensors"
    banks[name].add(file, column, write=distributed.rank() == 0)
