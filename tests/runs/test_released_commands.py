"""The four published command lines, with the flags that they were published with, on a model and data of a few rows.

Only paths differ, and the length of a warm-up: 26 rows have no 11,000 steps.
"""

import json

import pytest
from tiny import make_model, result, succeed

COMMON = """--model_type masked_bert --do_train --do_eval --do_lower_case --num_train_epochs 10 --learning_rate 3e-5
    --mask_scores_learning_rate 1e-2 --mask_init constant --mask_scale 0. --use_contrastive_loss
    --contrastive_temperature 0.1 --extra_examples 4096 --alignrep cls --use_distill --teacher_type bert
    --ce_loss_weight 0.1 --distill_loss_weight 0.9 --save_steps 30000"""
GLUE = """--task_name qqp --max_seq_length 128 --per_gpu_train_batch_size 32 --per_gpu_eval_batch_size 32
    --initial_warmup 2 --final_warmup 3 --cl_unsupervised_loss_weight 0.1 --cl_supervised_loss_weight 10"""
SQUAD = """--train_file train-v1.1.json --predict_file dev-v1.1.json --max_seq_length 384 --doc_stride 128
    --per_gpu_train_batch_size 16 --initial_warmup 1 --final_warmup 2 --cl_unsupervised_loss_weight 0.5"""
TOPK = "--pruning_method topK --initial_threshold 1 --regularization null --final_lambda 0"
SOFT = "--pruning_method sigmoied_threshold --initial_threshold 0 --final_threshold 0.1 --regularization l1"
COMMANDS = {
    "run_glue_topk_kd": ("qqp", f"masked_run_glue.py {COMMON} {GLUE} {TOPK} --final_threshold 0.03"),
    "run_glue_soft_kd": ("qqp", f"masked_run_glue.py {COMMON} {GLUE} {SOFT} --final_lambda 550"),
    "run_squad_topk_kd": ("squad1", f"masked_run_squad.py {COMMON} {SQUAD} {TOPK} --final_threshold 0.1"),
    "run_squad_soft_kd": ("squad1", f"masked_run_squad.py {COMMON} {SQUAD} {SOFT} --final_lambda 2000"),
}


@pytest.mark.parametrize("task, command", COMMANDS.values(), ids=COMMANDS)
def test_a_published_command_runs(world, tmp_path, task, command):
    head = "BertForQuestionAnswering" if task == "squad1" else "BertForSequenceClassification"
    labels = {} if task == "squad1" else {"id2label": {0: "0", 1: "1"}, "label2id": {"0": 0, "1": 1}}
    model = make_model(tmp_path / "model", max_position_embeddings=512)
    teacher = make_model(tmp_path / "teacher", head, seed=1, max_position_embeddings=512, **labels)
    paths = ["--model_name_or_path", model, "--teacher_name_or_path", teacher, "--data_dir", world.data(task)]
    paths += ["--output_dir", tmp_path / "out", "--cache_dir", tmp_path / "cache"]
    ran = succeed(*command.split(), *paths, "--warmup_steps", 1)
    assert "--extra_examples 4096: the training set has" in ran.out
    assert {"exact", "f1"} <= set(result(tmp_path / "out")) or {"acc", "f1"} <= set(result(tmp_path / "out"))
    arguments = json.loads((tmp_path / "out" / "arguments.json").read_text())
    words = command.split()
    for flag in ("final_threshold", "final_lambda", "cl_unsupervised_loss_weight", "distill_loss_weight"):
        assert arguments[flag] == float(words[words.index(f"--{flag}") + 1])
