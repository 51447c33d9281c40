"""The picture of a grid: seeds as dots, a method's means as one line, the teacher dashed, floors dotted."""

from collections import defaultdict
from itertools import cycle
from pathlib import Path
from statistics import mean

from emmental.study.grids import METHODS
from emmental.study.table import FLOORS, NAMES, Group, about_data, groups, percent, rate

EPOCHS = "epochs (methods at their learning rates, drawn side by side)"
WEIGHTS = "remaining weights (%), methods drawn side by side"
MARKS = (("o", "-"), ("s", "--"), ("^", ":"))  # dots and line of a recipe; the colour is the method's


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
