"""The main job in miniature: `python -m emmental.demo run_glue_topk_kd.sh`, with no network and no GPU.

It makes a small data set in the task's own file format, a small BERT pre-trained on it with masked words, and a
teacher by the training script; then it runs the shell script itself with small values in the environment, and holds
the pruned model against controls. Everything is in ./demo, and what a second script can share is made once.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

from emmental.demo.data import TOPICS, Examples, Texts, best_guess
from emmental.demo.tasks import RECIPE, SCRIPTS, Task
from emmental.utils.errors import InputError, run

ROOT = Path(__file__).parents[2]  # where the scripts are; the demo's own folder is made where it is started
HELP = f"""usage: python -m emmental.demo SCRIPT [FLAG ...]
       DEMO=1 bash SCRIPT [FLAG ...]

{__doc__}
SCRIPT is the path of {", ".join(list(SCRIPTS)[:2])},
{" or ".join(list(SCRIPTS)[2:])}; each FLAG goes to the training of the pruned model.

environment:
  DEMO_SEED  the seed of everything (default: 42)
  EPOCH, WARMUP, BATCH, LR, FINAL_TH, NPROC and SCRIPT's other variables
             replace the demo's values for the pruned model, not for the teacher;
             TASK, DATA_DIR, MODEL, TEACHER_PATH, OUTPUT and SEED are always the demo's;
             GPU holds for the teacher too"""


def pretrain(folder: Path, pairs: Texts, seed: int) -> None:
    """A BERT of two layers with a vocabulary of whole words, trained to restore masked topic words of `pairs`."""
    import torch
    from tqdm import tqdm
    from transformers import BertConfig, BertForPreTraining, BertTokenizerFast, logging

    logging.disable_progress_bar()
    words = sorted({word for pair in pairs for text in pair for word in text.split()})
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = BertTokenizerFast(vocab={word: i for i, word in enumerate(special + words)})
    torch.manual_seed(seed)
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256}
    shape |= {"vocab_size": len(tokenizer), "max_position_embeddings": 128}
    model = BertForPreTraining(BertConfig(**shape, initializer_range=0.05))  # so small a BERT learns little with 0.02
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    texts = tokenizer(*map(list, zip(*pairs, strict=True)), padding=True, return_tensors="pt")
    of_topics = tokenizer.convert_tokens_to_ids([word for topic in TOPICS for word in (topic, *TOPICS[topic])])
    topical = torch.isin(texts["input_ids"], torch.tensor(of_topics))
    for _ in tqdm(range(600), desc="masked words", disable=not sys.stderr.isatty()):
        rows = torch.randint(len(pairs), (32,))
        batch = {name: values[rows] for name, values in texts.items()}
        hidden = topical[rows] & (torch.rand(topical[rows].shape) < 0.4)
        masked = batch["input_ids"][hidden]
        batch["input_ids"] = batch["input_ids"].masked_fill(hidden, tokenizer.mask_token_id)
        guesses = model.cls.predictions(model.bert(**batch).last_hidden_state[hidden])
        torch.nn.functional.cross_entropy(guesses, masked).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def execute(title: str, *command: object, **environment: str) -> None:
    """Runs a command with its output shown and this Python first on its path; leaves with its status if it fails."""
    command = [str(part) for part in command]
    shown = [f"{name}={value}" for name, value in environment.items() if value and os.environ.get(name) != value]
    print(f"\n== {title}: {' '.join([*shown, *command])}", flush=True)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    finished = subprocess.run(command, env=os.environ | environment | {"PATH": path})
    if finished.returncode:
        sys.exit(finished.returncode)


def make_teacher(task: Task, here: Path, together: Texts, flags: list[object], seed: int) -> None:
    """The small BERT and its teacher in `here`, unless an earlier demo has left them."""
    code = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    marker, state = here / "made.json", {"seed": seed, "demo": zlib.crc32(code)}
    made = all((here / folder / "config.json").exists() for folder in ("model", "teacher"))
    if made and marker.exists() and json.loads(marker.read_text()) == state:
        print(f"the small BERT and its teacher are in {here} from an earlier demo")
        return
    marker.unlink(missing_ok=True)
    for folder in ("model", "teacher"):
        shutil.rmtree(here / folder, ignore_errors=True)
    print(f"== A small BERT in {here / 'model'}", flush=True)
    pretrain(here / "model", together, seed)
    settings = f"""--model_type bert --model_name_or_path {here}/model --data_dir {here}/data --do_train --do_eval
        --output_dir {here}/teacher --per_gpu_train_batch_size {task.recipe["BATCH"]}
        --learning_rate {task.recipe["LR"]} --num_train_epochs {task.epochs} --save_steps 0"""
    execute("Its teacher", "python", ROOT / f"masked_run_{task.name}.py", *settings.split(), *flags)
    marker.write_text(json.dumps(state))


def bounds(script: str) -> tuple[float, float]:
    """Between what shares the remaining weights must lie, in per cent: about what was asked for, or by the recipe."""
    target, kept = os.environ.get("TARGET_SPARSITY"), os.environ.get("FINAL_TH")
    if target and "topk" in script:
        raise InputError(f"TARGET_SPARSITY is for the soft scripts; {script} keeps FINAL_TH")
    if not (target or (kept and "topk" in script)):
        return 5, 15
    try:
        share = 100 - 100 * float(target) if target else 100 * float(kept)
    except ValueError:
        share = -1.0
    if not 0 < share < 100:
        raise InputError(f"TARGET_SPARSITY {target}, FINAL_TH {kept}: above 0 and below 1")
    return share - 0.1, share + 0.1


def compare(task: Task, here: Path, output: Path, dev: Examples, low: float, high: float) -> list[str]:
    """Prints the table: teacher, pruned model and controls; returns the requirements that are not met.

    Between `low` and `high` per cent of the weights are to remain.
    """
    import torch
    from transformers import AutoTokenizer

    import emmental
    from emmental.export.fold import save_folded
    from emmental.export.sparse_format import FILE
    from emmental.pruning.counting import count
    from emmental.pruning.masked_linear import masked_linears
    from emmental.pruning.masks import top_mask

    kind, tokenizer = getattr(emmental, task.model), AutoTokenizer.from_pretrained(output)
    packed = Path(f"{output}-packed")
    dense = emmental.MaskedBertConfig.from_pretrained(here / "teacher", pruning_method=None)
    teacher, pruned = kind.from_pretrained(here / "teacher", config=dense), kind.from_pretrained(output)
    shutil.rmtree(packed, ignore_errors=True)
    save_folded(pruned, output, packed, "sparse", "float32", compacted=False)
    linears = masked_linears(pruned).values()
    masks = [linear.current_mask() for linear in linears]

    def under(change: Callable) -> dict[str, float]:
        for linear, mask in zip(linears, masks, strict=True):
            linear.mask = change(linear.weight.detach(), mask.detach())
        return task.evaluate(pruned, tokenizer, here)

    def shuffle(weight: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return mask.flatten()[torch.randperm(mask.numel())].view_as(mask)

    def largest(weight: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return top_mask(weight.abs().flatten()[None], int(mask.sum())).view_as(mask)

    torch.manual_seed(0)
    left = count(pruned).remaining
    rows = {
        "teacher": (task.evaluate(teacher, tokenizer, here), 100),
        "pruned model": (task.evaluate(pruned, tokenizer, here), left),
        "  its masks shuffled within each matrix": (under(shuffle), left),
        "  magnitude masks of the same size": (under(largest), left),
    }
    measure, *_ = titles = list(rows["teacher"][0])
    print("\n" + " " * 40 + "".join(f"{title:>13}" for title in [*titles, "weights left"]))
    for name, (scores, share) in rows.items():
        print(f"{name:40}" + "".join(f"{value:11.1f} %" for value in [*scores.values(), share]))
    alone = max(best_guess(dev, place) for place in (0, 1))
    print(f"best guess from one of the two texts: {alone:.1f} % right, counted on the dev set\n")
    for what, file in {
        "the teacher": here / "teacher" / "model.safetensors",
        "the pruned model, weights and scores": output / "model.safetensors",
        "the same folded and packed": packed / FILE,
    }.items():
        print(f"{file.stat().st_size / 1024:8.0f} KiB  {file}  {what}")

    best, ours, shuffled, _ = (scores[measure] for scores, _ in rows.values())
    required = {
        f"{low:g} to {high:g} % of the weights remain": low <= left <= high,
        f"the teacher reaches {task.teacher} %": best >= task.teacher,
        "the pruned model is within 5 points of the teacher": ours >= best - 5,
        "shuffled masks fall 20 points or more behind": shuffled <= ours - 20,
        f"one text alone gives at most {task.alone} %": alone <= task.alone,
    }
    return [text for text, met in required.items() if not met]


def main() -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # matrices this small only wait for one another on more threads
    script, *more = sys.argv[1:] or [""]
    if {"-h", "--help"} & {script, *more}:
        print(HELP)
        return
    if Path(script).name not in SCRIPTS:
        raise InputError(f"{script!r} is not one of {', '.join(SCRIPTS)}")
    (task, sparsity), remaining = SCRIPTS[Path(script).name], bounds(Path(script).name)
    given = os.environ.get("DEMO_SEED", "42")
    if not given.isdecimal() or len(given) > 18:  # the scripts take seeds below 2^63
        raise InputError(f"DEMO_SEED {given}: a number of at most 18 digits")
    seed, here, started = int(given), Path("demo") / task.name, time.time()
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}
    settings = {"seed": seed, "cache_dir": here / "cache", **task.flags}
    flags = [part for name, value in settings.items() for part in (f"--{name}", value)]
    together, dev = task.write(here / "data", random.Random(seed))
    make_teacher(task, here, together, flags, seed)
    output = here / Path(script).stem
    places = {"DATA_DIR": here / "data", "MODEL": here / "model", "TEACHER_PATH": here / "teacher", "OUTPUT": output}
    # the environment may set the recipe's numbers, as for the script alone; the places are the demo's
    settings = RECIPE | task.recipe | sparsity | os.environ | {name: str(place) for name, place in places.items()}
    execute(
        "The script", "bash", script, *flags, "--overwrite_output_dir", *more, **settings | {"TASK": "qqp", "DEMO": ""}
    )
    missed = compare(task, here, output, dev, *remaining)
    print(f"{time.time() - started:.0f} seconds; all of it is in {here}")
    if missed:
        sys.exit("".join(f"NOT MET: {text}\n" for text in missed))


if __name__ == "__main__":
    run(main)
