"""The main job in miniature: `python -m emmental.demo run_glue_topk_kd.sh`, with no network and no GPU.

It makes a small data set in the task's own file format, a small BERT that is pre-trained on it with masked words, and
a teacher by the training script; then it runs the shell script itself, with small values in the environment, and
holds the result against controls (arXiv 2112.07198, section 4, in miniature). All of it stands in ./demo.
"""

import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

SEED = int(os.environ.get("DEMO_SEED", 42))
TOPICS = {
    "animal": "tiger horse rabbit donkey otter camel zebra badger",
    "fruit": "apple cherry mango lemon melon peach banana grape",
    "tool": "hammer drill saw wrench chisel pliers spade axe",
    "instrument": "violin piano trumpet guitar harp flute drum cello",
    "garment": "coat scarf shirt glove sock jacket skirt hat",
    "vehicle": "bus tram bicycle train lorry ferry canoe scooter",
}
WORDS = {topic: words.split() for topic, words in TOPICS.items()}
ASKED = [
    "where can i find a {} , a {} and a {} ?",
    "which is older , the {} , the {} or the {} ?",
    "why would anyone draw a {} with a {} and a {} ?",
    "how much are the {} , the {} and the {} ?",
]
SEEN = [
    "{} saw a {} near the river .",
    "in the morning {} met a man with a {} .",
    "the {1} in the picture belongs to {0} .",
    "{} dreamt of a large {} .",
]
NAMES = "anna ben carla david emma felix grace henry".split()


# --- Data: pairs of questions as in QQP, and passages with questions as in SQuAD


def question(topic: str, rng: random.Random) -> str:
    return rng.choice(ASKED).format(*rng.sample(WORDS[topic], 3))


def write_pairs(folder: Path, rng: random.Random) -> list[tuple[str, str]]:
    """train.tsv and dev.tsv in QQP's columns; a pair is a duplicate if both questions are about one topic.

    Two topics give four questions and four pairs, in which each question stands once with either label: one question
    of a pair says nothing about it. Returns pairs of one topic to pre-train on.
    """
    same = []
    for split, groups in (("train", 2000), ("dev", 250)):
        lines = []
        for _ in range(groups):
            topics = rng.sample(list(TOPICS), 2)
            first, second = ([question(topic, rng) for topic in topics] for _ in range(2))
            lines += [(first[i], second[j], int(i == j)) for i in range(2) for j in range(2)]
            same += zip(first, second, strict=True) if split == "train" else ()
        rng.shuffle(lines)
        rows = ("\t".join(map(str, (n, 2 * n, 2 * n + 1, *line))) for n, line in enumerate(lines))
        header = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate"
        (folder / f"{split}.tsv").write_text("\n".join([header, *rows]) + "\n")
    return same


def write_passages(folder: Path, rng: random.Random) -> list[tuple[str, str]]:
    """train-v1.1.json and dev-v1.1.json: passages of four facts about things of four topics, and a question on each.

    Every passage has four answers and every question eight: either alone gives no more than a guess. Returns questions
    with their passages to pre-train on.
    """
    pairs = []
    for split, passages in (("train", 1500), ("dev", 200)):
        paragraphs = []
        for number in range(passages):
            things = {topic: rng.choice(WORDS[topic]) for topic in rng.sample(list(TOPICS), 4)}
            facts = [rng.choice(SEEN).format(rng.choice(NAMES), thing) for thing in things.values()]
            context, qas = " ".join(facts), []
            for topic, thing in things.items():
                answers = [{"text": thing, "answer_start": context.index(thing)}]
                qas.append({"id": f"{number}-{topic}", "question": f"which {topic} is it ?", "answers": answers})
            paragraphs.append({"context": context, "qas": qas})
            pairs += [(qa["question"], context) for qa in qas] if split == "train" else ()
        content = {"version": "1.1", "data": [{"title": "demo", "paragraphs": paragraphs}]}
        (folder / f"{split}-v1.1.json").write_text(json.dumps(content, indent=1))
    return pairs
