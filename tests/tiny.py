"""A world small enough to run the real scripts in: a BERT of two layers, data sets of a few rows, and a launcher.

A launcher is a process that has imported what the scripts import and computed nothing; it forks a child for every
script that it is asked to run, so that a run costs milliseconds to start, and may be killed.
"""

import atexit
import gc
import importlib
import json
import os
import random
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# before conftest hides them
GPUS = {name: value for name, value in os.environ.items() if name == "CUDA_VISIBLE_DEVICES"}
LIGHT = (
    "emmental.arguments",
    "emmental.model.suitability",
    "emmental.data.glue",
    "emmental.data.glue_metrics",
    "emmental.data.squad",
    "emmental.data.squad_windows",
    "emmental.data.squad_metrics",
)
HEAVY = (
    *LIGHT,
    "emmental.experiment",
    "emmental.export.fold",
    "emmental.export.sparse_bert",
    "scipy.stats",
    "sklearn.metrics",
    "torch.nn.parallel",
    "torch.optim",
    "transformers.models.bert.tokenization_bert",
)


# --- Running scripts


@dataclass(frozen=True)
class Result:
    """How a script ended: `code` is its exit status, or minus the signal that ended it."""

    code: int
    out: str
    err: str


class Running:
    """A script at work in a child of the launcher."""

    def __init__(self, launcher: "Launcher", pid: int, folder: tempfile.TemporaryDirectory):
        self.launcher, self.pid, self.folder = launcher, pid, folder

    def wait(self, timeout: float = 120) -> Result:
        """Waits for its end; after `timeout` seconds it is killed."""
        timer = threading.Timer(timeout, os.kill, (self.pid, signal.SIGKILL))
        timer.start()
        code = self.launcher.ask({"wait": self.pid})
        timer.cancel()
        out, err = ((Path(self.folder.name) / name).read_text(errors="replace") for name in ("out", "err"))
        self.folder.cleanup()
        return Result(code, out, err)


class Launcher:
    """A process that has imported `modules`."""

    def __init__(self, *modules: str):
        paths = f"{ROOT}:{ROOT / 'tests' / 'cuda'}"
        environ = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": paths}
        if "real_device" in modules:
            environ = {name: value for name, value in environ.items() if name != "CUDA_VISIBLE_DEVICES"} | GPUS
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        command = [sys.executable, __file__, *modules]
        self.process = subprocess.Popen(command, env=environ, cwd=ROOT, text=True, **pipes)

    def ask(self, request: dict) -> int:
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())

    def start(self, script: str, *flags, environ: dict[str, str] | None = None, before: tuple = ()) -> Running:
        """Starts a script; `before`: a function of this module or module.function, and arguments, for the child."""
        folder = tempfile.TemporaryDirectory()
        request = {"script": script, "flags": [str(flag) for flag in flags], "environ": environ or {}, "before": before}
        return Running(self, self.ask(request | {"folder": folder.name}), folder)


@cache
def launcher(*modules: str) -> Launcher:
    return Launcher(*modules)


def start_script(script: str, *flags, **settings) -> Running:
    return launcher(*HEAVY).start(script, *flags, **settings)


def run_script(script: str, *flags, timeout: float = 120, **settings) -> Result:
    """Runs a script to its end."""
    return start_script(script, *flags, **settings).wait(timeout)


def succeed(script: str, *flags, **settings) -> Result:
    """Runs a script that must exit with 0."""
    result = run_script(script, *flags, **settings)
    assert result.code == 0, f"exit status {result.code}\n{result.out[-2000:]}\n{result.err[-4000:]}"
    return result


def serve(modules: list[str]) -> None:
    """The launcher's loop."""
    sys.modules["matplotlib"] = None  # optional, and a second for every run that draws
    for module in modules:
        importlib.import_module(module)
    if "transformers" in sys.modules:  # compiles a thousand patterns when first asked
        importlib.import_module("transformers.conversion_mapping").get_checkpoint_conversion_mapping("bert")
    gc.collect()
    gc.freeze()  # so that a child does not copy all that it will never touch
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
        elif not (answer := os.fork()):
            child(**request)
        print(answer, flush=True)


def child(script: str, flags: list[str], environ: dict[str, str], before: list, folder: str) -> None:
    """Runs a script as the interpreter would, but for tearing down all that was imported, which takes a second."""
    os.environ.update(environ)
    for number, name in ((0, os.devnull), (1, f"{folder}/out"), (2, f"{folder}/err")):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT), number)
    sys.argv = [script, *flags]
    sys.path[0] = str(ROOT)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
    if before:
        name, *arguments = before
        module, _, function = name.rpartition(".")
        getattr(importlib.import_module(module or __name__), function)(*arguments)
    code = 0
    try:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


# --- What may befall a child


def without(module: str) -> None:
    """Makes importing `module` an error."""
    assert module not in sys.modules
    sys.modules[module] = None


def hit(number: int, function: str, nth: int) -> None:
    """Sends this process the signal `number` as the `nth` call of an emmental function begins.

    `function` is its qualified name, or empty for any.
    """
    at_call(function, nth, lambda: os.kill(os.getpid(), number))


def at_call(function: str, nth: int, act: Callable[[], None]) -> None:
    calls, inside = 0, str(ROOT / "emmental") + os.sep

    def count(frame, event, _):
        nonlocal calls
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(inside) or function not in ("", code.co_qualname):
            return
        calls += 1
        if calls == nth:
            sys.setprofile(None)
            act()

    sys.setprofile(count)


def interrupt_unread(function: str, nth: int) -> None:
    """As Ctrl-C does to `script | tee log`: whatever reads the output ends, and this process has the signal."""
    reader, writer = os.pipe()
    for number in (1, 2):
        os.dup2(writer, number)

    def act() -> None:
        os.close(reader)
        os.kill(os.getpid(), signal.SIGINT)

    at_call(function, nth, act)


def fail(function: str, nth: int, stuck: bool = False) -> None:
    """Raises an error as the `nth` call of a function begins; where `stuck`, an exit handler then never ends."""

    def act() -> None:
        if stuck:
            atexit.register(time.sleep, 3600)
        raise ValueError("broken on purpose")

    at_call(function, nth, act)


def block(function: str, nth: int) -> None:
    """Blocks as the `nth` call of a function begins, like a host that waits for a GPU."""
    at_call(function, nth, lambda: time.sleep(3600))


def watch_group(file: str) -> None:
    """Writes to `file`, at the end, whether the process is in a group still; sending buffers round is an error."""
    import torch

    torch.nn.parallel.DistributedDataParallel._sync_buffers = None
    atexit.register(lambda: Path(file).write_text(str(torch.distributed.is_initialized())))


def count_calls(file: str) -> None:
    """Writes the number of calls of emmental's functions to `file` when the process ends."""
    calls, inside = 0, str(ROOT / "emmental") + os.sep

    def count(frame, event, _):
        nonlocal calls
        calls += event == "call" and frame.f_code.co_filename.startswith(inside)

    sys.setprofile(count)
    atexit.register(lambda: Path(file).write_text(str(calls)))


def no_locks() -> None:
    """A file system that has no locks, as some on networks."""
    import errno
    import fcntl

    def flock(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    fcntl.flock = flock


def limit_file_size(size: int) -> None:
    """Lets no file grow past `size` bytes: to a program this is what a full disk is."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


# --- The world

WORDS = [first + second for first in "bdfgklmnprstvz" for second in "aeiou"]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", ",", "?", '"', *WORDS]
SIZES = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}


# what a family's config needs beside SIZES, and which pre-trained model it starts from
OWN_SIZES = {
    "bert": ("BertForPreTraining", {}),
    "roberta": ("RobertaForMaskedLM", {"max_position_embeddings": 66, "type_vocab_size": 1, "vocab_size": 400}),
    "electra": ("ElectraForPreTraining", {"embedding_size": 16}),
    "distilbert": ("DistilBertForMaskedLM", {}),
    "modernbert": (
        "ModernBertForMaskedLM",
        {"vocab_size": 400, "local_attention": 8, "num_hidden_layers": 3, "embedding_dropout": 0.1, "mlp_dropout": 0.1}
        | {"attention_dropout": 0.1, "classifier_dropout": 0.1, "norm_bias": True}
        | {"pad_token_id": 1, "cls_token_id": 0, "sep_token_id": 2, "bos_token_id": 0, "eos_token_id": 2},
    ),
}


def make_model(folder: Path, architecture: str = "", seed: int = 0, family: str = "bert", **settings) -> Path:
    """A random model's folder, with its tokenizer; pre-trained if no architecture says otherwise."""
    import torch
    import transformers

    from emmental.model.families import FAMILIES

    folder.mkdir(parents=True)
    make_tokenizer(folder, family)
    pretrained, own = OWN_SIZES[family]
    entry = FAMILIES[family]
    settings = {entry.key(name): value for name, value in (SIZES | own).items()} | settings
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = getattr(transformers, f"{entry.prefix}Config")(**settings)
        model = getattr(transformers, architecture or pretrained)(config)
    model.save_pretrained(folder)
    return folder


def make_tokenizer(folder: Path, family: str = "bert") -> None:
    """The family's kind of tokenizer in its folder: whole words, or byte-level BPE learnt from WORDS."""
    import transformers

    if family in ("roberta", "modernbert"):
        return make_byte_tokenizer(folder, family)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    kind = {"electra": "ElectraTokenizerFast", "distilbert": "DistilBertTokenizerFast"}.get(family, "BertTokenizerFast")
    getattr(transformers, kind).from_pretrained(folder).save_pretrained(folder)


def make_byte_tokenizer(folder: Path, family: str) -> None:
    """Byte-level BPE with RoBERTa's special tokens; ModernBERT's puts pairs together as BERT does."""
    import tokenizers
    import transformers

    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    bpe = tokenizers.ByteLevelBPETokenizer()
    text = [" ".join(random.Random(seed).choices([*WORDS, ".", ",", "?"], k=40)) for seed in range(40)]
    bpe.train_from_iterator(text, vocab_size=400, min_frequency=2, special_tokens=special, show_progress=False)
    names = {"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>", "unk_token": "<unk>"}
    names |= {"pad_token": "<pad>", "mask_token": "<mask>"}
    if family == "roberta":
        bpe.save_model(str(folder))
        tokenizer = transformers.RobertaTokenizerFast.from_pretrained(folder)
    else:
        pairs = {"single": "<s> $A </s>", "pair": "<s> $A </s> $B </s>", "special_tokens": [("<s>", 0), ("</s>", 2)]}
        bpe._tokenizer.post_processor = tokenizers.processors.TemplateProcessing(**pairs)
        inputs = {"model_input_names": ["input_ids", "attention_mask"]}
        tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, **names, **inputs)
    tokenizer.save_pretrained(folder)


def sentence(chance: random.Random, words: int) -> str:
    return " ".join(chance.choice(WORDS) for _ in range(words))


HEADERS = {
    "qqp": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
    "mnli": "index\tpromptID\tpairID\tgenre\tp1\tp2\tp3\tp4\tsentence1\tsentence2\tlabel1\tgold_label",
    "sts-b": "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
}
LABELS = {
    "qqp": lambda chance: chance.choice("01"),
    "mnli": lambda chance: f"x\t{chance.choice(['entailment', 'neutral', 'contradiction'])}",
    "sts-b": lambda chance: f"{5 * chance.random():.3f}",
}
SETS = {"mnli": ("train", "dev_matched", "dev_mismatched")}


def make_glue(folder: Path, task: str, train: int = 26, dev: int = 21) -> Path:
    """The official files of a task, with random rows: `train` and `dev` of them."""
    folder.mkdir(parents=True)
    for seed, split in enumerate(SETS.get(task, ("train", "dev"))):
        chance, lines = random.Random(seed), [HEADERS[task]]
        between = {"qqp": 3, "mnli": 8, "sts-b": 7}[task]
        for row in range(train if split == "train" else dev):
            texts = (sentence(chance, chance.randint(1, 8)) for _ in range(2))
            lines.append("\t".join([str(row), *"x" * (between - 1), *texts, LABELS[task](chance)]))
        (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return folder


def make_squad(folder: Path, version_2: bool = False, train: int = 8, dev: int = 6) -> Path:
    """The official files, with random passages: `train` and `dev` of them, and two questions to each."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (split, passages) in enumerate((("train", train), ("dev", dev))):
        chance, paragraphs = random.Random(seed), []
        for number in range(passages):
            words = sentence(chance, chance.randint(8, 30)).split()
            questions = []
            for place in (0, 1):
                at = chance.randrange(len(words) - 2)
                text, start = " ".join(words[at : at + 2]), len(" ".join([*words[:at], ""]))
                answers = [] if version_2 and place else [{"text": text, "answer_start": start}]
                asked = sentence(chance, 3) + " ?"
                questions.append({"id": f"{split}-{number}-{place}", "question": asked, "answers": answers})
                if version_2:
                    questions[-1]["is_impossible"] = not answers
            paragraphs.append({"context": " ".join(words), "qas": questions})
        content = {"version": "2.0" if version_2 else "1.1", "data": [{"title": "t", "paragraphs": paragraphs}]}
        (folder / f"{split}-v{content['version']}.json").write_text(json.dumps(content))
    return folder


class World:
    """A model, its teachers and data sets, each made when first asked for, in one folder."""

    def __init__(self, folder: Path, family: str = "bert"):
        self.folder, self.cache, self.family = folder, folder / "cache", family

    def _kept(self, name: str, make, *arguments, **settings) -> Path:
        path = self.folder / name
        return path if path.exists() else make(path, *arguments, **settings)

    @property
    def model(self) -> Path:
        return self._kept("model", make_model, family=self.family)

    @property
    def still_model(self) -> Path:
        """One without dropout."""
        names = {"distilbert": ["dropout", "attention_dropout", "seq_classif_dropout", "qa_dropout"]}
        names["modernbert"] = [f"{part}_dropout" for part in ("embedding", "mlp", "attention", "classifier")]
        off = dict.fromkeys(names.get(self.family, ["hidden_dropout_prob", "attention_probs_dropout_prob"]), 0.0)
        return self._kept("still-model", make_model, family=self.family, **off)

    def data(self, task: str) -> Path:
        return self._kept(task, make_glue, task) if task in HEADERS else self._kept(task, make_squad, task[-1] == "2")

    def teacher(self, task: str) -> Path:
        """A random fine-tuned model."""
        if task not in HEADERS:
            return self._kept("teacher-squad", make_model, self.plain("QuestionAnswering"), seed=1, family=self.family)
        names = {"qqp": ["0", "1"], "mnli": ["entailment", "neutral", "contradiction"], "sts-b": ["LABEL_0"]}[task]
        labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
        plain = self.plain("SequenceClassification")
        return self._kept(f"teacher-{task}", make_model, plain, seed=1, family=self.family, **labels)

    def plain(self, head: str) -> str:
        from emmental.model.families import FAMILIES

        return f"{FAMILIES[self.family].prefix}For{head}"

    def command(self, task: str, model: Path | None = None) -> list:
        """A script's name, and flags that say what to read; `task` is a GLUE task, squad1 or squad2."""
        common = ["--model_name_or_path", model or self.model, "--cache_dir", self.cache, "--data_dir", self.data(task)]
        if task in HEADERS:
            return ["masked_run_glue.py", *common, "--task_name", task, "--max_seq_length", 24]
        lengths = ["--max_seq_length", 32, "--doc_stride", 12, "--max_query_length", 8, "--max_answer_length", 5]
        return ["masked_run_squad.py", *common, *lengths, *["--version_2_with_negative"] * (task == "squad2")]

    def cap(self, task: str) -> list:
        """Flags of the contrastive losses and distillation."""
        return [
            *["--use_contrastive_loss", "--contrastive_temperature", 0.1, "--extra_examples", 16, "--alignrep", "cls"],
            *["--use_distill", "--teacher_name_or_path", self.teacher(task)],
            *["--ce_loss_weight", 0.1, "--distill_loss_weight", 0.9],
        ]


TRAIN = [
    *["--do_train", "--do_eval", "--num_train_epochs", 3, "--learning_rate", 1e-3, "--logging_steps", 1],
    *["--save_steps", 3, "--warmup_steps", 1, "--initial_warmup", 1, "--final_warmup", 1],
]
HARD = ["--pruning_method", "topK", "--final_threshold", 0.1]
SOFT = [
    *["--pruning_method", "sigmoied_threshold", "--initial_threshold", 0, "--final_threshold", 0.1],
    *["--regularization", "l1", "--final_lambda", 10],
]


def result(folder: Path) -> dict:
    """result.json without what differs from run to run."""
    content = json.loads((folder / "result.json").read_text())
    content.pop("seconds")
    return content


def log(folder: Path, having: str = "loss/") -> list[dict]:
    """The lines that hold values of that name: of training steps, or with "eval/" of evaluations."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if any(name.startswith(having) for name in line)]


if __name__ == "__main__":
    serve(sys.argv[1:])
