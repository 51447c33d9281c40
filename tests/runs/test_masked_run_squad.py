"""masked_run_squad.py's own part: where questions come from, and which of them it names."""

from types import SimpleNamespace

import datasets
import pytest

import masked_run_squad
from emmental.utils.errors import InputError


@pytest.mark.parametrize("version_2, name", [(False, "rajpurkar/squad"), (True, "rajpurkar/squad_v2")])
@pytest.mark.parametrize("split, of_the_hub", [("train", "train"), ("dev", "validation")])
def test_questions_of_the_hub_are_those_of_the_version_and_the_split(monkeypatch, version_2, name, split, of_the_hub):
    asked = []

    def load_dataset(*given, split, **_):
        asked.append((given[0], split))
        raise OSError("no network")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    args = SimpleNamespace(train_file="", predict_file="", version_2_with_negative=version_2, data_dir="", cache_dir="")
    with pytest.raises(InputError, match=f"^{name}: split '{of_the_hub}' cannot be loaded"):
        masked_run_squad.read(args, split, "train_file")
    assert asked == [(name, of_the_hub)]


@pytest.mark.parametrize("verbose, named", [(False, 3), (True, 5)])
def test_questions_with_a_fault_are_named_all_if_asked_for(capsys, verbose, named):
    masked_run_squad.report("file", [(f"q{number}", "odd") for number in range(5)], "left out", verbose)
    *lines, last = capsys.readouterr().out.splitlines()
    assert lines == [f"file: question q{number} left out: odd" for number in range(named)]
    assert last == "file: 5 questions left out"
