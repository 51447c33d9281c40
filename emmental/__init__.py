"""CAP: contrastive pruning of pre-trained language models (AAAI 2022, arXiv 2112.07198).

The public names, loaded on first use: importing the package imports no torch, so that flags and files are checked in
a moment.
"""

from importlib import import_module

_HOME = {
    "TopKBinarizer": "masks",
    "ThresholdBinarizer": "masks",
    "MagnitudeBinarizer": "masks",
    "MaskedLinear": "masked_linear",
    "set_threshold": "masked_linear",
    "set_packing": "packing",
    "MaskedBertConfig": "masked_bert",
    "MaskedBertForSequenceClassification": "masked_bert",
    "MaskedBertForQuestionAnswering": "masked_bert",
    "schedule_threshold": "sparsity",
    "regularization": "sparsity",
    "contrastive_loss": "contrastive",
    "load_sparse": "sparse",
}
__all__ = list(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'emmental' has no attribute '{name}'")
    return getattr(import_module(f"emmental.{_HOME[name]}"), name)
