"""Table and picture of a grid, made from its result lines alone: GRID.md and GRID.png beside GRID.jsonl.

The table gives mean and standard deviation over seeds; the picture the metric against the remaining weights, or method
by method where all keep the same share: seeds as dots, a method's means as one line, the teacher dashed, floors dotted.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path
from statistics import mean, stdev

from emmental.study import results
from emmental.study.grids import METHODS
from emmental.utils.errors import InputError

NAMES = {"acc": "accuracy", "f1": "F1", "mcc": "MCC", "acc_mm": "accuracy, mismatched", "exact": "exact match"}
FLOORS = {
    "majority": "floor: the majority class",
    "embeddings": "floor: regression on frozen word embeddings",
    "constant": "floor: the same words of every passage",
}
EPOCHS = "epochs (methods at their learning rates, drawn side by side)"
WEIGHTS = "remaining weights (%), methods drawn side by side"
MARKS = (("o", "-"), ("s", "--"), ("^", ":"))  # dots and line of a recipe; the colour is the method's
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


def picture(sets: dict[tuple, list[dict]], path: Path) -> None:
    """One panel for each set of data: its first metric against the remaining weights; where all keep the same share,
    against the epochs, or by method where the epochs are the same too."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(sets), figsize=(7.5 * len(sets), 5), squeeze=False, layout="constrained")
    for axis, lines in zip(axes[0], sets.values(), strict=True):
        panel(axis, [line for line in lines if line["status"] == "finished"])
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def panel(axis, lines: list[dict]) -> None:
    """Draws one set of data."""
    metric = next(iter(lines[0]["metrics"]), "")
    found = groups([line for line in lines if line["kind"] == "pruned"])
    one_share, one_length = (len({getattr(group, of) for group in found}) == 1 for of in ("keep", "epochs"))
    by_epochs = one_share and not one_length
    by_method = one_share and one_length and len({group.method for group in found}) == len(found)

    def recipe(group: Group) -> tuple:
        return (group.learning_rate,) if by_epochs else (group.epochs, group.learning_rate)

    def across(group: Group, line: dict) -> float:
        return group.epochs if by_epochs else line["remaining_weights"]

    methods = dict.fromkeys([*METHODS, *(group.method for group in found)])  # one colour in all pictures
    colours = {method: f"C{number}" for number, method in enumerate(methods)}
    marks = dict(zip(dict.fromkeys(map(recipe, found)), cycle(MARKS), strict=False))
    curves = defaultdict(list)
    for group in found:
        curves[label(group, found, by_epochs)].append(group)
    for number, (name, members) in enumerate(curves.items()):
        # curves at one place stand side by side so that all are seen, many of them closer
        aside = 1 + 0.4 / max(8, len(curves)) * (number - (len(curves) - 1) / 2)
        points = [
            (number if by_method else aside * across(group, line), percent(line, metric), at)
            for at, group in enumerate(members)
            for line in group.finished
        ]
        centres = [
            (mean(x for x, _, place in points if place == at), mean(y for _, y, place in points if place == at))
            for at in range(len(members))
        ]
        colour, (dot, stroke) = colours[members[0].method], marks[recipe(members[0])]
        axis.plot(*zip(*sorted(centres), strict=True), color=colour, linestyle=stroke, marker="_", markersize=14)
        axis.scatter([x for x, _, _ in points], [y for _, y, _ in points], color=colour, marker=dot, s=22, zorder=3)
        axis.plot([], color=colour, linestyle=stroke, marker=dot, markersize=5, label=name)  # for the legend
    for line in sorted(lines, key=lambda line: line["kind"] != "teacher"):
        if line["kind"] == "teacher":
            axis.axhline(percent(line, metric), color="black", linestyle="--", label="teacher")
        elif line["kind"] == "floor":
            style = ":" if line["method"] != "embeddings" else (0, (1, 3))
            axis.axhline(percent(line, metric), color="grey", linestyle=style, label=FLOORS[line["method"]])
    finish(axis, lines[0], metric, EPOCHS if by_epochs else WEIGHTS, found, "linear" if by_method else "log")
    if by_method:  # each has one recipe: methods have the axis
        axis.set(xlim=(-0.6, len(curves) - 0.4), xlabel=f"{found[0].keep:g} % of the weights left")
        names = [name.replace(" at ", "\nat ").replace("CAP-m ", "CAP-m\n") for name in curves]
        axis.set_xticks(range(len(curves)), names)
        levels = [line for line in axis.get_lines() if line.get_label() in ("teacher", *FLOORS.values())]
        levels.sort(key=lambda line: line.get_label() != "teacher")
        axis.legend(handles=levels, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=3)


def label(group: Group, found: list[Group], by_epochs: bool) -> str:
    """A curve's name: epochs and learning rate are said where the panel has several of them, unless an axis says it."""
    epochs, rates = ({getattr(other, of) for other in found} for of in ("epochs", "learning_rate"))
    name = group.method + (f", {group.epochs} epochs" if len(epochs) > 1 and not by_epochs else "")
    return name + (f" at {rate(group.learning_rate)}" if by_epochs or len(rates) > 1 else "")


def finish(axis, line: dict, metric: str, x_title: str, found: list[Group], scale: str) -> None:
    """Titles, scale and legend of a panel."""
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    places = sorted({group.epochs if x_title == EPOCHS else group.keep for group in found})
    axis.set(xscale=scale, xlabel=x_title, ylabel=f"{NAMES[metric]} (%)")
    if places:
        axis.set(xlim=(places[0] / 1.6, places[-1] * 1.6), xticks=places)
    axis.xaxis.set_major_formatter(ScalarFormatter())
    axis.xaxis.set_minor_formatter(NullFormatter())
    lengths = {group.epochs for group in found}
    axis.set_title(about_data(line) + (f", {lengths.pop()} epochs" if len(lengths) == 1 else ""))
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))  # beside the panel: it may have many names


def about_data(line: dict) -> str:
    """The task and its counts of rows, on SQuAD of questions."""
    task, counts = line["task"], line["data"]
    what = "questions" if task == "squad" else "rows"
    return task + (f", {counts['train']:,} {what} of train, {counts['dev']:,} of dev" if "train" in counts else "")


def write(path: Path) -> None:
    """Makes table and picture of a results file; InputError where it has no line, or the picture has no matplotlib."""
    lines = list(results.latest(results.read(path)).values())
    if not lines:
        raise InputError(f"{path}: no result line yet")
    sets = defaultdict(list)
    for line in lines:
        sets[data_of(line)].append(line)
    parts = [f"{about_data(of_set[0])}\n\n{table(of_set)}\n" for of_set in sets.values()]
    path.with_suffix(".md").write_text("\n".join(parts), encoding="utf-8")
    print(f"table in {path.with_suffix('.md')}")
    if find_spec("matplotlib") is None:
        raise InputError("--report needs matplotlib for the picture: pip install matplotlib")
    drawn = {key: of_set for key, of_set in sets.items() if any(line["status"] == "finished" for line in of_set)}
    if drawn:
        picture(drawn, path.with_suffix(".png"))
        print(f"picture in {path.with_suffix('.png')}")
