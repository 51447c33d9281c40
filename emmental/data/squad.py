"""SQuAD v1.1 and v2.0: the official JSON files, or the Hub's copy, read and checked.

Reading needs neither torch nor datasets, so that a bad file is refused in a moment; datasets is imported where used.
"""

import json
from pathlib import Path
from typing import NamedTuple

from emmental.data.cache import import_datasets
from emmental.utils.errors import InputError


class Question(NamedTuple):
    """One question; `answers` are its accepted texts (none: unanswerable), `starts` where each begins in `passage`.

    `problem` says why the question is unfit for training, if it is; it is evaluated all the same.
    """

    id: str
    text: str
    passage: str
    answers: tuple[str, ...]
    starts: tuple[int, ...]
    problem: str | None = None


class Questions(list[Question]):
    """The questions of one set in their order; `source`, the file or Hub name, is for messages."""

    def __init__(self, source: str, questions):
        super().__init__(questions)
        self.source = source
        if not self:
            raise InputError(f"{source}: holds no question")

    @property
    def notes(self) -> list[tuple[str, str]]:
        """(question id, problem) of every question that is left out of training."""
        return [(question.id, question.problem) for question in self if question.problem]


def locate(flag: str, name: str, data_dir: str) -> Path:
    """The file that `flag` names: as it is given, else in `data_dir`. InputError names both places."""
    given, inside = Path(name), Path(data_dir, name)
    if given.exists() or given == inside:
        return given
    if not inside.exists():
        raise InputError(f"{flag} {name}: no such file, neither {given.absolute()} nor {inside}")
    return inside


def read(path: str | Path, version_2: bool) -> Questions:
    """The questions of an official SQuAD file; a v2.0 file needs `version_2`. Raises InputError, in one line."""
    try:
        content = json.loads(Path(path).read_bytes().decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:  # ValueError: not UTF-8, or not JSON
        raise InputError(f"{path}: cannot be read: {error}") from error
    return _questions(content, str(path), version_2)


def from_hub(split: str, version_2: bool, *, source: str | None = None, cache_dir: str | None = None) -> Questions:
    """The questions of a split, `train` or `validation`, of the Hub's `rajpurkar/squad` or `rajpurkar/squad_v2`.

    `source` may name another data set, or a folder, of the same layout. Raises InputError where nothing can be loaded.
    """
    datasets = import_datasets()

    source = source or ("rajpurkar/squad_v2" if version_2 else "rajpurkar/squad")
    try:
        rows = datasets.load_dataset(source, split=split, cache_dir=cache_dir).to_list()
        for row in rows:
            pairs = zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True)
            row["answers"] = [{"text": text, "answer_start": start} for text, start in pairs]
    except Exception as error:  # network, name, split, layout: each with an error class of its own, none shared
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{source}: split {split!r} cannot be loaded: {reason}") from error
    paragraphs = [row | {"qas": [row]} for row in rows]
    return _questions({"data": [{"paragraphs": paragraphs}]}, f"{source} ({split})", version_2)


def _questions(content, source: str, version_2: bool) -> Questions:
    """The questions of parsed JSON, which may be anything at all."""
    seen = set()
    return Questions(
        source,
        (
            _question(place, passage, qa, version_2, seen)
            for article_place, article in _list(content, "data", f"{source}:")
            for paragraph_place, paragraph in _list(article, "paragraphs", article_place)
            for passage in [_field(paragraph, "context", str, paragraph_place)]
            for place, qa in _list(paragraph, "qas", paragraph_place)
        ),
    )


def _field(item, key: str, kind: type, place: str):
    """`item[key]`, which must be there and be exactly a `kind` (a bool is no int)."""
    value = item.get(key) if isinstance(item, dict) else None
    if type(value) is not kind:
        raise InputError(f"{place} is not as in a SQuAD file: {key!r} is missing, or no {kind.__name__}")
    if kind is str:
        try:
            value.encode()
        except UnicodeEncodeError as error:  # JSON can spell it, tokenizers and arrow refuse it
            raise InputError(f"{place} {key!r} holds half of a surrogate pair at {error.start}") from error
    return value


def _list(item, key: str, place: str) -> list[tuple[str, object]]:
    """(place, member) of the list `item[key]`."""
    return [(f"{place} {key}[{i}]", member) for i, member in enumerate(_field(item, key, list, place))]


def _question(place: str, passage: str, qa, version_2: bool, seen: set[str]) -> Question:
    identity, text = _field(qa, "id", str, place), _field(qa, "question", str, place)
    place = f"{place} (question {identity!r})"
    if identity in seen:
        raise InputError(f"{place}: its id occurred before")
    seen.add(identity)
    entries = _list(qa, "answers", place)
    answers = tuple(_field(entry, "text", str, entry_place) for entry_place, entry in entries)
    starts = tuple(_field(entry, "answer_start", int, entry_place) for entry_place, entry in entries)
    for start in starts:
        if not 0 <= start < max(len(passage), 1):
            raise InputError(f"{place}: answer_start {start} is not in its passage of {len(passage)} characters")
    impossible = _field(qa, "is_impossible", bool, place) if "is_impossible" in qa else not answers
    if (impossible or not answers) and not version_2:
        raise InputError(f"{place}: has no answer, as in SQuAD v2.0, which needs --version_2_with_negative")

    problem = _problem(text, passage, answers, starts, impossible)
    return Question(identity, text, passage, answers, starts, problem)


def _problem(text: str, passage: str, answers: tuple, starts: tuple, impossible: bool) -> str | None:
    """Why a question cannot be trained on, if it cannot."""
    if not text.strip():
        return "the question is empty"
    if not passage.strip():
        return "the passage is empty"
    if impossible == bool(answers):
        return "is_impossible and the answers contradict each other"
    if answers and not (answers[0].strip() and passage.startswith(answers[0], starts[0])):
        return "the answer does not occur at answer_start"
    return None
