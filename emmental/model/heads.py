"""What a model's head answers, read from its config: whether it suits a task, and in which order its labels are."""

from emmental.utils.errors import InputError, print_once

ANSWERS, CLASSIFIES = "QuestionAnswering", "SequenceClassification"  # in the name of an architecture


def head_of(labels: tuple[str, ...] | None) -> str:
    """The kind of head that a task needs; `labels` as in check_head."""
    return ANSWERS if labels is None else CLASSIFIES


def check_head(where: str, config: dict, labels: tuple[str, ...] | None) -> None:
    """Refuses a model whose head is of another kind, or has other labels, than the task.

    `where` names the flag and the model; `labels` are the task's label names in order, () for a regression, None for a
    span. Names that cannot be compared are taken as being in the right order, with a line that says so.
    """
    kind = head_of(labels)
    if kind not in str(config.get("architectures") or kind):
        wrong = "does not answer questions" if labels is None else "is no sequence classifier"
        raise InputError(f"{where}: {config['architectures']} {wrong}")
    if labels is None:
        return
    named = label_names(where, config)
    if len(named) != max(1, len(labels)):
        raise InputError(f"{where}: {len(named)} labels, and the task has {max(1, len(labels))}")
    if labels:
        check_order(where, named, labels)


def label_names(where: str, config: dict) -> list[str]:
    """The names of a classifier's labels, in the order of their ids."""
    try:
        names = config.get("id2label") or {str(i): f"LABEL_{i}" for i in range(config.get("num_labels", 2))}
        return [str(names[key]) for key in sorted(names, key=int)]
    except (ValueError, TypeError):
        raise InputError(f"{where}: its config's id2label or num_labels is not as transformers writes it") from None


def check_order(where: str, named: list[str], labels: tuple[str, ...]) -> None:
    """Refuses the task's labels in another order; says so where the names are others."""
    theirs, ours = ([x.lower() for x in names] for names in (named, labels))
    if theirs == ours:
        return
    if set(theirs) == set(ours):
        raise InputError(f"{where}: its labels are {named}, in another order than the task's, {list(labels)}")
    print_once(f"{where}: its labels are named {named}; they are taken as {list(labels)}, in this order")
