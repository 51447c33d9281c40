"""The nine GLUE tasks: reading the official TSV files or the Hub's copy, and tokenising.

A task has one name, the released one in lower case ("sst-2", not "sst2"). A set is named as its file is: "train",
"dev", or MNLI's "dev_matched" and "dev_mismatched". What needs torch or datasets imports it when called, so that files
are checked within a second, before a model is loaded.
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from emmental.data.cache import cached_map, described, import_datasets
from emmental.data.glue_metrics import METRICS
from emmental.data.template import has_token_types
from emmental.utils.errors import InputError

if TYPE_CHECKING:
    from emmental.data.examples import Examples

FORMAT = 1  # part of the key of the token cache: raise it when the tokens of the same input change


@dataclass(frozen=True)
class GlueTask:
    """One GLUE task: the columns that count in its files, its labels in the order of their ids, its metrics."""

    texts: tuple[str, ...] = ("sentence1", "sentence2")  # columns of the TSV: one sentence or two
    label: str = "label"
    labels: tuple[str, ...] = ("0", "1")  # none for a regression on 0 to 5
    metrics: tuple[str, ...] = ("acc",)
    mean: str = ""  # the name of the metrics' mean, where there are two
    dev: tuple[str, ...] = ("dev",)
    header: tuple[str, ...] | None = None  # of a file that has none
    hub_texts: tuple[str, ...] | None = None  # columns on the Hub, where they are named otherwise

    def __post_init__(self):
        if len(self.texts) not in (1, 2):
            raise ValueError(f"texts {self.texts}: one or two columns; a text is a sentence or a pair")
        if unknown := set(self.metrics) - set(METRICS):
            raise ValueError(f"metrics {sorted(unknown)}: not among {sorted(METRICS)} of glue_metrics.py")
        if "f1" in self.metrics and len(self.labels) != 2:
            raise ValueError("f1 is of two labels, the second of which counts")

    def holds(self, value: int | float | None) -> bool:
        """Whether `value` is the id of a label, or a score."""
        return value in range(len(self.labels)) if self.labels else isinstance(value, float) and 0 <= value <= 5


PAIR = ("sentence1", "sentence2")
ACC_AND_F1 = {"metrics": ("acc", "f1"), "mean": "acc_and_f1"}
NLI = ("entailment", "neutral", "contradiction")  # as released (D14): the Hub's order, not the former processor's
TASKS = {
    "cola": GlueTask(("sentence",), metrics=("mcc",), header=("source", "label", "author_label", "sentence")),
    "sst-2": GlueTask(("sentence",)),
    "mrpc": GlueTask(("#1 String", "#2 String"), "Quality", **ACC_AND_F1, hub_texts=PAIR),
    "sts-b": GlueTask(PAIR, "score", labels=(), metrics=("pearson", "spearmanr"), mean="corr"),
    "qqp": GlueTask(("question1", "question2"), "is_duplicate", **ACC_AND_F1),
    "mnli": GlueTask(
        PAIR, "gold_label", NLI, dev=("dev_matched", "dev_mismatched"), hub_texts=("premise", "hypothesis")
    ),
    "qnli": GlueTask(("question", "sentence"), labels=("entailment", "not_entailment")),
    "rte": GlueTask(PAIR, labels=("entailment", "not_entailment")),
    "wnli": GlueTask(PAIR),
}


@dataclass
class Rows:
    """A set as read: the texts, `second` being None where a task has one sentence, and label ids or scores.

    `skipped` holds line number and reason of each malformed row; `source` says where the set comes from.
    """

    source: str
    first: list[str] = field(default_factory=list)
    second: list[str] | None = None
    labels: list[int] | list[float] = field(default_factory=list)
    skipped: list[tuple[int, str]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.labels)


def read(task: str, path: str | Path) -> Rows:
    """Read one official TSV file: UTF-8 with or without BOM, LF or CRLF, quotes being ordinary characters.

    As in GLUE's own readers a malformed row is skipped, and an empty second sentence is none. InputError, with file
    and line: a file that cannot be read, a missing column, an unknown label, no rows, over 1 % of rows malformed.
    """
    kind, lines = TASKS[task], _lines(path)
    header = kind.header or tuple(lines[0].split("\t"))
    for column in (*kind.texts, kind.label):
        if column not in header:
            raise InputError(f"{path}, line 1: no column {column!r}, which a file of {task} has")
    label_at, *texts_at = map(header.index, (kind.label, *kind.texts))
    start = 0 if kind.header else 1
    rows, texts = Rows(str(path)), []
    for number, line in enumerate(lines[start:], start + 1):
        fields = line.split("\t")
        if reason := _fault(fields, len(header), label_at, texts_at):
            rows.skipped.append((number, reason))
            continue
        try:
            value = kind.labels.index(fields[label_at]) if kind.labels else float(fields[label_at])
        except ValueError:
            value = None
        if not kind.holds(value):
            allowed = ", ".join(kind.labels) or "scores from 0 to 5"
            raise InputError(f"{path}, line {number}: unknown label {fields[label_at][:40]!r} ({allowed})")
        rows.labels.append(value)
        texts.append([fields[i] for i in texts_at])
    if len(rows.skipped) > 0.01 * (len(lines) - start):
        first = "; ".join(f"line {number}: {reason}" for number, reason in rows.skipped[:3])
        raise InputError(f"{path}: {len(rows.skipped)} of {len(lines) - start} rows are malformed ({first})")
    if not rows.labels:
        raise InputError(f"{path}, line {start + 1}: the set is empty")
    rows.first, rows.second = (*map(list, zip(*texts, strict=True)), None)[:2]
    return rows


def _lines(path: str | Path) -> list[str]:
    # str.splitlines would also split at the separators that Unicode allows inside a text
    try:
        lines = Path(path).read_bytes().decode("utf-8-sig").rstrip("\r\n").split("\n")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}, line {line}: not UTF-8 (byte 0x{error.object[error.start]:02x})") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    if lines == [""]:
        raise InputError(f"{path}, line 1: the file is empty")
    return [line.removesuffix("\r") for line in lines]


def _fault(fields: list[str], width: int, label_at: int, texts_at: list[int]) -> str | None:
    if len(fields) != width:
        return f"{len(fields)} fields instead of {width}"
    if not fields[label_at]:
        return "no label"
    return None if any(fields[i].strip() for i in texts_at) else "no text"


def from_hub(task: str, split: str, cache_dir: str | Path | None = None, path: str = "nyu-mll/glue") -> Rows:
    """Load one set from the Hub, or from a local folder `path` in its layout (`qqp/train-00000-of-00001.parquet`).

    The Hub's label ids are in the order of TASKS. InputError: the set cannot be had, or holds other columns or labels.
    """
    datasets = import_datasets()

    kind, config, split = TASKS[task], task.replace("-", ""), split.replace("dev", "validation")
    source, advice = f"{path} ({config}, {split})", "--data_dir reads the official TSV files instead"
    # a bare folder has no list of configurations, so its files are named here
    which = {"data_files": {split: f"{config}/{split}-*.parquet"}} if Path(path).is_dir() else {"name": config}
    try:
        table = datasets.load_dataset(path, **which, split=split, cache_dir=cache_dir and str(cache_dir))
        names = kind.hub_texts or kind.texts
        *texts, labels = (table[name][:] for name in (*names, "label"))
    except Exception as error:  # datasets, its Hub client and pyarrow share no base class for what may go wrong
        message = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"{source}: {message[:200]}; {advice}") from error
    wrong = [f"row {row} has the label {label!r}" for row, label in enumerate(labels, 1) if not kind.holds(label)]
    for name, column in zip(names, texts, strict=True):
        wrong += [f"row {row} has no {name}" for row, text in enumerate(column, 1) if text is None]
    if wrong or not labels:
        raise InputError(f"{source}: {wrong[0] if wrong else 'the set is empty'}; {advice}")
    return Rows(source, *(*texts, None)[:2], labels)


def tokenise(
    rows: Rows,
    tokenizer,
    *,
    task: str,
    max_seq_length: int,
    cache_dir: str | Path,
    overwrite_cache: bool = False,
    pad_to_max_length: bool = False,
) -> "Examples":
    """Tokenise with a fast tokenizer: `[CLS] first [SEP]` or `[CLS] first [SEP] second [SEP]`, or as it has it.

    What exceeds `max_seq_length` (at least 4) tokens is left out, longest first; with `pad_to_max_length` batches are
    padded to it. The tokens are kept in `cache_dir` under a key of all they depend on. Labels: one tensor (examples,),
    int64, or float32 for a regression.
    """
    import datasets
    import pyarrow.compute as pc
    import torch

    from emmental.data.examples import Examples

    def of_batch(*texts: list[str]) -> dict:
        # Truncation by the tokenizer also builds all that it cuts off, for a pair every combination of both overflows:
        # a minute for 20,000 words each, growing with the square. Cutting afterwards gives the same tokens.
        batch = tokenizer(*texts, return_token_type_ids=types, return_attention_mask=False, verbose=False)
        columns = {"input_ids": batch["input_ids"]}
        columns["token_type_ids"] = batch["token_type_ids"] if types else [[0] * len(ids) for ids in batch["input_ids"]]
        for place, ids in enumerate(batch["input_ids"]):
            if len(ids) > max_seq_length:
                _longest_first(
                    [column[place] for column in columns.values()], batch.sequence_ids(place), max_seq_length
                )
        return columns

    types = has_token_types(tokenizer)
    content = json.dumps([FORMAT, max_seq_length, described(tokenizer), types, rows.first, rows.second]).encode()
    file = Path(cache_dir) / f"glue-{hashlib.sha256(content).hexdigest()[:32]}.arrow"
    texts = {"first": rows.first} | ({"second": rows.second} if rows.second is not None else {})
    table = cached_map(datasets.Dataset.from_dict(texts), of_batch, file, overwrite_cache)
    tokens = (pc.list_flatten(table[name]).to_numpy() for name in ("input_ids", "token_type_ids"))
    offsets = np.concatenate([[0], np.cumsum(pc.list_value_length(table["input_ids"]).to_numpy(), dtype=np.int64)])
    labels = torch.tensor(rows.labels, dtype=torch.int64 if TASKS[task].labels else torch.float32)
    pad_to = max_seq_length if pad_to_max_length else None
    return Examples(*tokens, offsets, (labels,), pad_to, tokenizer.pad_token_id)


def _longest_first(columns: list[list[int]], sequence: list[int | None], limit: int) -> None:
    """Cut one example's lists in place, taking from the longer sentence, then from both; an odd token stays with it.

    `sequence` says to which sentence each token belongs, 0 or 1; None: to neither.
    """
    first, second = sequence.count(0), sequence.count(1)
    room = max(limit - sequence.count(None), 0)
    short = min(first, second, room // 2)
    keep_first, keep_second = (room - short, short) if first > second else (short, room - short)
    for sentence, keep in ((1, keep_second), (0, keep_first)):  # the second first, so that places stay as they are
        surplus = [place for place, of in enumerate(sequence) if of == sentence][keep:]
        for values in columns if surplus else ():
            del values[surplus[0] : surplus[-1] + 1]
