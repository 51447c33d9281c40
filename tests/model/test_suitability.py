"""Whether models and task fit: labels, positions, masks, and what a missing teacher's line advises."""

from types import SimpleNamespace

import pytest
from tiny import make_model

from emmental import MaskedBertConfig, MaskedBertForSequenceClassification
from emmental.model.heads import check_head
from emmental.model.suitability import check_student, check_teacher_exists, say_other_task
from emmental.model.validation import check_config
from emmental.utils.errors import InputError


@pytest.mark.parametrize("names", [{"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}, {}])
def test_labels_without_names_are_taken_in_their_order(capsys, names):
    check_head("--teacher t", {"architectures": ["BertForSequenceClassification"]} | names, ("0", "1"))
    said = "--teacher t: its labels are named ['LABEL_0', 'LABEL_1']; they are taken as ['0', '1'], in this order\n"
    assert capsys.readouterr().out == said


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


def test_a_pruned_model_is_not_fine_tuned_as_a_dense_one(tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    config = MaskedBertConfig(**sizes, pruning_method="magnitude", threshold=0.5)
    MaskedBertForSequenceClassification(config).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"--model_type bert: .* is masked; fold it first, with bertarize\.py"):
        check_student(str(tmp_path), "", "", 24, "bert", ("0", "1"))


def test_positions_up_to_the_padding_tokens_are_lost(tmp_path):
    """Roberta counts from behind the padding token's number, 1: of 66 positions 64 are left."""
    folder = str(make_model(tmp_path / "roberta", family="roberta"))
    check_config(folder, "--model_name_or_path", 64)
    with pytest.raises(InputError, match=r"--max_seq_length 65: .* has 64 positions"):
        check_config(folder, "--model_name_or_path", 65)
