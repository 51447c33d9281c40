"""What is reached without an encoder: `python -m emmental.study.floors majority --task_name sst-2 ...`.

`majority` says the most frequent label of train for every row. `embeddings` is a logistic regression on the mean of
the model's frozen word embeddings; for a pair of texts with means u and v on (u, v, |u - v|, u * v, their cosine).
Its scaling, its penalty and, of two labels, the chance above which it says the second are, for each metric by itself,
those that score best on dev: a floor may be too high, not too low.
`constant` answers every question with the same words of its passage, those places that score best on the first
questions of train.
"""

import time
from argparse import Namespace
from pathlib import Path

import numpy as np

from emmental.data import glue, glue_metrics, squad
from emmental.utils.errors import InputError, run
from emmental.utils.files import write_json
from emmental.utils.flags import Parser

CUTS = np.arange(1, 20) / 20
LONGEST, FURTHEST = 12, 40  # of a constant guess, in words: its length, and where it ends at most
FIRST = 5000  # questions of train on which places are compared


def read(args: Namespace, split: str) -> glue.Rows:
    if args.data_dir:
        return glue.read(args.task_name, Path(args.data_dir) / f"{split}.tsv")
    return glue.from_hub(args.task_name, split, args.cache_dir or None)


def dev_sets(args: Namespace) -> dict[str, glue.Rows]:
    return {split: read(args, split) for split in glue.TASKS[args.task_name].dev}


def majority(args: Namespace) -> dict[str, float]:
    """The metrics of train's most frequent label."""
    counts = np.bincount(read(args, "train").labels, minlength=len(glue.TASKS[args.task_name].labels))
    dev = dev_sets(args)
    return measure(args, dev, [np.tile(counts, (len(rows), 1)).astype(float) for rows in dev.values()])


def embeddings(args: Namespace) -> dict[str, float]:
    """The metrics of a logistic regression on mean word embeddings."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler
    from transformers import AutoTokenizer, BertModel

    tokenizer = AutoTokenizer.from_pretrained(args.model, do_lower_case=True)
    table = BertModel.from_pretrained(args.model).get_input_embeddings().weight.detach().numpy()

    def mean(texts: list[str]) -> np.ndarray:
        ids = tokenizer(texts, add_special_tokens=False, truncation=True, max_length=128)["input_ids"]
        return np.stack([table[row].mean(0) if row else np.zeros_like(table[0]) for row in ids])

    def features(rows: glue.Rows) -> np.ndarray:
        u = mean(rows.first)
        if rows.second is None:
            return u
        v = mean(rows.second)
        lengths = np.linalg.norm(u, axis=1) * np.linalg.norm(v, axis=1)
        cosine = (u * v).sum(1) / np.maximum(lengths, 1e-12)
        return np.hstack([u, v, np.abs(u - v), u * v, cosine[:, None]])

    train, dev, count = read(args, "train"), dev_sets(args), len(glue.TASKS[args.task_name].labels)
    plain = [features(rows) for rows in (train, *dev.values())]
    scaler = StandardScaler().fit(plain[0])
    best: dict[str, float] = {}
    for scale, penalties in ((scaler.transform, (0.001, 0.01, 0.1, 1)), (np.asarray, (1, 10, 100))):
        found, *others = map(scale, plain)
        for penalty in penalties:  # scikit-learn's C, the inverse of its strength
            classifier = LogisticRegression(C=penalty, max_iter=1000).fit(found, train.labels)
            chances = [np.zeros((len(x), count)) for x in others]
            for x, all_labels in zip(others, chances, strict=True):
                all_labels[:, classifier.classes_] = classifier.predict_proba(x)
            for cut in CUTS if count == 2 else [0.5]:  # label 1 where its chance is above the cut
                weights = [cut, 1 - cut] if count == 2 else 1
                metrics = measure(args, dev, [all_labels * weights for all_labels in chances])
                best = {name: max(value, best.get(name, value)) for name, value in metrics.items()}
    return best


def measure(args: Namespace, dev: dict[str, glue.Rows], predictions: list[np.ndarray]) -> dict[str, float]:
    """A task's metrics on its dev sets by masked_run_glue.py's names; `predictions` (rows, labels) of each set."""
    results = {}
    for (split, rows), scores in zip(dev.items(), predictions, strict=True):
        found = glue_metrics.evaluate(glue.TASKS[args.task_name], scores, np.array(rows.labels))
        results |= glue_metrics.of_split(split, found)
    return results


def constant(args: Namespace) -> dict[str, float]:
    """F1 and exact match of the words from one fixed place of every passage to another."""
    from emmental.data import squad_metrics

    def questions(split: str) -> squad.Questions:
        if args.data_dir:
            return squad.read(str(Path(args.data_dir) / f"{split}-v1.1.json"), False)
        return squad.from_hub("train" if split == "train" else "validation", False, cache_dir=args.cache_dir or None)

    def scores(questions: squad.Questions, start: int, end: int) -> dict[str, float]:
        guesses = {item.id: " ".join(item.passage.split()[start:end]) for item in questions}
        return squad_metrics.evaluate(questions, guesses)

    train = list(questions("train"))[:FIRST]
    spans = [(a, b) for a in range(FURTHEST) for b in range(a + 1, min(a + LONGEST, FURTHEST) + 1)]
    start, end = max(spans, key=lambda span: scores(train, *span)["f1"])
    found = scores(questions("dev"), start, end)
    return {"exact": found["exact"], "f1": found["f1"], "first_word": start, "last_word": end - 1}


FLOORS = {"majority": majority, "embeddings": embeddings, "constant": constant}


def main() -> None:
    parser = Parser(description=__doc__, allow_abbrev=False)
    parser.add_argument("floor", choices=tuple(FLOORS))
    parser.add_argument("--task_name", required=True, help="a GLUE task with labels, or squad")
    parser.add_argument("--data_dir", default="", help="folder of the official files; default: the Hub's copy")
    parser.add_argument("--model", default="bert-base-uncased", help="whose word embeddings are taken")
    parser.add_argument("--cache_dir", default="", help="where the Hub's copies are kept")
    parser.add_argument("--output_dir", required=True, help="where result.json goes")
    args, started = parser.parse_args(), time.time()
    if (args.floor == "constant") != (args.task_name == "squad"):
        raise InputError(f"{args.floor} --task_name {args.task_name}: constant is for squad, the others for GLUE")
    if args.task_name != "squad" and not (args.task_name in glue.TASKS and glue.TASKS[args.task_name].labels):
        raise InputError(f"--task_name {args.task_name}: a GLUE task with labels, or squad")
    results = FLOORS[args.floor](args)
    write_json({**results, "seconds": time.time() - started}, Path(args.output_dir) / "result.json")
    print(results)


if __name__ == "__main__":
    run(main)
