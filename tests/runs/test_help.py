"""--help: for which script it is, its flags in the groups of the argument classes, and their defaults."""

import os
import re
import subprocess
import sys
from dataclasses import fields

import pytest
from tiny import ROOT

from emmental.arguments import GlueArguments, SquadArguments
from emmental.utils.flags import default_of


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


# What the scripts and published commands leave out, so that a run goes by it. The released values: those of movement
# pruning's scripts, from which CAP's come, and CAP's own.
RELEASED = {
    **{"learning_rate": 5e-5, "mask_scores_learning_rate": 1e-2, "weight_decay": 0.0, "adam_epsilon": 1e-8},
    **{"max_grad_norm": 1.0, "num_train_epochs": 3.0, "max_steps": -1, "warmup_steps": 0, "seed": 42},
    **{"gradient_accumulation_steps": 1, "per_gpu_train_batch_size": 8},
    **{"pruning_method": "topK", "mask_init": "constant", "mask_scale": 0.0, "initial_threshold": 1.0},
    **{"final_threshold": 0.7, "initial_warmup": 1, "final_warmup": 2, "regularization": "null", "final_lambda": 0.0},
    **{"global_topk": False, "global_topk_frequency_compute": 25, "temperature": 2.0},
    **{"use_contrastive_loss": False, "contrastive_temperature": 0.01, "extra_examples": 512},
    **{"alignrep": "mean-pooling", "cl_unsupervised_loss_weight": 0.1, "use_distill": False},
    **{"cl_normalization": "released", "snapshot_mode": "train"},
}


@pytest.mark.parametrize("kind, own", [
    (GlueArguments, {"max_seq_length": 128, "cl_supervised_loss_weight": 2.0, "logging_steps": 50, "save_steps": 50}),
    (SquadArguments, {"max_seq_length": 384, "doc_stride": 128, "max_query_length": 64, "n_best_size": 20,
                      "max_answer_length": 30, "null_score_diff_threshold": 0.0, "logging_steps": 500}),
])  # fmt: skip
def test_defaults_are_the_released_ones(kind, own):
    defaults = {item.name: default_of(item) for item in fields(kind)}
    assert {name: defaults[name] for name in RELEASED | own} == RELEASED | own


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
