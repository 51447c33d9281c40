"""Trains and evaluates a masked encoder on a GLUE task with contrastive pruning (CAP, arXiv 2112.07198).

The experiment as one page: flags, data, checks, then training and evaluation. See README.md, and --help for the flags.
"""

from pathlib import Path

from emmental.arguments import GlueArguments
from emmental.data import glue, glue_metrics
from emmental.model.suitability import check_models
from emmental.utils.errors import InputError, print_once, run
from emmental.utils.flags import parse


def read(args: GlueArguments, split: str) -> glue.Rows:
    if not args.data_dir:
        return glue.from_hub(args.task_name, split, args.cache_dir or None)
    rows = glue.read(args.task_name, Path(args.data_dir) / f"{split}.tsv")
    for line, reason in rows.skipped[:10]:
        print_once(f"{rows.source}:{line}: skipped, {reason}")
    if len(rows.skipped) > 10:
        print_once(f"{rows.source}: {len(rows.skipped)} lines skipped in all")
    return rows


def main() -> None:
    # Everything that can be wrong with flags and files is found before torch or a model is loaded.
    args = parse(GlueArguments)
    if args.nothing_to_do():
        return
    if args.task_name not in glue.TASKS:
        raise InputError(f"--task_name {args.task_name}: one of {', '.join(glue.TASKS)}")
    glue_task = glue.TASKS[args.task_name]
    check_models(args, glue_task.labels)
    train_rows = read(args, "train") if args.do_train else None
    if args.do_train:
        args.plan(len(train_rows))  # refused here if the run is too short for its flags
    dev_rows = {split: read(args, split) for split in glue_task.dev} if args.do_eval else {}

    from emmental import experiment
    from emmental.build import Task
    from emmental.data.cache import cache_folder
    from emmental.model.inference import predict
    from emmental.model.loading import load_tokenizer

    precision = experiment.prepare(args)
    tokenizer = load_tokenizer(args.tokenizer_name or args.model_name_or_path, args.do_lower_case)

    def tokenise(rows: glue.Rows):
        return glue.tokenise(
            rows,
            tokenizer,
            task=args.task_name,
            max_seq_length=args.max_seq_length,
            pad_to_max_length=args.pad_to_max_length,
            cache_dir=cache_folder(args.cache_dir),
            overwrite_cache=args.overwrite_cache,
        )

    dev_sets = {split: tokenise(rows) for split, rows in dev_rows.items()}

    def evaluate(model, folder: Path) -> dict[str, float]:
        results = {}
        for split, examples in dev_sets.items():
            (logits,) = predict(model, examples, precision, split)
            found = glue_metrics.evaluate(glue_task, logits.numpy(), examples.labels[0].numpy())
            results |= glue_metrics.of_split(split, found)
        return results

    train_set = tokenise(train_rows) if args.do_train else None
    rows = {"train": len(train_rows)} if args.do_train else {}
    rows |= {split: len(read_rows) for split, read_rows in dev_rows.items()}
    task = Task(glue_task.labels, train_set, evaluate, rows)
    experiment.run(args, task, tokenizer, precision)


if __name__ == "__main__":
    run(main)
