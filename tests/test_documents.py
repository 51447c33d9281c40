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


def readme_section(title: str) -> str:
    return (ROOT / "README.md").read_text().split(f"## {title}\n")[1].split("\n## ")[0]


def test_the_papers_symbols_are_where_readme_says():
    rows = [line.split("|")[1:-1] for line in readme_section("The paper in the code").splitlines() if line[:1] == "|"]
    assert len(rows) > 12
    for paper, code, where, flags in rows[2:]:
        files = [ROOT / "emmental" / name for name in re.findall(r"`([\w/]+\.py)`", where)]
        text = "".join(path.read_text() for path in files)
        names = [name for quoted in re.findall(r"`([^`]+)`", code) for name in re.findall(r"\w+", quoted)]
        assert files and not [name for name in names if not re.search(rf"\b{name}\b", text)], paper
        options = (ROOT / "emmental" / "arguments.py").read_text()
        assert all(re.search(rf"^    {flag}: ", options, re.M) for flag in re.findall(r"`--(\w+)`", flags)), paper


def test_readme_lists_every_module():
    modules = (ROOT / "emmental").glob("*/*.py")
    small = ("demo", "study", "__init__.py")
    named = set(re.findall(r"\w+", readme_section("Files")))
    assert not [path for path in modules if not set(path.parts) & set(small) and path.stem not in named]


def test_links_between_documents_lead_somewhere():
    for name, text in sources().items():
        for path, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", text) if name.endswith(".md") else ():
            target = (ROOT / name).parent / path if path else ROOT / name
            assert target.exists(), (name, path)
            if anchor:
                titles = re.findall(r"^#+ (.*)$", target.read_text(), re.M)
                assert anchor in [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles], (
                    name,
                    anchor,
                )


def test_readme_is_short():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 240
    assert not [line for line in lines if len(line) > 130 and not line.startswith("|")]
