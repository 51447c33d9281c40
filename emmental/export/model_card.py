"""The model card, README.md in a model's folder: what it is, what remains, its metrics, its command, how to load it.

The metadata at its head is what the Hugging Face Hub reads, so that a folder can be uploaded as it is. Nothing is
looked up on the Hub: a licence that no file here tells is given as unknown.
"""

import json
import shlex
from pathlib import Path

from emmental.export.sparse_format import FILE as SPARSE
from emmental.model.families import FAMILIES, family_of, is_masked
from emmental.pruning.counting import Count
from emmental.utils.files import atomic_write
from emmental.utils.provenance import command, commit, versions

FILE = "README.md"
LOADING = "## How to load it"
# metric of result.json -> its name on the Hub
METRICS = {
    **{"acc": "accuracy", "acc_mm": "accuracy", "f1": "f1", "exact": "exact_match", "mcc": "matthews_correlation"},
    **{"pearson": "pearsonr", "spearmanr": "spearmanr"},
}
LICENSES = {"bert-base-uncased": "apache-2.0", "google-bert/bert-base-uncased": "apache-2.0"}
LOAD = {
    "masked": """import emmental  # the package of the repository that pruned this model, not PyPI's of that name

model = emmental.{masked_class}.from_pretrained("{folder}")

transformers' own class would load the weights without the masks; `bertarize.py` folds the masks into the weights for
it, or with `--format sparse` packs what they leave for `emmental.load_sparse`.""",
    "dense": """from transformers import {plain_class}

model = {plain_class}.from_pretrained("{folder}")""",
    "sparse": """import emmental  # the package of the repository that pruned this model, not PyPI's of that name

model = emmental.load_sparse("{folder}")

The pruned matrices are stored packed, which `load_sparse` reads.""",
}


def write_card(folder: Path, argv: list[str], arguments: dict, results: dict, rows: dict[str, int]) -> None:
    """Leaves the card of a finished training run in its folder.

    `argv` is its command, `arguments` what arguments.json holds and the `banks` contrasted with, `results` what
    result.json holds, `rows` the numbers of rows or questions by the name of their set.
    """
    squad, base = "task_name" not in arguments, arguments["model_name_or_path"]
    masked = is_masked(arguments["model_type"])
    title = f"{Path(base).name} {'pruned' if masked else 'fine-tuned'} on {data_name(arguments)}"
    body = [f"# {title}", about(arguments, results), "## Results", result_table(results, rows, squad)]
    body += ["## How it was made", f"```bash\n{shlex.join(command(argv))}\n```", made_with()]
    body += [
        LOADING,
        how_to_load(folder.resolve().name, "masked" if masked else "dense", squad, arguments["model_type"]),
    ]
    save(folder, metadata(arguments, results, rows, title), "\n\n".join(body))


def write_folded_card(source: Path, folder: Path, name: str, argv: list[str], others: Count | None) -> None:
    """Leaves the card of a folded model in its `folder`, to be called `name`: its source's, loaded in another way.

    Where it has other masks than its source, `others` says what they leave, and method and metrics are left out: they
    are of another model.
    """
    config = json.loads((folder / "config.json").read_text())
    squad = "QuestionAnswering" in str(config["architectures"])
    form = "sparse" if (folder / SPARSE).exists() else "dense"
    folded = f"Its masks were folded into its weights by\n\n```bash\n{shlex.join(['python', *argv])}\n```"
    data, body = {"license": "unknown", "tags": ["pruning"]}, f"# {source.resolve().name}, folded"
    if card := read_card(source):
        data, body = card.data.to_dict(), card.text.split(LOADING)[0].strip()
    if others:
        for measured in ("model-index", "model_name", "metrics"):
            data.pop(measured, None)
        data["tags"] = ["pruning"]
        left = remaining(others.remaining, others.remaining_released)
        body = f"# {source.resolve().name}, folded with other masks\n\n{left}\n\n## Results\n\nNot evaluated."
    elif data.get("metrics"):
        folded += "\n\nThe results are those of the masked model; this one was not evaluated again."
    data["library_name"] = "transformers" if form == "dense" else "emmental"
    save(folder, data, "\n\n".join([body, folded, LOADING, how_to_load(name, form, squad, config["model_type"])]))


def save(folder: Path, data: dict, body: str) -> None:
    """Writes the card, whole or not at all."""
    from huggingface_hub import ModelCard, ModelCardData

    card = ModelCard(f"---\n{ModelCardData(**data).to_yaml()}\n---\n\n{body}\n", ignore_metadata_errors=True)
    with atomic_write(folder / FILE) as temporary:
        card.save(temporary)


def data_name(arguments: dict) -> str:
    """The data set as people call it."""
    if "task_name" in arguments:
        return f"GLUE {arguments['task_name'].upper()}"
    return "SQuAD v2.0" if arguments["version_2_with_negative"] else "SQuAD v1.1"


def data_read(arguments: dict) -> str:
    """The data set, and that its rows came from local files if they did."""
    return data_name(arguments) + (" (rows of local files in its layout)" if local_files(arguments) else "")


def data_set(arguments: dict) -> tuple[str, str]:
    """The data set's name on the Hub, and its configuration."""
    if "task_name" in arguments:
        return "nyu-mll/glue", arguments["task_name"].replace("-", "")
    return (
        ("rajpurkar/squad_v2", "squad_v2")
        if arguments["version_2_with_negative"]
        else ("rajpurkar/squad", "plain_text")
    )


def local_files(arguments: dict) -> bool:
    """Whether rows came from files of the user's, which may be laid out as a data set and hold other rows."""
    return any(arguments.get(name) for name in ("data_dir", "train_file", "predict_file"))


def split(arguments: dict, metric: str) -> str:
    """The Hub's name of the dev set of a metric."""
    if arguments.get("task_name") != "mnli":
        return "validation"
    return "validation_mismatched" if metric.endswith("_mm") else "validation_matched"


def metadata(arguments: dict, results: dict, rows: dict[str, int], title: str) -> dict:
    """The card's head: base model, data set, task, metrics, library, licence."""
    from huggingface_hub import EvalResult

    squad, base = "task_name" not in arguments, arguments["model_name_or_path"]
    name, config = data_set(arguments)
    task = "question-answering" if squad else "text-classification"
    measured = [
        EvalResult(
            task_type=task,
            dataset_type=name,
            dataset_name=data_name(arguments) + (" (local files)" if local_files(arguments) else ""),
            dataset_config=config,
            dataset_split=split(arguments, key),
            dataset_args={"rows": evaluated(key, rows)},
            metric_type=METRICS[key],
            metric_name=key,
            metric_value=results[key],
        )
        for key in METRICS
        if key in results
    ]
    masked = is_masked(arguments["model_type"])
    head: dict = {"library_name": "emmental" if masked else "transformers", "license": license_of(base)}
    head |= {"pipeline_tag": task, "datasets": [name], "language": "en"}
    head["tags"] = ["pruning", arguments["pruning_method"]] if masked else [arguments["model_type"]]
    head["metrics"] = sorted({METRICS[key] for key in METRICS if key in results})
    if not Path(base).exists():  # a folder here is no name on the Hub
        head["base_model"] = base
    return head | ({"model_name": title, "eval_results": measured} if measured else {})


def read_card(folder: Path):
    """The card in a folder; None where there is none that can be read, which is no reason to end a run."""
    from huggingface_hub import ModelCard

    if not (folder / FILE).is_file():  # load would ask the Hub
        return None
    try:
        return ModelCard.load(folder / FILE, ignore_metadata_errors=True)
    except Exception:  # of YAML, or of another encoding
        return None


def license_of(base: str) -> str:
    """The base model's licence, as the card in its folder has it, or as it is known."""
    card = read_card(Path(base))
    return (card and card.data.license) or LICENSES.get(base, "unknown")


def evaluated(metric: str, rows: dict[str, int]) -> int:
    """How many rows a metric was measured on; those of the other dev sets of a task are not counted."""
    return sum(
        n for name, n in rows.items() if name != "train" and name.endswith("mismatched") == metric.endswith("_mm")
    )


def about(arguments: dict, results: dict) -> str:
    """What the model is, and what remains of it."""
    base = arguments["model_name_or_path"]
    if not is_masked(arguments["model_type"]):
        return f"`{base}`, fine-tuned on {data_read(arguments)}; a teacher for contrastive pruning."
    parts = [f"contrastive losses (banks: {', '.join(arguments['banks'])})"] if arguments["banks"] else []
    parts += ["distillation"] if arguments["use_distill"] else []
    method = f"`{arguments['pruning_method']}`" + (f" with {' and '.join(parts)}" if parts else "")
    text = f"`{base}`, pruned on {data_read(arguments)} by {method}."
    if "remaining_weights" in results:
        text += "\n\n" + remaining(results["remaining_weights"], results["remaining_weights_released"])
    return text


def remaining(of_matrices: float, released: float) -> str:
    """What remains, in per cent, by both definitions."""
    text = f"Of the weights of the encoder's matrices {of_matrices:.2f} % remain ({released:.2f} % with biases and"
    return text + " LayerNorms counted as kept); embeddings, pooler and head are dense."


def result_table(results: dict, rows: dict[str, int], squad: bool) -> str:
    """The metrics in per cent, each with the rows it was measured on, and the rows trained on."""
    if not any(key in results for key in METRICS):
        return f"Not evaluated. Trained on {rows['train']:,} {'questions' if squad else 'rows'}."
    lines = ["| metric | value | rows evaluated on |", "|---|---|---|"]
    for key in METRICS:
        if key in results:
            value = results[key] if squad else 100 * results[key]
            lines.append(f"| {key} | {value:.2f} % | {evaluated(key, rows):,} |")
    return "\n".join(lines) + f"\n\nTrained on {rows['train']:,} {'questions' if squad else 'rows'}."


def made_with() -> str:
    packages = ", ".join(f"{name} {number}" for name, number in versions().items() if number)
    return f"Commit {commit() or 'unknown'}; {packages}."


def how_to_load(name: str, form: str, squad: bool, model_type: str) -> str:
    """The lines of Python that load a model of this form and type, and a remark where there is one."""
    kind = "QuestionAnswering" if squad else "SequenceClassification"
    plain = f"{FAMILIES[family_of(model_type)].prefix}For{kind}"
    classes = {"masked_class": f"Masked{plain}", "plain_class": plain}
    lines = LOAD[form].format(folder=name, **classes).split("\n\n")
    code, remark = "\n\n".join(lines[:2]), lines[2:]
    return "\n\n".join([f"```python\n{code}\n```", *remark])
