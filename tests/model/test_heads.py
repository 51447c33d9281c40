"""Labels are those of the task, in its order."""

import pytest

from emmental.model.heads import check_head


@pytest.mark.parametrize("names", [{"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}, {}])
def test_labels_without_names_are_taken_in_their_order(capsys, names):
    check_head("--teacher t", {"architectures": ["BertForSequenceClassification"]} | names, ("0", "1"))
    said = "--teacher t: its labels are named ['LABEL_0', 'LABEL_1']; they are taken as ['0', '1'], in this order\n"
    assert capsys.readouterr().out == said
