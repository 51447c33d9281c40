"""`import emmental` alone lets transformers' Auto classes load masked folders, and imports neither it nor torch."""

import subprocess
import sys
import time

import pytest
from test_families import masked_model, plain_model
from tiny import ROOT

from emmental.model.families import FAMILIES
from emmental.model.heads import ANSWERS, CLASSIFIES

LIGHT = "assert not {'torch', 'transformers', 'emmental.model.masked_classes'} & set(sys.modules)"
LOAD = """
from transformers import AutoConfig, AutoModelForQuestionAnswering, AutoModelForSequenceClassification
for family in sys.argv[1:]:
    config = AutoConfig.from_pretrained(f"{family}/ForSequenceClassification")
    assert config.model_type == f"masked_{family}" and config.threshold == 0.25, config
    for auto in (AutoModelForSequenceClassification, AutoModelForQuestionAnswering):
        kind = auto.__name__.removeprefix("AutoModel")
        model = auto.from_pretrained(f"{family}/{kind}")
        assert type(model) is getattr(emmental, type(model).__name__), type(model)
        assert type(model).__name__.startswith("Masked") and type(model).__name__.endswith(kind), type(model)
        assert type(model.config) is type(config) is getattr(emmental, type(config).__name__)
"""
ORDERS = {
    "emmental first": f"import emmental; {LIGHT}; import transformers",
    "emmental in the middle": "import transformers, emmental",
    "emmental last": "from transformers import AutoModelForSequenceClassification; import emmental",
    "emmental again": "import emmental, importlib, transformers; importlib.reload(emmental)",
    "the table of configs again": """import emmental, importlib
import transformers.models.auto.configuration_auto as configs; importlib.reload(configs)""",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of a masked model of every family with either head."""
    folder = tmp_path_factory.mktemp("masked")
    for family in FAMILIES:
        for head in (CLASSIFIES, ANSWERS):
            plain_model(family, head).save_pretrained(folder / "plain" / head / family)
            model = masked_model(folder / "plain" / head / family, family, head)
            model.config.threshold = 0.25
            model.save_pretrained(folder / family / f"For{head}")
    return folder


def python(code: str, folder, *arguments: str) -> str:
    """What a new interpreter prints that runs `code` in the folder."""
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


SLOW = ("emmental in the middle", "emmental again", "the table of configs again")


@pytest.mark.parametrize(
    "first", [pytest.param(ORDERS[name], id=name, marks=[pytest.mark.slow] * (name in SLOW)) for name in ORDERS]
)
def test_masked_folders_load_by_auto(folder, first):
    every = FAMILIES if first == ORDERS["emmental first"] else ["roberta"]
    python(f"{first}\n{LOAD}", folder, *every)


def test_transformers_alone_does_not_know_them(folder):
    """So that the test above shows what the import does."""
    code = "from transformers import AutoConfig\ntry:\n    AutoConfig.from_pretrained('bert/ForQuestionAnswering')"
    assert "masked_bert" in python(f"{code}\nexcept ValueError as error:\n    print(error)", folder)


@pytest.mark.slow
def test_importing_takes_a_moment(tmp_path):
    """Neither torch nor transformers comes with it, and looking for transformers imports nothing either."""
    code = f"import emmental; {LIGHT}\nfrom importlib.util import find_spec\nfind_spec('transformers'); {LIGHT}"
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        python(code, tmp_path)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1


@pytest.mark.slow
def test_an_import_of_transformers_that_fails_may_be_tried_again(folder):
    code = """
import emmental
class Broken:
    def find_spec(self, name, path=None, target=None):
        if name == "transformers.models.auto.configuration_auto":
            raise ImportError("broken")
sys.meta_path.insert(1, Broken())
try:
    import transformers.models.auto.configuration_auto
except ImportError as error:
    print(error)
sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, Broken)]
"""
    assert python(code + LOAD, folder, "bert") == "broken\n"
