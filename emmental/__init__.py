"""CAP: contrastive pruning of pre-trained language models (AAAI 2022, arXiv 2112.07198).

The public names, loaded on first use: importing the package imports no torch, so that flags and files are checked in
a moment. With it transformers' Auto classes load masked folders.
"""

from importlib import import_module

from emmental.model.families import FAMILIES
from emmental.model.registration import register_when_transformers_is_imported

_HOME = {
    "TopKBinarizer": "pruning.masks",
    "ThresholdBinarizer": "pruning.masks",
    "MagnitudeBinarizer": "pruning.masks",
    "MaskedLinear": "pruning.masked_linear",
    "set_threshold": "pruning.masked_linear",
    "set_packing": "model.packing",
    **{
        f"Masked{family.prefix}{kind}": "model.masked_classes"
        for family in FAMILIES.values()
        for kind in ("Config", "ForSequenceClassification", "ForQuestionAnswering")
    },
    "schedule_threshold": "pruning.schedule",
    "regularization": "pruning.schedule",
    "contrastive_loss": "contrast.loss",
    "load_sparse": "export.sparse_bert",
}
__all__ = list(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'emmental' has no attribute '{name}'")
    return getattr(import_module(f"emmental.{_HOME[name]}"), name)


register_when_transformers_is_imported()
