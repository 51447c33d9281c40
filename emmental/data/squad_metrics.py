"""From span logits to answer texts, and the official exact match and F1 of SQuAD v1.1 and v2.0.

The answer is the piece of the original passage between the characters of two tokens. The search follows the released
evaluation (transformers' compute_predictions_logits), the metrics the official evaluate-v1.1.py and evaluate-v2.0.py.
"""

import json
import re
import string
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from emmental.data.squad import Question
    from emmental.data.squad_windows import Windows

CHUNK = 256  # windows whose n_best_size squared pairs are in memory at once
PUNCTUATION = str.maketrans("", "", string.punctuation)
ARTICLES = re.compile(r"\b(a|an|the)\b")


def predict(
    windows: "Windows",
    start_logits: np.ndarray,
    end_logits: np.ndarray,
    *,
    n_best_size: int = 20,
    max_answer_length: int = 30,
    version_2: bool = False,
    null_score_diff_threshold: float = 0.0,
) -> tuple[dict[str, str], dict[str, list[dict]], dict[str, float] | None]:
    """(predictions, n-best lists, null odds) by question id, from the logits (tokens,) along `windows.examples`.

    With `version_2`, the answer is empty where the null score, that of the [CLS] as start and end in the window where
    it is least, exceeds the best span's by more than the threshold; their difference is the null odds, else None.
    """
    first, last, bounds = _spans(windows, start_logits, end_logits, n_best_size, max_answer_length)
    starts, ends = windows.char_start[first].tolist(), windows.char_end[last].tolist()
    logits = list(zip(start_logits[first].tolist(), end_logits[last].tolist(), strict=True))
    nulls = _nulls(windows, start_logits, end_logits) if version_2 else None
    predictions, nbest, null_odds = {}, {}, {}
    for i, question in enumerate(windows.questions):
        entries = {}
        for k in range(bounds[i], bounds[i + 1]):
            entries.setdefault(question.passage[starts[k] : ends[k]], logits[k])  # the first of a text is its best
            if len(entries) == n_best_size:
                break
        entries = list(entries.items()) or [("", (0.0, 0.0))]  # no span at all: nothing is answered
        answer, best = entries[0][0], sum(entries[0][1])
        if version_2:
            null = nulls[i]
            null_odds[question.id] = sum(null) - best
            if null_odds[question.id] > null_score_diff_threshold:
                answer = ""
            if entries[0][0]:
                place = sum(sum(pair) >= sum(null) for _, pair in entries)
                entries.insert(place, ("", null))
                del entries[max(n_best_size, place + 1) :]
            else:
                entries = [("", null)]
        predictions[question.id] = answer
        scores = np.array([sum(pair) for _, pair in entries])
        odds = np.exp(scores - scores.max())
        nbest[question.id] = [
            {"text": text, "probability": probability, "start_logit": start, "end_logit": end}
            for (text, (start, end)), probability in zip(entries, (odds / odds.sum()).tolist(), strict=True)
        ]
    return predictions, nbest, null_odds if version_2 else None


def _spans(windows: "Windows", start_logits, end_logits, n_best_size: int, max_answer_length: int):
    """The valid spans, best first within each question: their first and last tokens (spans,), and the bounds
    (questions + 1,) between questions.

    as released (D18): a span joins one of a window's `n_best_size` best starts and one of its best ends, chosen among
    all of its tokens, and begins where the window shows the token in most context.
    """
    offsets, inside = windows.examples.offsets, windows.char_start >= 0
    spans = []
    for begin in range(0, len(windows.question), CHUNK):
        bounds = offsets[begin : begin + CHUNK + 1]
        first, last = (_best_tokens(logits, bounds, n_best_size) for logits in (start_logits, end_logits))
        length = last[:, None, :] - first[:, :, None] + 1
        valid = (length >= 1) & (length <= max_answer_length)
        valid &= windows.max_context[first][:, :, None] & inside[last][:, None, :]
        window, i, j = np.nonzero(valid)
        spans.append((windows.question[begin + window], first[window, i], last[window, j]))
    question, first, last = (np.concatenate(parts) for parts in zip(*spans, strict=True))
    score = start_logits[first].astype(np.float64) + end_logits[last]
    order = np.lexsort((-score, question))  # stable: ties keep the order of windows, starts, ends
    bounds = np.searchsorted(question[order], np.arange(len(windows.questions) + 1))
    return first[order], last[order], bounds.tolist()


def _best_tokens(logits: np.ndarray, bounds: np.ndarray, count: int) -> np.ndarray:
    """The `count` tokens of highest logit of each window, (windows, count), best first, ties in their order."""
    sizes = np.diff(bounds)[:, None]
    position = np.arange(sizes.max())
    padded = np.full((len(sizes), len(position)), -np.inf, dtype=logits.dtype)
    padded[position < sizes] = logits[bounds[0] : bounds[-1]]
    best = np.argsort(-padded, axis=1, kind="stable")[:, :count]
    return bounds[:-1, None] + np.where(best < sizes, best, 0)  # padding becomes the [CLS], which no span may hold


def _nulls(windows: "Windows", start_logits, end_logits) -> list[tuple[float, float]]:
    """The [CLS]'s start and end logit of each question, from its window where their sum is least."""
    start, end = (logits[windows.examples.offsets[:-1]].astype(np.float64) for logits in (start_logits, end_logits))
    order = np.lexsort((start + end, windows.question))
    order = order[np.unique(windows.question, return_index=True)[1]]
    return list(zip(start[order].tolist(), end[order].tolist(), strict=True))


def normalize(text: str) -> str:
    """Lower case, without ASCII punctuation, articles and superfluous white space, in this order."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def evaluate(
    questions: Iterable["Question"], predictions: dict[str, str], null_odds: dict[str, float] | None = None
) -> dict[str, float]:
    """The official scores in per cent: `exact`, `f1`, and `total`, the number of questions.

    With unanswerable questions or `null_odds` the rules of v2.0 hold, and the scores come apart in HasAns_* and
    NoAns_*; with `null_odds`, best_* are those at the best threshold on them, as evaluate-v2.0.py searches it.
    """
    questions = list(questions)
    answered = np.array([bool(question.answers) for question in questions])
    version_2 = null_odds is not None or not answered.all()
    scores = np.array([_score(predictions[question.id], question.answers, version_2) for question in questions])
    result = _means(scores, "")
    if version_2:
        result |= _means(scores[answered], "HasAns_") | _means(scores[~answered], "NoAns_")
    if null_odds is not None:
        odds = np.array([null_odds[question.id] for question in questions])
        wrong = np.array([bool(predictions[question.id]) for question in questions])
        # answer the questions of lowest odds, one more at a time; a question without answer is right until then
        gain = np.where(answered[:, None], scores, -wrong[:, None].astype(float))[np.argsort(odds, kind="stable")]
        running = (~answered).sum() + np.concatenate([np.zeros((1, 2)), gain.cumsum(axis=0)])
        thresholds = np.concatenate([[0.0], np.sort(odds, kind="stable")])
        for name, totals in zip(("exact", "f1"), running.T, strict=True):
            result[f"best_{name}"] = 100.0 * float(totals.max()) / len(questions)
            result[f"best_{name}_thresh"] = float(thresholds[totals.argmax()])
    return result


def _means(scores: np.ndarray, prefix: str) -> dict[str, float]:
    if not len(scores):
        return {}
    exact, f1 = (100.0 * scores.mean(axis=0)).tolist()
    return {f"{prefix}exact": exact, f"{prefix}f1": f1, f"{prefix}total": len(scores)}


def _score(prediction: str, answers: tuple[str, ...], version_2: bool) -> tuple[float, float]:
    """(exact match, F1), each the best over the accepted answers."""
    guess, golds = normalize(prediction), [normalize(answer) for answer in answers]
    if version_2:
        golds = [gold for gold in golds if gold] or [""]
    return max(float(guess == gold) for gold in golds), max(_f1(guess, gold, version_2) for gold in golds)


def _f1(guess: str, gold: str, version_2: bool) -> float:
    """F1 of the words; if either side has none, v2.0 compares them, v1.1 gives 0."""
    if not (guess and gold):
        return float(version_2 and guess == gold)
    guess, gold = guess.split(), gold.split()
    common = (Counter(guess) & Counter(gold)).total()
    return 2 * common / (len(guess) + len(gold))


def save(
    output_dir: str | Path,
    predictions: dict[str, str],
    nbest: dict[str, list[dict]],
    null_odds: dict[str, float] | None = None,
) -> None:
    """Writes predictions_.json, nbest_predictions_.json and, if given, null_odds_.json, named as released."""
    Path(output_dir).mkdir(parents=True, exist_ok=True)
    for name, content in (("predictions", predictions), ("nbest_predictions", nbest), ("null_odds", null_odds)):
        if content is not None:
            (Path(output_dir) / f"{name}_.json").write_text(json.dumps(content, indent=4) + "\n")
