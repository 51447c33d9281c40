"""The data of a study: the first rows of train and all of dev, taken from the official files, counted and digested."""

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from emmental.data import glue, squad
from emmental.study.grids import Experiment
from emmental.utils.errors import InputError
from emmental.utils.files import atomic_write


@dataclass(frozen=True)
class Places:
    """Where a study reads and writes: its output folder, the folder of the official data, the model."""

    output: Path
    data: str  # "" for the Hub
    model: str

    def data_of(self, experiment: Experiment) -> str:
        """The folder of an experiment's data: the official one, or the rows taken from it; "" for the Hub."""
        if experiment.train_rows is not None:
            return str(self.output / "data" / f"{experiment.task}-{experiment.train_rows}")
        return str(Path(self.data) / experiment.folder) if self.data else ""


def splits(task: str) -> tuple[str, tuple[str, ...]]:
    """The file of train and those of dev."""
    if task == "squad":
        return "train-v1.1.json", ("dev-v1.1.json",)
    return "train.tsv", tuple(f"{split}.tsv" for split in glue.TASKS[task].dev)


def write_subset(experiment: Experiment, places: Places) -> None:
    """Leaves the first rows of train and all of dev in the study's folder; InputError where the files are not there.

    Rows that are there already have to be those of the official files.
    """
    source, target = Path(places.data) / experiment.folder, Path(places.data_of(experiment))
    train, dev = splits(experiment.task)
    for file in (train, *dev) if places.data else ():
        if not (source / file).is_file():
            raise InputError(f"--data_dir {places.data}: no file {Path(experiment.folder) / file}")
    if experiment.train_rows is None and (experiment.published_warmup or places.data):
        return
    there = (target / train).exists()  # it is written last
    if not places.data:
        if there:
            return
        raise InputError("--data_dir is required: the grid takes rows of the official files")
    contents = {file: (source / file).read_bytes() for file in dev}
    contents[train] = first(source / train, experiment.task, experiment.train_rows)
    for file, content in contents.items():
        if there and (target / file).read_bytes() != content:
            raise InputError(f"{target / file}: not from --data_dir {places.data}; give another --output_dir")
        if not there:
            with atomic_write(target / file) as temporary:
                temporary.write_bytes(content)


def first(path: Path, task: str, count: int) -> bytes:
    """A file of its first `count` rows or questions."""
    if task != "squad":
        lines = path.read_bytes().splitlines(keepends=True)
        return b"".join(lines[: count + (glue.TASKS[task].header is None)])
    content = json.loads(path.read_text(encoding="utf-8"))
    for article in content["data"]:
        for paragraph in article["paragraphs"]:
            paragraph["qas"] = paragraph["qas"][:count]
            count -= len(paragraph["qas"])
        article["paragraphs"] = [paragraph for paragraph in article["paragraphs"] if paragraph["qas"]]
    content["data"] = [article for article in content["data"] if article["paragraphs"]]
    return json.dumps(content).encode()


def train_rows(experiment: Experiment, places: Places) -> int:
    """How many rows or questions there are to train on."""
    train, _ = splits(experiment.task)
    return count((Path(places.data_of(experiment)) / train).read_bytes(), experiment.task)


def described(folder: str, task: str, cache_dir: str | None = None) -> dict:
    """Rows of train and dev, and the SHA-256 of their files in this order, or of what was read from the Hub's.

    Of the Hub's only that they are, where `cache_dir` does not hold them and they cannot be had.
    """
    if not folder:
        with suppress(InputError):  # of a cell that could not have them either
            return {"source": "Hub", **of_hub(task, cache_dir)}
        return {"source": "Hub"}
    train, dev = splits(task)
    contents = [(Path(folder) / file).read_bytes() for file in (train, *dev)]
    counts = [count(content, task) for content in contents]
    return {"train": counts[0], "dev": sum(counts[1:]), "sha256": hashlib.sha256(b"".join(contents)).hexdigest()}


@cache
def of_hub(task: str, cache_dir: str | None) -> dict:
    """Counts and digest of the Hub's sets; InputError where they cannot be had."""
    if task == "squad":
        sets = [squad.from_hub(split, False, cache_dir=cache_dir) for split in ("train", "validation")]
        contents: list = sets
    else:
        sets = [glue.from_hub(task, split, cache_dir) for split in ("train", *glue.TASKS[task].dev)]
        contents = [[rows.first, rows.second, rows.labels] for rows in sets]
    digest = hashlib.sha256(json.dumps(contents).encode()).hexdigest()
    return {"train": len(sets[0]), "dev": sum(map(len, sets[1:])), "sha256": digest}


def count(content: bytes, task: str) -> int:
    """The rows or questions of a file."""
    if task == "squad":
        articles = json.loads(content)["data"]
        return sum(len(paragraph["qas"]) for article in articles for paragraph in article["paragraphs"])
    return len(content.splitlines()) - (glue.TASKS[task].header is None)
