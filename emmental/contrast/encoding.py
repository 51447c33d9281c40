"""The passes that fill the banks: the teacher once, the student at the start of every epoch.

The teacher's pass yields its logits as well, so that distillation needs no forward of its own.
"""

import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize, pad

from emmental.contrast.bank import Bank
from emmental.data.examples import Examples
from emmental.model.inference import sweep
from emmental.model.masked_bert import PADDING_LOGIT, MaskedBert
from emmental.training.loop import Precision
from emmental.utils import distributed
from emmental.utils.files import digest, whole

TEACHER_LOGITS = "teacher-logits.safetensors"


def predict(
    model: MaskedBert, examples: Examples, precision: Precision, title: str, length: int | None = None
) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """A model's logits of a set, each (examples, classes), and its representations as banks hold them.

    In eval mode, in float32 and on the CPU. Spans are as wide as the longest window, or as `length`.
    """
    widest = length or int(examples.lengths.max())

    def compute(inputs):
        with precision.autocast():
            outputs = model(**inputs)
        spans = len(outputs.classifications) > 1
        missing = widest - inputs["input_ids"].shape[1] if spans else 0
        logits = [pad(x.float(), (0, missing), value=PADDING_LOGIT) for x in outputs.classifications]
        return *logits, normalize(outputs.representation.float(), dim=-1)

    model.eval()
    *logits, representations = sweep(compute, examples, device=precision.device, title=title, length=length)
    return tuple(logits), representations


def fill_from_teacher(
    bank: Bank, teacher: MaskedBert, examples: Examples, precision: Precision, length: int | None
) -> tuple[torch.Tensor, ...]:
    """Fills the FiC bank, and returns the teacher's logits, which are kept beside it."""
    logits, representations = predict(teacher, examples, precision, "teacher", length)
    bank.add("finetuned.safetensors", representations, write=distributed.rank() == 0)
    if distributed.rank() == 0:
        with whole(bank.folder / TEACHER_LOGITS) as beside:
            save_file({str(number): x for number, x in enumerate(logits)}, beside)
        bank.files[TEACHER_LOGITS] = digest(bank.folder / TEACHER_LOGITS)
    return logits


def restore_from_teacher(bank: Bank, files: dict[str, list[int]]) -> tuple[torch.Tensor, ...]:
    """The mirror image: takes up bank and logits from the files of an earlier run."""
    bank.restore({name: known for name, known in files.items() if name != TEACHER_LOGITS})
    bank.files = dict(files)
    saved = load_file(bank.folder / TEACHER_LOGITS)
    return tuple(saved[str(number)] for number in range(len(saved)))


def encode_epoch(
    epoch: int,
    banks: dict[str, Bank],
    model: MaskedBert,
    examples: Examples,
    precision: Precision,
    length: int | None,
    snapshot_mode: str,
) -> None:
    """PrC before the first epoch: the pre-trained model; SnC at the start of each later one: a snapshot."""
    name = "snapshots" if epoch else "pretrained"
    if name not in banks:
        return
    # as released the pre-trained model is encoded in eval mode, snapshots with dropout on (quirk 9)
    model.train(bool(epoch) and snapshot_mode == "train")

    def compute(inputs):
        with precision.autocast():
            return (model.encode(**inputs),)

    title = f"snapshot {epoch}" if epoch else "pre-trained"
    (column,) = sweep(compute, examples, device=precision.device, title=title, length=length)
    file = f"snapshot-{epoch}.safetensors" if epoch else "pretrained.safetensors"
    banks[name].add(file, column, write=distributed.rank() == 0)
