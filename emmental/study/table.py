"""The Markdown table of a grid: mean and spread over seeds, what is kept of the teacher, and who is at a floor."""

from dataclasses import dataclass, field
from statistics import mean, stdev

from emmental.study import results

NAMES = {"acc": "accuracy", "f1": "F1", "mcc": "MCC", "acc_mm": "accuracy, mismatched", "exact": "exact match"}
FLOORS = {
    "majority": "floor: the majority class",
    "embeddings": "floor: regression on frozen word embeddings",
    "constant": "floor: the same words of every passage",
}
AT_FLOOR = 0.5  # points within which a model counts as being at a floor


@dataclass
class Group:
    """The seeds of one method at one sparsity with one recipe."""

    method: str
    keep: float
    epochs: int
    learning_rate: float
    lines: list[dict] = field(default_factory=list)

    @property
    def finished(self) -> list[dict]:
        return [line for line in self.lines if line["status"] == "finished"]

    def values(self, metric: str) -> list[float]:
        return [percent(line, metric) for line in self.finished]


def percent(line: dict, metric: str) -> float:
    """A metric in per cent; squad's are, those of GLUE are fractions of 1."""
    return line["metrics"][metric] * (1 if line["task"] == "squad" else 100)


def data_of(line: dict) -> tuple:
    """What two lines share that belong to one table."""
    return line["task"], line["data"].get("train"), line["data"].get("sha256")


def about_data(line: dict) -> str:
    """The task and its counts of rows, on SQuAD of questions."""
    task, counts = line["task"], line["data"]
    what = "questions" if task == "squad" else "rows"
    return task + (f", {counts['train']:,} {what} of train, {counts['dev']:,} of dev" if "train" in counts else "")


def spread(values: list[float]) -> str:
    """Mean and standard deviation; the one value alone where there is no more."""
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def rate(learning_rate: float) -> str:
    """A learning rate as the recipes have it: 2e-4."""
    digits, exponent = f"{learning_rate:e}".split("e")
    return f"{float(digits):g}e{int(exponent)}"


def groups(lines: list[dict]) -> list[Group]:
    """The pruned models, densest first, then by epochs and falling learning rate, methods in their lines' order."""
    found: dict[tuple, Group] = {}
    for line in lines:
        key = line["method"], line["keep"], line["epochs"], line["learning_rate"]
        found.setdefault(key, Group(*key)).lines.append(line)
    methods = list(dict.fromkeys(line["method"] for line in lines))
    return sorted(found.values(), key=lambda g: (-g.keep, g.epochs, -g.learning_rate, methods.index(g.method)))


def remark(group: Group, metrics: list[str], floors: list[dict], teachers: list[dict]) -> str:
    """Whether a model is at a floor, or below one, by the mean of the first metric; other teachers; failed cells.

    Where the other metrics are not the floor's, as with guesses of another class, the remark says so, and where some
    seeds are at a floor and others are not.
    """
    notes = []
    for floor in sorted(floors, key=lambda line: percent(line, metrics[0])) if group.finished else []:
        first, *others = (mean(group.values(metric)) - percent(floor, metric) for metric in metrics)
        name = FLOORS[floor["method"]].removeprefix("floor: ")
        at = abs(first) <= AT_FLOOR
        if first <= AT_FLOOR:
            alike = all(abs(other) <= AT_FLOOR if at else other <= AT_FLOOR for other in others)
            notes.append(f"{'at' if at else 'below'} {name}" + ("" if alike else f" in {NAMES[metrics[0]]} alone"))
        apart = [[abs(percent(line, metric) - percent(floor, metric)) for metric in metrics] for line in group.finished]
        seeds = sum(max(of_line) <= AT_FLOOR for of_line in apart)
        if 0 < seeds < len(apart):
            notes.append(f"{seeds} of {len(apart)} seeds at {name}")
    failed = len(group.lines) - len(group.finished)
    return "; ".join(notes + other_teachers(group, metrics, teachers) + ([f"{failed} failed"] if failed else []))


def other_teachers(group: Group, metrics: list[str], teachers: list[dict]) -> list[str]:
    """The metrics of teachers that are not the table's, as one trained anew may be; nothing where there is none."""
    known = [line["metrics"] for line in teachers]
    others = [line | {"metrics": line["teacher"]} for line in group.finished if known and line["teacher"] not in known]
    found = {" / ".join(f"{percent(line, metric):.1f}" for metric in metrics) for line in others}
    return [f"another teacher, {scores}" for scores in sorted(found)]


def table(lines: list[dict]) -> str:
    """The Markdown table of one set of data."""
    finished = [line for line in lines if line["status"] == "finished"]
    teachers, floors = ([line for line in finished if line["kind"] == kind] for kind in ("teacher", "floor"))
    metrics = list(next((line["metrics"] for line in finished), {}))
    titles = ["method", "epochs", "learning rate", "weights left", "as released"]
    titles += [*(NAMES[metric] for metric in metrics), "seeds", "of the teacher", "steps", "remark"]
    body = []
    for line in teachers:
        values = [f"{percent(line, metric):.1f}" for metric in metrics]
        recipe = [str(line["epochs"]), rate(line["learning_rate"])]
        body.append(["teacher", *recipe, "100 %", "", *values, "1", "", str(line.get("steps", "")), ""])
    for group in groups([line for line in lines if line["kind"] == "pruned"]):
        body.append(table_row(group, metrics, floors, teachers))
    for line in floors:
        values = [f"{percent(line, metric):.1f}" for metric in metrics]
        body.append([FLOORS[line["method"]], "", "", "", "", *values, "", "", "", ""])
    rows = [titles, ["---"] * len(titles), *body]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def table_row(group: Group, metrics: list[str], floors: list[dict], teachers: list[dict]) -> list[str]:
    """A method's cells of the table; the first metric decides what is kept of the teacher, and the remark."""
    finished, first = group.finished, metrics[0] if metrics else ""
    row = [group.method, str(group.epochs), rate(group.learning_rate)]
    if not finished:
        return [*row, f"{group.keep:g} %", "", *("" for _ in metrics), "0", "", "", remark(group, metrics, [], [])]
    left = [f"{mean(line[name] for line in finished):.1f} %" for name in results.REMAINING[:2]]
    scores = [spread(group.values(metric)) for metric in metrics]
    kept = [100 * line["metrics"][first] / line["teacher"][first] for line in finished]
    steps = ", ".join(sorted({str(line["steps"]) for line in finished}))
    row += [*left, *scores, str(len(finished)), f"{spread(kept)} %", steps]
    return [*row, remark(group, metrics, floors, teachers)]
