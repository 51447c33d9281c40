"""Evaluations of checkpoints lie apart; a sparsity that was missed is said."""

from emmental.training import evaluation


def test_a_checkpoints_answers_lie_in_a_folder_of_its_name(monkeypatch, tmp_path):
    """Else they would replace those of the saved model."""
    monkeypatch.setattr(evaluation.resume, "complete", lambda folder: iter([tmp_path / "checkpoint-7"]))
    monkeypatch.setattr(evaluation.resume, "read_state", lambda folder: {"step": 7})
    asked = []
    found = evaluation.evaluate_checkpoints(
        tmp_path, tmp_path / "files", str, lambda model, folder: asked.append((model, folder)) or {"acc": 1.0}
    )
    assert asked == [(str(tmp_path / "checkpoint-7"), tmp_path / "files" / "checkpoint-7")]
    assert found == {"7": {"acc": 1.0}}


def test_a_target_that_was_missed_is_said(capsys):
    evaluation.check_calibration(0.9, 10.05)
    assert not capsys.readouterr().out
    evaluation.check_calibration(0.9, 10.2)
    assert capsys.readouterr().out == "warning: 10.20 % remaining weights, not 10.00 %: too many scores are the same\n"
