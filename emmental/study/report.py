"""Table and picture of a grid, made from its result lines alone: GRID.md and GRID.png beside GRID.jsonl."""

from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path

from emmental.study import results
from emmental.study.picture import picture
from emmental.study.table import about_data, data_of, table
from emmental.utils.errors import InputError


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
