"""Trains and evaluates a masked encoder on SQuAD with contrastive pruning (CAP, arXiv 2112.07198).

The experiment as one page: flags, data, checks, then training and evaluation. See README.md, and --help for the flags.
"""

from pathlib import Path

from emmental.arguments import SquadArguments
from emmental.data import squad, squad_metrics, squad_windows
from emmental.model.suitability import check_models
from emmental.utils.errors import print_once, run
from emmental.utils.flags import parse


def read(args: SquadArguments, split: str, flag: str) -> squad.Questions:
    file, version_2 = getattr(args, flag), args.version_2_with_negative
    if file:
        return squad.read(squad.locate(f"--{flag}", file, args.data_dir), version_2)
    if args.data_dir:
        return squad.read(Path(args.data_dir) / f"{split}-v{'2.0' if version_2 else '1.1'}.json", version_2)
    return squad.from_hub("train" if split == "train" else "validation", version_2, cache_dir=args.cache_dir or None)


def report(source: str, notes: list[tuple[str, str]], what: str, verbose: bool) -> None:
    """Names the questions with a fault: all of them with --verbose_logging, else the first three."""
    for name, reason in notes if verbose else notes[:3]:
        print_once(f"{source}: question {name} {what}: {reason}")
    if notes:
        print_once(f"{source}: {len(notes)} questions {what}")


def main() -> None:
    # Everything that can be wrong with flags and files is found before torch or a model is loaded.
    args = parse(SquadArguments)
    if args.nothing_to_do():
        return
    squad_windows.check_lengths(args.max_seq_length, args.doc_stride, args.max_query_length)
    check_models(args, None)
    train_questions = read(args, "train", "train_file") if args.do_train else None
    dev_questions = read(args, "dev", "predict_file") if args.do_eval else None

    from emmental import experiment
    from emmental.build import Task
    from emmental.data.cache import cache_folder
    from emmental.model.inference import predict
    from emmental.model.loading import load_tokenizer
    from emmental.utils import distributed

    precision = experiment.prepare(args)
    tokenizer = load_tokenizer(args.tokenizer_name or args.model_name_or_path, args.do_lower_case)

    def windows(questions: squad.Questions, training: bool) -> squad_windows.Windows:
        made = squad_windows.tokenise(
            questions,
            tokenizer,
            max_seq_length=args.max_seq_length,
            pad_to_max_length=args.pad_to_max_length,
            doc_stride=args.doc_stride,
            max_query_length=args.max_query_length,
            training=training,
            cache_dir=cache_folder(args.cache_dir),
            overwrite_cache=args.overwrite_cache,
        )
        notes, what = (made.skipped, "left out") if training else (questions.notes, "doubtful")
        report(questions.source, notes, what, args.verbose_logging)
        return made

    train_set = windows(train_questions, training=True).examples if args.do_train else None
    if args.do_train:
        args.plan(len(train_set))  # refused here if the run is too short for its flags
    dev_windows = windows(dev_questions, training=False) if args.do_eval else None

    def evaluate(model, folder: Path) -> dict[str, float]:
        examples = dev_windows.examples
        spans = predict(model, examples, precision, "dev")
        start, end = (examples.ragged(logits.numpy()) for logits in spans)
        predictions, nbest, null_odds = squad_metrics.predict(
            dev_windows,
            start,
            end,
            n_best_size=args.n_best_size,
            max_answer_length=args.max_answer_length,
            version_2=args.version_2_with_negative,
            null_score_diff_threshold=args.null_score_diff_threshold,
        )
        if distributed.rank() == 0:
            squad_metrics.save(folder, predictions, nbest, null_odds)
        return squad_metrics.evaluate(dev_questions, predictions, null_odds)

    rows = {"train": len(train_questions)} if args.do_train else {}
    rows |= {"dev": len(dev_questions)} if args.do_eval else {}
    # as released: the schedule counts from 1 on SQuAD (D13)
    task = Task(None, train_set, evaluate, rows, first_step=1)
    experiment.run(args, task, tokenizer, precision)


if __name__ == "__main__":
    run(main)
