"""The flags' defaults, and which of them a resumed run may change."""

from dataclasses import fields

import pytest

from emmental.arguments import GlueArguments, SquadArguments
from emmental.utils.flags import default_of, parse

# What the scripts and published commands leave out, so that a run goes by it. The released values: those of movement
# pruning's scripts, from which CAP's come, and CAP's own.
RELEASED = {
    "learning_rate": 5e-5, "mask_scores_learning_rate": 1e-2, "weight_decay": 0.0, "adam_epsilon": 1e-8,
    "max_grad_norm": 1.0, "num_train_epochs": 3.0, "max_steps": -1, "warmup_steps": 0, "seed": 42,
    "gradient_accumulation_steps": 1, "per_gpu_train_batch_size": 8,
    "pruning_method": "topK", "mask_init": "constant", "mask_scale": 0.0, "initial_threshold": 1.0,
    "final_threshold": 0.7, "initial_warmup": 1, "final_warmup": 2, "regularization": "null", "final_lambda": 0.0,
    "global_topk": False, "global_topk_frequency_compute": 25, "temperature": 2.0,
    "use_contrastive_loss": False, "contrastive_temperature": 0.01, "extra_examples": 512,
    "alignrep": "mean-pooling", "cl_unsupervised_loss_weight": 0.1, "use_distill": False,
    "cl_normalization": "released", "snapshot_mode": "train",
}  # fmt: skip


@pytest.mark.parametrize("kind, own", [
    (GlueArguments, {"max_seq_length": 128, "cl_supervised_loss_weight": 2.0, "logging_steps": 50, "save_steps": 50}),
    (SquadArguments, {"max_seq_length": 384, "doc_stride": 128, "max_query_length": 64, "n_best_size": 20,
                      "max_answer_length": 30, "null_score_diff_threshold": 0.0, "logging_steps": 500}),
])  # fmt: skip
def test_defaults_are_the_released_ones(kind, own):
    defaults = {item.name: default_of(item) for item in fields(kind)}
    assert {name: defaults[name] for name in RELEASED | own} == RELEASED | own


FREE = """model_name_or_path config_name tokenizer_name cache_dir output_dir do_train do_eval resume_from_checkpoint
    overwrite_output_dir overwrite_cache no_cuda per_gpu_train_batch_size per_gpu_eval_batch_size
    evaluate_during_training evaluate_at logging_steps save_steps save_total_limit eval_all_checkpoints
    teacher_name_or_path data_dir"""
OWN = "train_file predict_file null_score_diff_threshold n_best_size max_answer_length verbose_logging threads"


@pytest.mark.parametrize("kind, free", [(GlueArguments, FREE), (SquadArguments, f"{FREE} {OWN}")])
def test_a_resumed_run_may_change_nothing_but_these(kind, free):
    """Of weights and data digests are compared, of batch and processes the product."""
    assert {item.name for item in fields(kind) if not item.metadata["affects_training"]} == set(free.split())


CONTRAST = ["--contrast_with", "pretrained", "--extra_examples", "4096", "--alignrep", "cls"]
TEACHER = ["--teacher_name_or_path", "t"]
UNUSED_TEACHER = "nothing is distilled, nor contrasted with a teacher; ignored: --teacher_name_or_path\n"


@pytest.mark.parametrize(
    "flags, said",
    [
        (
            CONTRAST,
            "without --use_contrastive_loss; ignored: --contrast_with --extra_examples\n",
        ),  # cls is of the model
        ([*CONTRAST, "--use_contrastive_loss"], ""),
        ([*CONTRAST, *TEACHER, "--use_contrastive_loss"], UNUSED_TEACHER),
        (TEACHER, UNUSED_TEACHER),
        ([*TEACHER, "--use_distill", "--distill_loss_weight", "1"], ""),
    ],
)
def test_flags_about_what_is_off_are_named(tmp_path, capsys, flags, said):
    parse(
        GlueArguments,
        [*["--task_name", "qqp", "--model_name_or_path", "x", "--do_train", "--output_dir"], str(tmp_path), *flags],
    )
    out = capsys.readouterr().out
    assert out.endswith(said) and out.count("\n") == bool(said)
