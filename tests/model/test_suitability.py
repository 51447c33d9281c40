"""Whether models and task fit, and what a missing teacher's line advises."""

import json
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from emmental import MaskedBertConfig, MaskedBertForSequenceClassification
from emmental.model.suitability import (
    check_first_masks,
    check_student,
    check_teacher_exists,
    say_other_case,
    say_other_task,
)
from emmental.utils.errors import InputError


@pytest.mark.parametrize("labels, batch, epochs", [(None, "16", "2"), (("0", "1"), "32", "3")])
def test_the_advised_teacher_has_the_published_recipe(labels, batch, epochs):
    args = SimpleNamespace(teacher_name_or_path="./none", model_type="masked_bert", model_name_or_path="m")
    recipe = f"--per_gpu_train_batch_size {batch} --learning_rate 3e-5 --num_train_epochs {epochs} "
    with pytest.raises(InputError, match=recipe):
        check_teacher_exists(args, labels)


def test_a_model_of_the_other_squad_is_named(tmp_path, capsys):
    (tmp_path / "arguments.json").write_text('{"version_2_with_negative": true}')
    say_other_task("--model_name_or_path", str(tmp_path), SimpleNamespace(version_2_with_negative=False))
    assert "trained with version_2_with_negative True, and here it is False" in capsys.readouterr().out


@pytest.mark.parametrize("flag, warned", [(False, True), (True, False)])
def test_a_teacher_of_lower_cased_texts_is_named(tmp_path, capsys, flag, warned):
    for name, normalizer in (
        ("teacher", {"type": "BertNormalizer", "lowercase": True}),
        ("student", {"type": "Sequence", "normalizers": [{"type": "NFC"}]}),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.json").write_text(json.dumps({"normalizer": normalizer}))
        (tmp_path / name / "tokenizer_config.json").write_text("{}")
    teacher, student = (str(tmp_path / name) for name in ("teacher", "student"))
    args = {"teacher_name_or_path": teacher, "tokenizer_name": "", "model_name_or_path": student}
    say_other_case(SimpleNamespace(**args, do_lower_case=flag))
    said = f"warning: --teacher_name_or_path {teacher}: its tokenizer lower-cases texts, and here it is otherwise"
    assert (said in capsys.readouterr().out) == warned


START = {"pruning_method": "sigmoied_threshold", "mask_init": "constant", "mask_scale": 0.0, "global_topk": False}
DENSE, MASKED = {"model_type": "bert"}, {"model_type": "masked_bert"}


@pytest.mark.parametrize(
    "threshold, flags, config, refused",
    [
        (0.499, {}, DENSE, False),  # the sigmoid of a score of 0 is 0.5
        (0.5, {}, DENSE, True),
        (0.5, {"mask_init": "uniform"}, DENSE, True),
        (0.5, {"mask_scale": 0.1}, DENSE, False),
        (0.0, {"pruning_method": "threshold"}, DENSE, True),
        (-0.1, {"pruning_method": "threshold"}, DENSE, False),
        (0.0, {"pruning_method": "threshold", "mask_init": "kaiming"}, DENSE, False),
        (0.5, {"pruning_method": "threshold", "global_topk": True}, DENSE, False),  # ranks, not values
        (0.5, {"pruning_method": "topK"}, DENSE, False),
        (1.0, {"pruning_method": "l0"}, DENSE, False),
        (0.5, {}, MASKED | {"pruning_method": "topK"}, False),  # its own scores are where training starts
        (0.5, {}, MASKED | {"pruning_method": "magnitude"}, True),  # it has none
    ],
)
def test_a_threshold_that_no_new_score_exceeds_is_refused(threshold, flags, config, refused):
    args = SimpleNamespace(**START | flags, initial_threshold=threshold)
    with pytest.raises(InputError, match=f"--initial_threshold {threshold}") if refused else nullcontext():
        check_first_masks(args, config)


@pytest.mark.parametrize(
    "threshold, flags, config, warned",
    [
        (0.9, {}, DENSE, True),
        (1.0, {}, DENSE, False),
        (0.9, {"mask_init": "uniform"}, DENSE, True),  # in +-0
        (0.9, {"mask_init": "uniform", "mask_scale": 0.1}, DENSE, False),
        (0.9, {"pruning_method": "magnitude"}, DENSE, False),
        (0.9, {}, MASKED | {"pruning_method": "topK"}, False),
    ],
)
def test_a_rank_of_scores_that_are_alike_is_warned_of(capsys, threshold, flags, config, warned):
    check_first_masks(
        SimpleNamespace(**START | {"pruning_method": "topK"} | flags, initial_threshold=threshold), config
    )
    warning = f"warning: --initial_threshold {threshold}: new scores are all alike"
    assert (warning in capsys.readouterr().out) == warned


def test_a_pruned_model_is_not_fine_tuned_as_a_dense_one(tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    config = MaskedBertConfig(**sizes, pruning_method="magnitude", threshold=0.5)
    MaskedBertForSequenceClassification(config).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"--model_type bert: .* is masked; fold it first, with bertarize\.py"):
        check_student(str(tmp_path), "", "", 24, "bert", ("0", "1"))
