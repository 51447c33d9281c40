"""Checkpoints: a model's folder that also holds all that a run needs to go on, complete or absent.

What `save` writes `restore` reads back. A checkpoint is a folder of output_dir: the model as the run's end saves it,
the tokenizer, `training_state.safetensors` (the optimizer's moments and every process's random state) and `state.json`
(step, arguments, the losses since the last log line, the loss scale, the global cut, the state of lambda's steering,
and the size and checksum of every file, the banks in output_dir/banks included).
The banks are written once and referred to. Nothing is unpickled.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from emmental.contrast.bank import Bank
from emmental.model.masked_model import MaskedModel
from emmental.pruning.schedule import MaskSchedule
from emmental.training.logs import Losses
from emmental.training.loop import Progress
from emmental.training.optimizer import Optimizer
from emmental.training.resume import EVALUATION, PASSED_OVER, RESULT, STATE, read_state, step_of
from emmental.utils import distributed
from emmental.utils.errors import InputError
from emmental.utils.files import digest, sync

TENSORS = "training_state.safetensors"


@dataclass
class TrainingState:
    """What a run goes on from."""

    model: MaskedModel
    optimizer: Optimizer
    masks: MaskSchedule | None  # None: a dense model
    progress: Progress
    losses: Losses
    banks: dict[str, Bank]
    fingerprint: dict  # arguments that change the numbers, with what the data were
    device: torch.device
    passed_over: set[Path] = field(default_factory=set)  # checkpoints that could not be used, which are never removed


def check_finite(state: TrainingState) -> None:
    """Raises InputError if any weight or score is NaN or infinite, so that none is saved."""
    names, parameters = zip(*state.model.named_parameters(), strict=True)
    finite = torch.stack([parameter.isfinite().all() for parameter in parameters]).tolist()  # one wait for the device
    broken = [name for name, ok in zip(names, finite, strict=True) if not ok]
    if broken:
        step, count = state.progress.step, len(broken)
        raise InputError(
            f"step {step}: {count} weights are NaN or infinite, the first {broken[0]}; earlier checkpoints are kept"
        )


def name_of(step: int) -> str:
    return f"checkpoint-{step}"


def save(folder: Path, state: TrainingState, save_model: Callable[[Path], None]) -> None:
    """Writes a checkpoint from process 0; every process has to call it.

    `save_model` writes model and tokenizer to the folder it is given. Written under a temporary name, synced and
    renamed. A full disk raises InputError, and nothing is left behind.
    """
    random_state = random_tensors(state.device)
    losses = state.losses.read(state.progress.step)
    if distributed.rank() == 0:
        temporary = folder.with_name(folder.name + ".partial")
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            save_model(temporary)
            save_file(optimizer_tensors(state) | random_state, temporary / TENSORS)
            content = {
                **vars(state.progress),
                **(state.masks.state_dict() if state.masks else {}),
                "losses": losses,
                "scaler": state.optimizer.scaler.state_dict(),
                "arguments": state.fingerprint,
                "files": {path.name: digest(path) for path in sorted(temporary.iterdir())},
                "banks": {name: bank.files for name, bank in state.banks.items()},
            }
            (temporary / STATE).write_text(json.dumps(content, indent=1))
            for path in [*temporary.iterdir(), temporary]:
                sync(path)
            make_room(folder, state.passed_over)
            temporary.rename(folder)
            sync(folder.parent)
        except (OSError, SafetensorError, InputError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise InputError(f"{folder}: could not be written ({error}); earlier checkpoints are untouched") from None
    distributed.wait()


def make_room(folder: Path, passed_over: set[Path]) -> None:
    """Removes a checkpoint that is to be written again; one that was passed over is kept under another name."""
    if folder in passed_over:
        passed_over.remove(folder)
        kept = folder.with_name(folder.name + PASSED_OVER)
        while kept.exists():
            kept = kept.with_name(kept.name + PASSED_OVER)
        folder.rename(kept)
    shutil.rmtree(folder, ignore_errors=True)


def restore(folder: Path, state: TrainingState) -> None:
    """Puts weights, optimizer, progress, banks and this process's random state in place."""
    saved = read_state(folder)
    for name, bank in state.banks.items():
        if not bank.files:  # the teacher's are taken up with its logits
            bank.restore(saved["banks"][name])
    state.model.load_state_dict(load_file(folder / "model.safetensors"))
    tensors = load_file(folder / TENSORS)
    for name, parameter in state.model.named_parameters():
        for key in ("step", "exp_avg", "exp_avg_sq"):
            if (value := tensors.get(f"optimizer/{key}/{name}")) is not None:
                value = value.to(state.device, copy=True)  # the file, which a CPU maps, is removed one day
                state.optimizer.adamw.state[parameter][key] = value[0] if key == "step" else value
    for name in vars(state.progress):
        setattr(state.progress, name, saved[name])
    state.losses.sums = saved["losses"]
    state.optimizer.scaler.load_state_dict(saved["scaler"])
    if state.masks:
        state.masks.load_state_dict(saved)
    # With more processes than before, the new ones draw from a random state of their own.
    if (random_state := tensors.get(f"random/cpu/{distributed.rank()}")) is not None:
        torch.set_rng_state(random_state)
    if state.device.type == "cuda" and (cuda := tensors.get(f"random/cuda/{distributed.rank()}")) is not None:
        torch.cuda.set_rng_state(cuda, state.device)


def optimizer_tensors(state: TrainingState) -> dict[str, torch.Tensor]:
    """The optimizer's state by the parameters' names."""
    names = {parameter: name for name, parameter in state.model.named_parameters()}
    return {
        f"optimizer/{key}/{names[parameter]}": value.reshape(-1) if value.ndim == 0 else value
        for parameter, values in state.optimizer.adamw.state.items()
        for key, value in values.items()
    }


def random_tensors(device: torch.device) -> dict[str, torch.Tensor]:
    """Every process's random state, by its rank."""
    tensors = {f"random/cpu/{rank}": x for rank, x in enumerate(distributed.all_gather(torch.get_rng_state(), device))}
    if device.type == "cuda":
        states = distributed.all_gather(torch.cuda.get_rng_state(device), device)
        tensors |= {f"random/cuda/{rank}": x for rank, x in enumerate(states)}
    return tensors


def remove_old(output_dir: Path, limit: int, state: TrainingState) -> None:
    """Removes all but the newest `limit` checkpoints that this run has written or gone on from; 0 keeps all.

    Those of later steps, which a run that went back has still to write anew, are not counted.
    """
    if limit and distributed.rank() == 0:
        steps = {folder: step_of(folder) for folder in output_dir.glob("checkpoint-*")}
        own = [folder for folder, step in steps.items() if step <= state.progress.step and folder.name == name_of(step)]
        own = sorted({*own} - state.passed_over, key=steps.get)
        for folder in own[:-limit]:
            shutil.rmtree(folder.rename(folder.with_name(folder.name + ".partial")))  # complete or absent


def clear(output_dir: Path, resumed: bool, keep_model: bool = False) -> None:
    """Removes what earlier runs left that would be taken for this run's: torn files, or, unless resumed, all.

    `keep_model`: but for the model, which this run starts from or learns from, and replaces at its end.
    """
    for folder in output_dir.glob("checkpoint-*"):
        if folder.name.endswith(".partial") or (not resumed and (folder / STATE).is_file()):
            shutil.rmtree(folder)
    if not resumed:
        for name in ("banks", "tensorboard", *([EVALUATION] if (output_dir / EVALUATION / RESULT).exists() else [])):
            shutil.rmtree(output_dir / name, ignore_errors=True)
        answers = ("predictions_.json", "nbest_predictions_.json", "null_odds_.json")
        model = () if keep_model else ("model.safetensors",)
        for name in (RESULT, "eval_results.txt", "README.md", *model, *answers):
            (output_dir / name).unlink(missing_ok=True)  # an unfinished run should not look finished
