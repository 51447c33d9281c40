"""Small data sets in the tasks' own file formats, in which one of an example's two texts alone says nothing."""

import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

TOPICS = {
    "animal": ["tiger", "horse", "rabbit", "donkey", "otter", "camel", "zebra", "badger"],
    "fruit": ["apple", "cherry", "mango", "lemon", "melon", "peach", "banana", "grape"],
    "tool": ["hammer", "drill", "rasp", "wrench", "chisel", "pliers", "spade", "axe"],
    "instrument": ["violin", "piano", "trumpet", "guitar", "harp", "flute", "drum", "cello"],
    "garment": ["coat", "scarf", "shirt", "glove", "sock", "jacket", "skirt", "hat"],
    "vehicle": ["bus", "tram", "bicycle", "train", "lorry", "ferry", "canoe", "scooter"],
}
QUESTIONS = (
    "where can i find a {} , a {} and a {} ?",
    "which is older , the {} , the {} or the {} ?",
    "why would anyone draw a {} with a {} and a {} ?",
    "how much are the {} , the {} and the {} ?",
)
FACTS = (
    "{name} found a {thing} near the river .",
    "in the morning {name} met a man with a {thing} .",
    "there is a {thing} in the picture of {name} .",
    "{name} dreamt of a large {thing} .",
)
NAMES = ["anna", "ben", "carla", "david", "emma", "felix", "grace", "henry"]

Texts = list[tuple[str, str]]  # pairs of texts that belong together, to pre-train on
Examples = list[tuple[str, str, object]]  # an example's two texts, and its label or answer


def write_pairs(folder: Path, rng: random.Random) -> tuple[Texts, Examples]:
    """QQP's train.tsv and dev.tsv, where two questions are duplicates if they are about one topic.

    Two topics give four questions and four pairs, in which each question meets both labels: alone it says nothing.
    Returns the pairs about one topic to pre-train on, and the dev set.
    """

    def ask(topic: str) -> str:
        return rng.choice(QUESTIONS).format(*rng.sample(TOPICS[topic], 3))

    folder.mkdir(parents=True, exist_ok=True)
    for split, groups in (("train", 1500), ("dev", 250)):
        pairs = []
        for _ in range(groups):
            topics = rng.sample(list(TOPICS), 2)
            first, second = ([ask(topic) for topic in topics] for _ in range(2))
            pairs += [(first[i], second[j], int(i == j)) for i in range(2) for j in range(2)]
        rng.shuffle(pairs)
        lines = ("\t".join(map(str, (i, 2 * i, 2 * i + 1, *pair))) for i, pair in enumerate(pairs))
        header = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate"
        (folder / f"{split}.tsv").write_text("\n".join([header, *lines]) + "\n")
        if split == "train":
            together = [(first, second) for first, second, label in pairs if label]
    return together, pairs


def write_passages(folder: Path, rng: random.Random) -> tuple[Texts, Examples]:
    """SQuAD's train-v1.1.json and dev-v1.1.json: passages of three facts on three topics, and a question on each.

    A passage has three answers and a question eight, so either alone leaves a guess. Returns questions with facts on
    nothing but their topic to pre-train on, and the dev set.
    """

    def facts(things: Iterable[str]) -> str:
        return " ".join(rng.choice(FACTS).format(name=rng.choice(NAMES), thing=thing) for thing in things)

    folder.mkdir(parents=True, exist_ok=True)
    together = []
    for split, passages in (("train", 1200), ("dev", 300)):
        paragraphs, examples = [], []
        for number in range(passages):
            things = {topic: rng.choice(TOPICS[topic]) for topic in rng.sample(list(TOPICS), 3)}
            context, qas = facts(things.values()), []
            for topic, thing in things.items():
                answers = [{"text": thing, "answer_start": context.index(f" {thing} ") + 1}]
                qas.append({"id": f"{number}-{topic}", "question": f"which {topic} is it ?", "answers": answers})
                together.append((qas[-1]["question"], facts(rng.sample(TOPICS[topic], 3))))
                examples.append((qas[-1]["question"], context, thing))
            paragraphs.append({"context": context, "qas": qas})
        content = {"version": "1.1", "data": [{"title": "demo", "paragraphs": paragraphs}]}
        (folder / f"{split}-v1.1.json").write_text(json.dumps(content, indent=1))
    return together, examples


def best_guess(examples: Examples, place: int) -> float:
    """Per cent right of the best rule that sees one text of each example: its most frequent label, dev set in hand."""
    groups = defaultdict(Counter)
    for example in examples:
        groups[example[place]][example[2]] += 1
    return 100 * sum(max(group.values()) for group in groups.values()) / len(examples)
