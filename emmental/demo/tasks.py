"""The demo's two tasks: their data, flags and recipes, how a model is measured, and what must come out."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from emmental.demo.data import Examples, Texts, write_pairs, write_passages

WINDOW = {"max_seq_length": 64, "doc_stride": 32, "max_query_length": 16}


def classify(model, tokenizer, here: Path) -> dict[str, float]:
    """Accuracy and F1 on dev.tsv, in per cent."""
    from emmental.data import glue, glue_metrics
    from emmental.model.inference import predict
    from emmental.utils.precision import Precision

    rows = glue.read("qqp", here / "data" / "dev.tsv")
    examples = glue.tokenise(rows, tokenizer, task="qqp", max_seq_length=128, cache_dir=here / "cache" / "emmental")
    (logits,) = predict(model, examples, Precision(model.device), "dev")
    scores = glue_metrics.evaluate(glue.TASKS["qqp"], logits.numpy(), examples.labels[0].numpy())
    return {"accuracy": 100 * scores["acc"], "F1": 100 * scores["f1"]}


def answer(model, tokenizer, here: Path) -> dict[str, float]:
    """F1 and exact match on dev-v1.1.json, in per cent."""
    from emmental.data import squad, squad_metrics, squad_windows
    from emmental.model.inference import predict
    from emmental.utils.precision import Precision

    questions = squad.read(here / "data" / "dev-v1.1.json", version_2=False)
    cache_dir = here / "cache" / "emmental"
    windows = squad_windows.tokenise(questions, tokenizer, **WINDOW, training=False, cache_dir=cache_dir)
    spans = predict(model, windows.examples, Precision(model.device), "dev")
    start, end = (windows.examples.ragged(logits.numpy()) for logits in spans)
    settings = {"n_best_size": 20, "max_answer_length": 30, "version_2": False, "null_score_diff_threshold": 0.0}
    predictions, *_ = squad_metrics.predict(windows, start, end, **settings)
    scores = squad_metrics.evaluate(questions, predictions)
    return {"F1": scores["f1"], "exact match": scores["exact"]}


@dataclass(frozen=True)
class Task:
    """A task in miniature: its program, its data and measures, and what must come out, in per cent."""

    name: str
    model: str
    flags: dict[str, object]
    write: Callable[[Path, random.Random], tuple[Texts, Examples]]
    evaluate: Callable[..., dict[str, float]]
    epochs: int  # of the teacher
    recipe: dict[str, str]  # of teacher and pruned model
    teacher: float  # at least, by the first measure
    alone: float  # at most, for the best guess from one of an example's two texts


GLUE = Task(
    *("glue", "MaskedBertForSequenceClassification", {"task_name": "qqp"}),
    *(write_pairs, classify),
    epochs=2,
    recipe={"BATCH": "64", "LR": "5e-4"},
    teacher=90,
    alone=55,
)
SQUAD = Task(
    *("squad", "MaskedBertForQuestionAnswering", WINDOW),
    *(write_passages, answer),
    epochs=3,
    recipe={"BATCH": "32", "LR": "1e-3"},
    teacher=80,
    alone=40,
)
RECIPE = {"EPOCH": "6", "WARMUP": "30", "EXTRA_EXAMPLES": "256"}
TRAVEL = {"MASK_LR": "5e-2"}  # published: 1e-2, with which a score could not come from 0 to the cut in so few steps
SCRIPTS = {
    "run_glue_topk_kd.sh": (GLUE, {"FINAL_TH": "0.1"}),
    "run_glue_soft_kd.sh": (GLUE, {"FINAL_LAMBDA": "50", **TRAVEL}),
    "run_squad_topk_kd.sh": (SQUAD, {"FINAL_TH": "0.1"}),
    "run_squad_soft_kd.sh": (SQUAD, {"FINAL_LAMBDA": "100", **TRAVEL}),
}
