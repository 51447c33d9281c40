"""The tables that the benchmark of training prints."""

from tests.benchmarks import growth
from tests.benchmarks.timing import PEAK


def table(title: str, columns: list[str], rows) -> None:
    print(f"\n{title:36}" + "".join(f"{column:>17}" for column in columns))
    for name, *values in rows:
        print(f"  {name:34}" + "".join(f"{value:17.4g}" for value in values), flush=True)


def show(title: str, result: dict) -> None:
    """Prints both ways side by side, the released way's largest parts first, and the ratio."""
    released, project = result["released"], result["project"]
    parts = sorted({*released, *project}, key=lambda part: (part == PEAK, -released.get(part, 0)))
    table(title, ["released", "project"], ((part, released.get(part, 0), project.get(part, 0)) for part in parts))
    print(f"  ratio {result['ratio']:.2f}", flush=True)


def show_growth(results: dict) -> None:
    columns = [f"{what}{who}" for what in ("step ms, ", "column s, ", "pass s, ") for who in ("rel.", "proj.")]
    rows = []
    for cell in results["growth"]:
        name = f"{cell['examples']:7}, {cell['snapshots']} snapshots{', rel. ~' * cell['extrapolated']}"
        rows.append((name, *(cell[who][what] for what in ("step", "column", "encoding") for who in growth.WAYS)))
    table("Growth without forward, ~ extrapolated", columns, rows)
    if "epoch" in results:
        show(f"The last epoch on {growth.QQP:,} examples, hours", results["epoch"])
    banks = results["banks"].items()
    table(
        "A bank of 20,000 x 768 x 10", list(results["banks"]["project, float32"]), ((x, *y.values()) for x, y in banks)
    )


def show_differences(title: str, found: dict) -> None:
    print(f"{title}:", ", ".join(f"{name} {x:.1e}" for name, x in found.items()), flush=True)
