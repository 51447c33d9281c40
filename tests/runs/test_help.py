"""--help: for which script it is, and its flags in the groups of the argument classes."""

import os
import re
import subprocess
import sys

import pytest
from tiny import ROOT


@pytest.mark.parametrize("script, own", [("masked_run_glue.py", "glue"), ("masked_run_squad.py", "squad")])
def test_help_groups_flags_as_the_argument_classes_do(script, own):
    shown = subprocess.run([sys.executable, script, "--help"], cwd=ROOT, capture_output=True, text=True)
    usage, about, rest = shown.stdout.split("\n\n", 2)
    assert usage.startswith(f"usage: {script} ") and len(usage.splitlines()) <= 2 and about.startswith(script)
    titles = re.findall(r"^(\w+):$", rest, re.M)
    assert titles == ["options", "model", "training", "pruning", "contrastive", "distillation", own]
    texts = re.split(r"^\w+:$", rest, flags=re.M)[1:]
    groups = {title: " ".join(text.split()) for title, text in zip(titles, texts, strict=True)}
    places = {
        "max_seq_length": "model",
        "save_steps": "training",
        "final_lambda": "pruning",
        "temperature": "distillation",
    }
    for flag, group in places.items():
        assert [title for title, text in groups.items() if f" --{flag} " in text] == [group]
    length = {"glue": 128, "squad": 384}[own]
    assert re.search(rf"--max_seq_length N [^()]*\(default: {length}\)", groups["model"])
    assert "(default: pretrained finetuned snapshots)" in groups["contrastive"]
    assert "Defaults are the released ones" in groups[own]


def test_the_demo_says_what_it_takes(tmp_path):
    """Also behind a script, where the flag would only come to the training script after the teacher's training."""
    path = f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}"
    unset = dict.fromkeys(("GPU", "NPROC", "CONTRAST", "DISTILL"), "")
    answers = [
        subprocess.run([*command, "--help"], cwd=tmp_path, env=os.environ | environ, capture_output=True, text=True)
        for command, environ in (
            ([sys.executable, "-m", "emmental.demo"], {"PYTHONPATH": str(ROOT)}),
            (["bash", ROOT / "run_squad_soft_kd.sh"], {"DEMO": "1", "PATH": path} | unset),
        )
    ]
    assert [answer.returncode for answer in answers] == [0, 0] and answers[0].stdout == answers[1].stdout
    assert answers[0].stdout.startswith("usage: python -m emmental.demo SCRIPT ") and not list(tmp_path.iterdir())
