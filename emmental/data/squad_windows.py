"""SQuAD's passages divided into overlapping windows: `[CLS] question [SEP] piece of the passage [SEP]`.

A window, with the tokenizer's own special tokens, is what the banks of CAP (arXiv 2112.07198) call an example here.
Windows keep the character offsets of their tokens, from which squad_metrics.py takes the answer texts. torch and
datasets are imported when windows are made, so that flags are checked within a second.
"""

import hashlib
import json
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from emmental.data.cache import cached_map, described
from emmental.data.squad import Questions
from emmental.data.template import PairTemplate, pair_template
from emmental.utils.errors import InputError

if TYPE_CHECKING:
    from emmental.data.examples import Examples

FORMAT = 1  # part of the key of the window cache: raise it when the windows of the same input change


@dataclass(frozen=True)
class Windows:
    """Windows of `questions`, those of one question next to each other.

    `examples` holds their tokens and the (start, end) token positions of the answer, (0, 0), the [CLS], where a window
    has none. `question`: (windows,), the place in `questions`. Along the tokens of `examples`: `char_start` and
    `char_end`, the token's piece of the passage, -1 for a token outside it, and `max_context`, whether this window
    shows the passage token in most context. `skipped`: (question id, reason) of what training leaves out.
    """

    questions: Questions
    examples: "Examples"
    question: np.ndarray
    char_start: np.ndarray
    char_end: np.ndarray
    max_context: np.ndarray
    skipped: list[tuple[str, str]]


def check_lengths(max_seq_length: int, doc_stride: int, max_query_length: int, special: int = 3) -> None:
    """Raises InputError unless the windows of the longest question still overlap or touch; all are at least 1.

    `special` is the number of special tokens around a pair, BERT's if the tokenizer is not loaded yet.
    """
    if max_query_length + doc_stride + special > max_seq_length:
        wanted = f"--max_query_length {max_query_length} + --doc_stride {doc_stride} + {special} special tokens"
        raise InputError(f"{wanted} leave no room in --max_seq_length {max_seq_length}")


def tokenise(
    questions: Questions,
    tokenizer,
    *,
    max_seq_length: int,
    doc_stride: int,
    max_query_length: int,
    training: bool,
    cache_dir: str | Path,
    overwrite_cache: bool = False,
    pad_to_max_length: bool = False,
) -> Windows:
    """The windows of `questions` under a fast tokenizer, kept in `cache_dir` under a key of all they depend on.

    In training, questions with a problem are left out, and the first answer gives the labels. In evaluation every
    question has a window, and labels are zero. Raises InputError where training is left with no question.
    """
    import datasets
    import torch

    from emmental.data.examples import Examples

    template = pair_template(tokenizer)
    check_lengths(max_seq_length, doc_stride, max_query_length, template.special)
    settings = (max_seq_length, doc_stride, max_query_length, training)
    file = Path(cache_dir) / f"windows-{_key(questions, tokenizer, template, settings)}.arrow"
    used = [i for i, question in enumerate(questions) if not (training and question.problem)]
    dataset = datasets.Dataset.from_dict({"place": used})

    def make_windows(places: list[int]) -> dict:
        return _make_windows([(i, questions[i]) for i in places], tokenizer, template, *settings)

    table = cached_map(dataset, make_windows, file, overwrite_cache) if used else None

    def column(name: str) -> np.ndarray:
        values = table.column(name).combine_chunks()
        return (values.flatten() if values.type.num_fields else values).to_numpy(zero_copy_only=False)

    kept = set(column("question").tolist()) if table and table.num_rows else set()
    skipped = [(q.id, q.problem or "the answer holds no token") for i, q in enumerate(questions) if i not in kept]
    if not kept:
        raise InputError(f"{questions.source}: no question is fit for training; {skipped[0][0]!r}: {skipped[0][1]}")
    offsets = np.concatenate([[0], np.cumsum(column("size"))])
    labels = tuple(torch.tensor(column(name)) for name in ("start", "end"))
    pad_to = max_seq_length if pad_to_max_length else None
    tokens = column("input_ids"), column("token_type_ids")
    examples = Examples(*tokens, offsets, labels, pad_to, tokenizer.pad_token_id)
    along = (column(name) for name in ("question", "char_start", "char_end", "max_context"))
    return Windows(questions, examples, *along, skipped)


def _key(questions: Questions, tokenizer, template: PairTemplate, settings: tuple) -> str:
    """A digest of all that decides what the windows are."""
    digest = hashlib.sha256(json.dumps([FORMAT, settings, described(tokenizer), template.types]).encode())
    for passage, group in groupby(questions, key=lambda question: question.passage):
        asked = [(question.text, question.answers, question.starts, question.problem) for question in group]
        digest.update(json.dumps([passage, asked]).encode())
    return digest.hexdigest()


def _make_windows(
    questions,
    tokenizer,
    template: PairTemplate,
    max_seq_length: int,
    doc_stride: int,
    max_query_length: int,
    training: bool,
) -> dict:
    """The windows of some (index, question) pairs, one list per column.

    as released (D18): windows begin `doc_stride` tokens apart (transformers' squad_convert_example_to_features gives
    the tokenizer the overlap max_seq_length - doc_stride - len(question) - 3), and a window that does not hold the
    whole answer stays in training with the label [CLS].
    """
    texts = list(dict.fromkeys(question.passage for _, question in questions))  # each passage is tokenised once
    encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    tokens = (np.array(ids, dtype=np.int32) for ids in encoded["input_ids"])
    located = zip(texts, encoded["offset_mapping"], strict=True)
    chars = (np.array(_without_space(*pair), dtype=np.int32).reshape(-1, 2).T for pair in located)
    passages = dict(zip(texts, zip(tokens, chars, strict=True), strict=True))
    asked = tokenizer([question.text for _, question in questions], add_special_tokens=False, verbose=False)

    names = "question", "size", "input_ids", "token_type_ids", "char_start", "char_end", "max_context", "start", "end"
    rows = []
    for (i, question), query in zip(questions, asked["input_ids"], strict=True):
        ids, (char_start, char_end) = passages[question.passage]
        first = last = -1
        if training and question.answers:
            first = int(np.searchsorted(char_end, question.starts[0], side="right"))
            last = int(np.searchsorted(char_start, question.starts[0] + len(question.answers[0]))) - 1
            if first > last:
                continue
        asked_tokens = min(len(query), max_query_length)
        query = [*template.before, *query[:max_query_length], *template.between]
        room = max_seq_length - len(query) - len(template.after)
        begins = np.arange(0, max(len(ids) - room, 0) + doc_stride, doc_stride)
        ends = np.minimum(begins + room, len(ids))
        located = np.stack([char_start, char_end, _most_context(begins, ends, len(ids))])
        for number, (begin, end) in enumerate(zip(begins.tolist(), ends.tolist(), strict=True)):
            tokens = np.concatenate([query, ids[begin:end], template.after], dtype=np.int32)
            types = template.token_types(asked_tokens, end - begin)
            framed = np.full((3, len(tokens)), -1, dtype=np.int32)
            framed[:, len(query) : len(query) + end - begin] = located[:, begin:end]
            shift = len(query) - begin
            label = (first + shift, last + shift) if begin <= first and last < end else (0, 0)
            rows.append((i, len(tokens), tokens, types, framed[0], framed[1], framed[2] == number, *label))
    return {name: [row[place] for row in rows] for place, name in enumerate(names)}


def _without_space(text: str, offsets: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Tokens' places in the text without the space before a word, which byte-level tokenizers count with it."""
    return [(end - len(text[start:end].lstrip()), end) for start, end in offsets]


def _most_context(begins: np.ndarray, ends: np.ndarray, tokens: int) -> np.ndarray:
    """Which of one passage's windows shows each token in most context, (tokens,): the first of the best.

    as released (D18, transformers' _new_check_is_max_context): the lesser of the contexts left and right, and a
    hundredth of the window's length.
    """
    best, chosen = np.full(tokens, -np.inf), np.zeros(tokens, dtype=np.int32)
    for number, (begin, end) in enumerate(zip(begins.tolist(), ends.tolist(), strict=True)):
        position = np.arange(begin, end)
        score = np.minimum(position - begin, end - 1 - position) + 0.01 * (end - begin)
        better = score > best[begin:end]
        best[begin:end][better], chosen[begin:end][better] = score[better], number
    return chosen
