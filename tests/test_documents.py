"""What comments, flags and workflows refer to is there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def sources() -> dict[str, str]:
    """The project's texts by their names."""
    folders = [path for name in ("emmental", "tests", ".ci", ".github") for path in (ROOT / name).rglob("*")]
    paths = [path for path in [*ROOT.iterdir(), *folders] if path.suffix in (".py", ".sh", ".md", ".yml")]
    return {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in paths}


def test_every_cited_difference_is_listed():
    listed = re.findall(r"^\| (D\d+) \|", (ROOT / "emmental" / "DIFFERENCES.md").read_text(), re.M)
    assert len(listed) == len(set(listed))
    cited = {(name, number) for name, text in sources().items() for number in re.findall(r"\bD\d+\b", text)}
    assert len(cited) > 20 and {number for _, number in cited} <= set(listed), cited


def test_no_comment_cites_a_list_that_readers_do_not_have():
    found = [name for name, text in sources().items() if re.search(r"\bquirk[ ]\d", text)]
    assert not found


def test_the_step_stands_between_two_rules():
    loop = (ROOT / "emmental" / "training" / "loop.py").read_text().splitlines()
    rules = [number for number, line in enumerate(loop) if re.fullmatch(r"\s*# -{20,}", line)]
    assert len(rules) == 2 and rules[1] - rules[0] < 40
    step = "\n".join(loop[rules[0] : rules[1]])
    order = [step.index(part) for part in ("masks.apply", "batch_loss", "optimizer.backward", "optimizer.step")]
    assert order == sorted(order)


def test_forks_are_checked_by_the_same_command():
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert re.findall(r"- run: (.*)", workflow) == [".ci/run"]
