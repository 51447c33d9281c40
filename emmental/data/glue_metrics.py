"""The metrics of the GLUE benchmark, by its names, each a fraction of 1.

scikit-learn and scipy compute them, imported when something is measured, so that flags are checked within a second.
"""

import warnings
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from emmental.data.glue import GlueTask


def _accuracy(labels: np.ndarray, predictions: np.ndarray) -> float:
    from sklearn.metrics import accuracy_score

    return accuracy_score(labels, predictions)


def _f1(labels: np.ndarray, predictions: np.ndarray) -> float:
    from sklearn.metrics import f1_score

    return f1_score(labels, predictions, zero_division=0.0)


def _mcc(labels: np.ndarray, predictions: np.ndarray) -> float:
    from sklearn.metrics import matthews_corrcoef

    return matthews_corrcoef(labels, predictions)


def _pearson(labels: np.ndarray, predictions: np.ndarray) -> float:
    from scipy.stats import pearsonr

    return _correlation(pearsonr, predictions, labels)


def _spearmanr(labels: np.ndarray, predictions: np.ndarray) -> float:
    from scipy.stats import spearmanr

    return _correlation(spearmanr, predictions, labels)


def _correlation(measure, x: np.ndarray, y: np.ndarray) -> float:
    return measure(x, y).statistic if np.ptp(x) and np.ptp(y) else 0.0


METRICS = {"acc": _accuracy, "f1": _f1, "mcc": _mcc, "pearson": _pearson, "spearmanr": _spearmanr}


def evaluate(task: "GlueTask", predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The task's metrics from logits (examples, labels), or scores (examples, 1), and labels (examples,).

    Where a metric is not defined, as a correlation with a constant is not, it is 0.
    """
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    predictions = predictions.argmax(-1) if task.labels else predictions.reshape(-1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the undefined cases
        scores = {name: float(METRICS[name](labels, predictions)) for name in task.metrics}
    return scores | ({task.mean: sum(scores.values()) / 2} if task.mean else {})


def of_split(split: str, scores: dict[str, float]) -> dict[str, float]:
    """The metrics by the names that results have: those of MNLI's mismatched set end in _mm."""
    return {f"{name}_mm" if split.endswith("mismatched") else name: value for name, value in scores.items()}
