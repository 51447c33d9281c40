"""Bad input: one line that says what and where, exit status 2, nothing written, and no torch needed to say it."""

import json
import os
import select
import shutil
import subprocess
import sys
import time

import pytest
from tiny import HARD, HEADERS, LIGHT, ROOT, SOFT, TRAIN, VOCABULARY, launcher, run_script, succeed

# --- Makers of bad files: each returns a function of the world and of a folder to write to, which returns a path


def there(name):
    return lambda world, folder: getattr(world, name)


def nowhere(world, folder):
    return folder / "nowhere"


def file(world, folder):
    path = folder / "file"
    path.write_text("text")
    return path


def below_a_file(world, folder):
    return file(world, folder) / "below"


def loop(world, folder):
    path = folder / "loop"
    path.symlink_to(path)
    return path


def dangling(world, folder):
    path = folder / "dangling"
    path.symlink_to(folder / "nowhere")
    return path


def used(world, folder):
    return file(world, folder).parent


def own_checkpoint(world, folder):
    return used(world, folder) / "checkpoint-3"


def other_folder(name="other", **files):
    """A folder beside, of files with these JSON objects in them."""

    def make(world, folder):
        target = folder / name
        target.mkdir()
        for name_of_file, content in files.items():
            (target / name_of_file.replace("__", ".")).write_text(json.dumps(content))
        return target

    return make


def copy(source, remove=(), **files):
    """A copy of a folder of the world, without the files `remove`, and with others: bytes, or new JSON keys."""

    def make(world, folder):
        target = folder / "copy"
        shutil.copytree(source(world), target)
        for name in remove:
            (target / name).unlink()
        for name, content in files.items():
            path = target / name.replace("__", ".")
            if isinstance(content, dict):
                content = json.dumps(json.loads(path.read_text()) | content).encode()
            path.write_bytes(content)
        return target

    return make


def model(remove=(), **files):
    return copy(lambda world: world.model, remove, **files)


def teacher(task, remove=(), **files):
    return copy(lambda world: world.teacher(task), remove, **files)


def tsv(content, split="train"):
    return copy(lambda world: world.data("qqp"), **{f"{split}__tsv": content})


def scores(last):
    line = b"\t" * 7 + b"ba\tbe\t"
    return copy(lambda world: world.data("sts-b"), train__tsv=HEADERS["sts-b"].encode() + b"\n" + line + last)


def squad(content):
    """A SQuAD file of bytes, or of one article's paragraphs."""

    def make(world, folder):
        path = folder / "bad.json"
        data = content if isinstance(content, bytes) else json.dumps({"data": [{"paragraphs": content}]}).encode()
        path.write_bytes(data)
        return path

    return make


def paragraph(**changes):
    question = {"id": "q1", "question": "ba ?", "answers": [{"text": "be", "answer_start": 3}]} | changes
    return {"context": "ba be bi", "qas": [question]}


HEADER = b"id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
GOOD = b"1\t2\t3\tba\tbe\t0\n"
NAMED = ["--model_name_or_path", "m", "--task_name", "qqp"]
CAP = ["--use_contrastive_loss", "--teacher_name_or_path"]
SHORT = ["--warmup_steps", 4, "--initial_warmup", 2, "--final_warmup", 3, "--num_train_epochs", 2]
SWAPPED = {"id2label": {"0": "1", "1": "0"}}
MASKED = {"model_type": "masked_bert", "pruning_method": "topK", "threshold": 0.1}
INF = float("inf")  # json writes it as Infinity
CONFIG_OF_MODEL = ["--config_name", there("model")]
MASKED |= {"architectures": ["MaskedBertForSequenceClassification"]}
ADDED = {"added_tokens": [{"content": "ho", "id": len(VOCABULARY)}]}
ADDED["model"] = {"vocab": {word: number for number, word in enumerate(VOCABULARY)}}
OVERWRITE = ["bertarize.py", "--model_name_or_path", teacher("qqp", config__json=MASKED)]
OVERWRITE += ["--overwrite", "--target_model_path"]
WIDE = {"hidden_size": 64, "intermediate_size": 128}
EMPTY = (8).to_bytes(8, "little") + b"{}      "

# --- The table: task, flags that go wrong, a part of the message

ROWS = {
    # flags
    "unknown flag": ("qqp", ["--local_rank", 0], "unrecognized arguments: --local_rank"),
    "abbreviated flag": ("qqp", ["--learning", 1e-5], "unrecognized arguments: --learning"),
    "flag without value": ("qqp", ["--learning_rate"], "--learning_rate: expected one argument"),
    "no number": ("qqp", ["--learning_rate", "fast"], "--learning_rate: invalid float value: 'fast'"),
    "not a number": ("qqp", ["--learning_rate", "nan"], "--learning_rate nan"),
    "unknown method": ("qqp", ["--pruning_method", "sigmoid_threshold"], "--pruning_method: invalid choice"),
    "unknown task": ("qqp", ["--task_name", "ax"], "--task_name ax: one of cola, sst-2"),
    "unknown bank": ("qqp", ["--contrast_with", "prc"], "--contrast_with: invalid choice: 'prc'"),
    "nothing to do": (None, ["masked_run_glue.py", "--model_name_or_path", "m", "--task_name", "qqp"], "nothing to do"),
    "no model": (None, ["masked_run_squad.py", "--do_train", "--output_dir", "o"], "--model_name_or_path is required"),
    "no task": ("qqp", ["--task_name", ""], "--task_name is required"),
    "topK threshold": ("qqp", ["--final_threshold", 1.5], "--final_threshold 1.5: between 0 and 1 with topK"),
    "soft threshold": (
        *("qqp", ["--pruning_method", "sigmoied_threshold", "--initial_threshold", -0.1]),
        "--initial_threshold -0.1: between 0 and 1",
    ),
    "warm-ups": ("qqp", SHORT, "(--initial_warmup 2 + --final_warmup 3) * 4 warm-up steps = 20, and the run has 8"),
    "two warm-ups": ("qqp", ["--warmup_steps", 1, "--warmup_epochs", 1], "--warmup_steps and --warmup_epochs"),
    "lambda alone": ("qqp", ["--final_lambda", 10], "--final_lambda needs --regularization"),
    "penalty on magnitude": (
        *("qqp", ["--pruning_method", "magnitude", "--regularization", "l1", "--final_lambda", 1]),
        "--regularization l1: magnitude has no scores",
    ),
    "global topK": ("qqp", ["--global_topk"], "--global_topk needs --pruning_method threshold, not topK"),
    "sparsity without soft masks": ("qqp", ["--target_sparsity", 0.9], "--target_sparsity: topK"),
    "fraction that rises": (
        *("qqp", ["--initial_threshold", 0.1, "--final_threshold", 0.2]),
        "--initial_threshold 0.1 and --final_threshold 0.2: the fraction that is kept cannot rise",
    ),
    "global fraction that rises": (
        *("qqp", ["--pruning_method", "threshold", "--global_topk", "--initial_threshold", 0.1]),
        "--initial_threshold 0.1 and --final_threshold 0.7: the fraction that is kept cannot rise",
    ),
    "cut that falls": (
        *("qqp", ["--pruning_method", "sigmoied_threshold", "--final_threshold", 0.1]),
        "--initial_threshold 1.0 and --final_threshold 0.1: what scores have to exceed cannot fall",
    ),
    "nothing kept": (
        *("qqp", ["--final_threshold", 0]),
        "--final_threshold 0: with topK the fraction that is kept, of which nothing would be left",
    ),
    "threshold that no score exceeds": (
        *("qqp", ["--pruning_method", "threshold", "--initial_threshold", 0, "--final_threshold", 0.1]),
        "--initial_threshold 0.0: new scores are at most 0 (--mask_scale 0.0), none above it",
    ),
    "lambda below 0": (
        "qqp",
        ["--pruning_method", "threshold", "--initial_threshold", -1, "--regularization", "l1", "--final_lambda", 10],
        "--initial_threshold -1.0: lambda, which follows the threshold, would be below 0",
    ),
    "distillation of weight 0": (
        *("qqp", ["--use_distill", "--teacher_name_or_path", teacher("qqp")]),
        "--use_distill needs --distill_loss_weight above 0",
    ),
    "weight without distillation": (
        *("qqp", ["--distill_loss_weight", 0.9]),
        "--distill_loss_weight 0.9 needs --use_distill",
    ),
    "no loss": ("qqp", ["--ce_loss_weight", 0], "--ce_loss_weight 0: no loss is left"),
    "no loss in questions": (
        *("squad1", ["--ce_loss_weight", 0, "--cl_unsupervised_loss_weight", 0, *CAP, teacher("squad1")]),
        "--ce_loss_weight 0: no loss is left",
    ),
    "no loss in a regression": (
        *("sts-b", ["--ce_loss_weight", 0, "--cl_unsupervised_loss_weight", 0, *CAP, teacher("sts-b")]),
        "--ce_loss_weight 0: no loss is left",
    ),
    "a threshold of no evaluation": (
        *("qqp", ["--evaluate_at", "running"]),
        "--evaluate_at running needs --evaluate_during_training",
    ),
    "evaluation that never comes": (
        *("qqp", ["--evaluate_during_training", "--logging_steps", 0]),
        "--evaluate_during_training evaluates every --logging_steps, which is 0",
    ),
    "checkpoints without evaluation": (
        None,
        *(["masked_run_glue.py", "--do_train", "--eval_all_checkpoints", *NAMED],),
        "--eval_all_checkpoints needs --do_eval",
    ),
    "sparsity beyond what is kept in any case": (  # 6 of 1,024 weights four times a layer, 8 of 1,536 twice
        *("qqp", [*SOFT, "--target_sparsity", 0.99442]),
        "--target_sparsity 0.99442: at most 0.99441 with",
    ),
    "sparsity of a larger model": (
        *("squad1", [*SOFT, "--target_sparsity", 0.995, "--config_name", model(config__json=WIDE)]),
        "--target_sparsity 0.995: at most 0.99493 with",
    ),
    "batch": ("qqp", ["--per_gpu_train_batch_size", 0], "--per_gpu_train_batch_size 0: at least 1"),
    "seed": ("qqp", ["--seed", 2**64], f"--seed {2**64}"),
    "temperature": ("qqp", ["--contrastive_temperature", 0], "--contrastive_temperature 0.0: above 0"),
    "both halves": ("qqp", ["--fp16", "--bf16"], "--fp16 and --bf16"),
    "fp16 without GPU": ("qqp", ["--fp16", "--no_cuda"], "--fp16 needs a GPU"),
    "evaluation without data": (
        None,
        *(["masked_run_squad.py", "--do_train", "--evaluate_during_training", "--model_name_or_path", "m"],),
        "--evaluate_during_training needs --do_eval",
    ),
    "sequence longer than the model's": ("qqp", ["--max_seq_length", 65], "--max_seq_length 65"),
    "windows without room": ("squad1", ["--max_query_length", 20], "--max_query_length 20 + --doc_stride 12"),
    # output
    "used output": ("qqp", ["--output_dir", used], "is not empty; --overwrite_output_dir"),
    "used output, with auto": (
        *("qqp", ["--output_dir", used, "--resume_from_checkpoint", "auto"]),
        "is not empty; --overwrite_output_dir",
    ),
    "model that would be removed": (
        *("qqp", ["--overwrite_output_dir", "--output_dir", used, "--model_name_or_path", own_checkpoint]),
        "checkpoint-3: --overwrite_output_dir removes it; give another --output_dir",
    ),
    "teacher that would be removed": (
        *("qqp", ["--overwrite_output_dir", "--output_dir", used, *CAP, own_checkpoint]),
        "checkpoint-3: --overwrite_output_dir removes it; give another --output_dir",
    ),
    "output is a file": ("qqp", ["--output_dir", file], "Not a directory"),
    "output below a file": ("qqp", ["--output_dir", below_a_file], "Not a directory"),
    "output is a loop": ("qqp", ["--output_dir", loop], "symbolic links"),
    "output is a dangling link": ("qqp", ["--output_dir", dangling], "not writable"),
    "output with a long name": ("qqp", ["--output_dir", "/tmp/" + "x" * 300], "File name too long"),
    "no checkpoint": ("qqp", ["--resume_from_checkpoint", nowhere], "no checkpoint, it has no state.json"),
    "resumption without training": (
        *(None, ["masked_run_glue.py", "--do_eval", "--resume_from_checkpoint", "auto", "--model_name_or_path", "m"]),
        "--resume_from_checkpoint needs --do_train",
    ),
    # models
    "no such model": ("qqp", ["--model_name_or_path", nowhere], "nowhere: no such folder"),
    "model on no Hub": ("qqp", ["--model_name_or_path", "no-such/model"], "not to be had from the Hub"),
    "model is a file": ("qqp", ["--model_name_or_path", file], "no such folder"),
    "model is a loop": ("qqp", ["--model_name_or_path", loop], "no such folder"),
    "folder without model": ("qqp", ["--model_name_or_path", used], "no model folder, it has no config.json"),
    "model without weights": (
        *("qqp", ["--model_name_or_path", model(["model.safetensors"])]),
        "no model folder, it has no model.safetensors",
    ),
    "config not JSON": ("qqp", ["--model_name_or_path", model(config__json=b"{")], "config.json: not JSON"),
    "config not UTF-8": ("qqp", ["--model_name_or_path", model(config__json=b"\xff")], "config.json: not JSON"),
    "config no object": ("qqp", ["--model_name_or_path", model(config__json=b"[]")], "config.json: not a JSON object"),
    "no encoder": ("qqp", ["--model_name_or_path", model(config__json={"model_type": "gpt2"})], "not one of bert, "),
    "another family": ("qqp", ["--model_type", "masked_roberta"], "family bert, which --model_type masked_bert fits"),
    "another family's teacher": ("qqp", ["--model_type", "electra"], "family bert, which --model_type bert fits"),
    "width no number": (
        *("qqp", ["--model_name_or_path", model(config__json={"hidden_size": "wide"})]),
        "its config's hidden_size is 'wide'",
    ),
    "torn weights": (
        *("qqp", ["--model_name_or_path", model(model__safetensors=b"\x10" + bytes(40))]),
        "model.safetensors is damaged",
    ),
    "no tokenizer": (
        *("squad1", ["--model_name_or_path", model(["tokenizer.json", "vocab.txt"])]),
        "no tokenizer, it has none of",
    ),
    "more tokens than the model has": (
        *("qqp", ["--model_name_or_path", model(config__json={"vocab_size": len(VOCABULARY) - 1})]),
        f"its tokenizer has {len(VOCABULARY)} tokens, and",
    ),
    "a token was added": (
        *("squad1", ["--tokenizer_name", other_folder(tokenizer__json=ADDED)]),
        "--tokenizer_name",
    ),
    "no such tokenizer": ("qqp", ["--tokenizer_name", nowhere], "--tokenizer_name"),
    "no such config": ("qqp", ["--config_name", nowhere], "--config_name"),
    "training on another order": (
        *("qqp", ["--model_name_or_path", teacher("qqp", config__json=SWAPPED)]),
        "its labels are ['1', '0'], in another order than the task's, ['0', '1']",
    ),
    # evaluation alone
    "evaluation in another order": (
        *("qqp", ["--do_eval", "--model_name_or_path", teacher("qqp", config__json=SWAPPED)]),
        "its labels are ['1', '0'], in another order than the task's, ['0', '1']",
    ),
    "evaluation on more labels": (
        *("qqp", ["--do_eval", "--model_name_or_path", teacher("mnli")]),
        "3 labels, and the task has 2",
    ),
    "evaluation of a pre-trained model": (
        *("qqp", ["--do_eval", "--model_name_or_path", there("model")]),
        "['BertForPreTraining'] is no sequence classifier",
    ),
    "evaluation of a classifier on questions": (
        *("squad1", ["--do_eval", "--model_name_or_path", teacher("qqp")]),
        "does not answer questions",
    ),
    "evaluation without the masks": (
        *("qqp", ["--do_eval", "--model_name_or_path", teacher("qqp", config__json=MASKED), *CONFIG_OF_MODEL]),
        "its pruning_method is None, and",
    ),
    "evaluation at no threshold": (
        *("qqp", ["--do_eval", "--model_name_or_path", teacher("qqp", config__json=MASKED | {"threshold": INF})]),
        "its config's threshold is inf, not a finite number",
    ),
    "evaluation with other masks": (
        "qqp",
        [
            *("--do_eval", "--model_name_or_path", teacher("qqp", config__json=MASKED)),
            *("--config_name", other_folder(config__json=MASKED | {"pruning_method": "l0"})),
        ],
        "its pruning_method is l0, and",
    ),
    # teachers
    "contrast without teacher": (
        "qqp",
        ["--use_contrastive_loss"],
        "--contrast_with pretrained snapshots does without",
    ),
    "distillation without teacher": ("qqp", ["--use_distill"], "--use_distill needs --teacher_name_or_path"),
    "no such teacher": ("qqp", [*CAP, nowhere], "--teacher_name_or_path"),
    "masked teacher": ("qqp", [*CAP, teacher("qqp"), "--teacher_type", "masked_bert"], "is 'bert', not masked_bert"),
    "teacher of another size": (
        *("qqp", [*CAP, teacher("qqp", config__json={"hidden_size": 64})]),
        "hidden_size 64, and",
    ),
    "teacher with more tokens": (
        *("qqp", [*CAP, teacher("qqp", config__json={"vocab_size": 999})]),
        "vocab_size 999, and",
    ),
    "teacher of another vocabulary": (
        *("qqp", [*CAP, teacher("qqp", ["tokenizer.json"], vocab__txt="\n".join(sorted(VOCABULARY)).encode())]),
        "its vocabulary is another",
    ),
    "teacher of another task": ("qqp", [*CAP, teacher("mnli")], "3 labels, and the task has 2"),
    "teacher of another order": (
        *("qqp", [*CAP, teacher("qqp", config__json=SWAPPED)]),
        "its labels are ['1', '0'], in another order than the task's, ['0', '1']",
    ),
    "teacher that answers questions": ("qqp", [*CAP, teacher("squad1")], "is no sequence classifier"),
    "teacher that classifies": ("squad1", [*CAP, teacher("qqp")], "does not answer questions"),
    "torn teacher": ("squad1", [*CAP, teacher("squad1", model__safetensors=b"")], "model.safetensors is damaged"),
    # GLUE files
    "no such data": ("qqp", ["--data_dir", nowhere], "train.tsv: cannot be read"),
    "data is a loop": ("qqp", ["--data_dir", loop], "train.tsv: cannot be read"),
    "data of another task": ("qqp", ["--task_name", "mrpc"], "train.tsv, line 1: no column '#1 String'"),
    "empty file": ("qqp", ["--data_dir", tsv(b"")], "train.tsv, line 1: the file is empty"),
    "empty set": ("qqp", ["--data_dir", tsv(HEADER)], "train.tsv, line 2: the set is empty"),
    "empty dev set": ("qqp", ["--data_dir", tsv(HEADER, "dev")], "dev.tsv, line 2: the set is empty"),
    "unknown label": ("qqp", ["--data_dir", tsv(HEADER + GOOD + GOOD[:-2] + b"2\n")], "line 3: unknown label '2'"),
    "malformed rows": (
        "qqp",
        ["--data_dir", tsv(HEADER + GOOD * 50 + b"1\t2\n")],
        "1 of 51 rows are malformed (line 52",
    ),
    "not UTF-8": ("qqp", ["--data_dir", tsv(HEADER + GOOD + b"\xff\n")], "train.tsv, line 3: not UTF-8 (byte 0xff)"),
    "UTF-16": ("qqp", ["--data_dir", tsv(HEADER.decode().encode("utf-16"))], "train.tsv, line 1: not UTF-8"),
    "a score past five": ("sts-b", ["--data_dir", scores(b"5.001")], "unknown label '5.001' (scores from 0 to 5)"),
    "a score that is none": ("sts-b", ["--data_dir", scores(b"nan")], "unknown label 'nan'"),
    # SQuAD files
    "no such file": ("squad1", ["--train_file", nowhere], "nowhere: cannot be read"),
    "no such file in the data folder": (
        *("squad1", ["--train_file", "no-such.json"]),
        f"--train_file no-such.json: no such file, neither {ROOT / 'no-such.json'} nor ",
    ),
    "broken JSON": ("squad1", ["--train_file", squad(b'{"data": [')], "bad.json: cannot be read"),
    "JSON of another shape": ("squad1", ["--predict_file", squad(b"[]")], "bad.json: is not as in a SQuAD file"),
    "JSON not UTF-8": ("squad1", ["--train_file", squad(b'{"data": "\xff"}')], "bad.json: cannot be read"),
    "no question": ("squad1", ["--train_file", squad([])], "bad.json: holds no question"),
    "answer past the passage": (
        *("squad1", ["--train_file", squad([paragraph(answers=[{"text": "x", "answer_start": 99}])])]),
        "(question 'q1'): answer_start 99 is not in its passage of 8 characters",
    ),
    "question twice": (
        "squad1",
        ["--predict_file", squad([paragraph(), paragraph()])],
        "'q1'): its id occurred before",
    ),
    "v2.0 without its flag": ("squad1", ["--train_file", squad([paragraph(answers=[])])], "--version_2_with_negative"),
    # the small tools
    "counts of nothing": (None, ["counts_parameters.py", "--serialization_dir", nowhere], "no such folder"),
    "counts of a dense model": (
        None,
        ["counts_parameters.py", "--serialization_dir", model()],
        "is 'bert', not masked",
    ),
    "a picture without matplotlib": (
        *(
            None,
            ["counts_parameters.py", "--serialization_dir", teacher("qqp", config__json=MASKED), "--plot", "x.png"],
        ),
        "--plot needs matplotlib",
    ),
    "counts without a folder": (None, ["counts_parameters.py"], "--serialization_dir"),
    "a model folded onto itself": (
        *(None, ["bertarize.py", "--model_name_or_path", model(config__json={"model_type": "masked_bert"})]),
        "its config has no pruning_method; give --pruning_method",
    ),
    "folding at no number": (
        *(None, ["bertarize.py", "--model_name_or_path", model(config__json=MASKED), "--threshold", "nan"]),
        "--threshold nan: between 0 and 1 with topK",
    ),
    "counts beyond all": (
        *(None, ["counts_parameters.py", "--serialization_dir", model(config__json=MASKED), "--threshold", 5]),
        "--threshold 5.0: between 0 and 1 with topK",
    ),
    "folding onto foreign files": (
        *(None, [*OVERWRITE, other_folder(config__json={"model_type": "bert"}, notes__txt={})]),
        "other: holds notes.txt, which bertarize.py does not write; it is not replaced",
    ),
    "folding onto a training run's folder": (
        *(None, [*OVERWRITE, other_folder(arguments__json={}, log__jsonl={}, config__json=MASKED)]),
        "holds arguments.json and 1 more, which bertarize.py does not write",
    ),
    "folding onto a masked model": (
        *(None, [*OVERWRITE, other_folder(config__json=MASKED)]),
        "holds a model of type masked_bert, which bertarize.py does not write",
    ),
    "folding onto a file": (None, [*OVERWRITE, file], "file: is not a folder"),
    "folding beside foreign files": (
        *(None, [*OVERWRITE, lambda *at: other_folder("out.partial", notes__txt={})(*at).with_suffix("")]),
        "out.partial: holds notes.txt, which bertarize.py does not write",
    ),
    "folding of an unknown method": (
        *(None, ["bertarize.py", "--model_name_or_path", model(), "--pruning_method", "top"]),
        "--pruning_method: invalid choice",
    ),
}
HEAVY_ROWS = {
    # no files, and no network
    "no Hub for sentences": ("qqp", ["--data_dir", ""], "--data_dir reads the official TSV files instead"),
    "no Hub for questions": ("squad1", ["--data_dir", ""], "rajpurkar/squad: split 'train' cannot be loaded"),
    # only tokenising, or reading the weights, shows that
    "warm-ups in epochs": (
        *("squad1", ["--warmup_epochs", 1, "--initial_warmup", 2, "--final_warmup", 3, "--num_train_epochs", 3]),
        "the warm-ups outlast the run",
    ),
    "snapshots alone in one epoch": (
        *("qqp", ["--use_contrastive_loss", "--contrast_with", "snapshots", "--num_train_epochs", 1]),
        "--contrast_with snapshots: the first is taken after an epoch",
    ),
    "fp16 without any GPU": ("qqp", ["--fp16"], "--fp16 needs a GPU"),
    "weights of another model": (
        *("qqp", ["--model_name_or_path", model(model__safetensors=EMPTY)]),
        "weights of a MaskedBertForSequenceClassification are missing",
    ),
    "weights of another size": (
        *("qqp", ["--model_name_or_path", model(config__json={"hidden_size": 64})]),
        "the model cannot be loaded",
    ),
    "heads that do not divide": (
        *("qqp", ["--model_name_or_path", model(config__json={"num_attention_heads": 5})]),
        "the model cannot be loaded",
    ),
    "a pickle": (
        *("qqp", ["--model_name_or_path", model(["model.safetensors"], pytorch_model__bin=b"cos\nsystem\n(S'x'\ntR.")]),
        "the model cannot be loaded",
    ),
    "a tokenizer that is none": (
        *("squad1", ["--model_name_or_path", model(tokenizer__json=b"{}")]),
        "the tokenizer cannot be loaded",
    ),
    "a teacher without weights": ("qqp", [*CAP, teacher("qqp", model__safetensors=EMPTY)], "are missing, the first"),
    "a teacher without a head": (
        *("squad1", [*CAP, model(config__json={"architectures": ["BertForQuestionAnswering"]})]),
        "2 weights of a MaskedBertForQuestionAnswering are missing, the first qa_outputs.bias",
    ),
    "questions none of which can be trained on": (
        *("squad1", ["--train_file", squad([paragraph(question=" ")])]),
        "no question is fit for training; 'q1': the question is empty",
    ),
    "a cache that cannot be written": ("qqp", ["--cache_dir", below_a_file], "--cache_dir"),
    "counts without scores": (
        None,
        [
            *("counts_parameters.py", "--serialization_dir"),
            teacher("qqp", config__json=MASKED),
        ],
        "12 weights of a MaskedBertForSequenceClassification are missing, the first bert.encoder.layer.0.attention.",
    ),
}


def command(world, folder, task, flags):
    """The whole command line of a row, and where it would write."""
    out = folder / "out"
    flags = [flag(world, folder) if callable(flag) else flag for flag in flags]
    if task is not None:
        asked = [] if "--do_eval" in flags else ["--do_train", "--do_eval"]
        flags = [*world.command(task), *asked, "--output_dir", out, *flags]
    elif flags[0].startswith("masked_run") and "--output_dir" not in flags:
        flags += ["--output_dir", out]
    elif flags[0] == "bertarize.py" and "--target_model_path" not in flags:
        flags += ["--target_model_path", out]
    return flags, out


def everything(folder):
    return {path: path.lstat().st_mtime_ns for path in folder.rglob("*")}


def check(flags, out, message, folder, run):
    before = everything(folder)
    answer = run(*flags)
    assert answer.code == 2, answer.err
    lines = [line for line in answer.err.splitlines() if line]
    assert len(lines) == 1, answer.err
    assert lines[0].startswith(f"{flags[0]}: error: ") and message in lines[0]
    assert not out.exists() and everything(folder) == before


@pytest.mark.parametrize("task, flags, message", ROWS.values(), ids=ROWS)
def test_refused_in_one_line_without_torch(world, tmp_path, task, flags, message):
    flags, out = command(world, tmp_path, task, flags)
    run = launcher(*LIGHT).start
    check(flags, out, message, tmp_path, lambda *flags: run(*flags, before=("without", "torch")).wait())


@pytest.mark.parametrize("task, flags, message", HEAVY_ROWS.values(), ids=HEAVY_ROWS)
def test_refused_in_one_line(world, tmp_path, task, flags, message):
    flags, out = command(world, tmp_path, task, flags)
    check(flags, out, message, tmp_path, run_script)


ENVIRONMENT = {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
HALF = {
    "no size": ({"WORLD_SIZE": ""}, "LOCAL_RANK is set and WORLD_SIZE is not"),
    "no address": ({"MASTER_ADDR": ""}, "LOCAL_RANK is set and MASTER_ADDR is not"),
    "no number": ({"LOCAL_RANK": "first"}, "LOCAL_RANK=first: not a number"),
    "rank beyond": ({"RANK": "2"}, "RANK=2, and WORLD_SIZE=2"),
}


@pytest.mark.parametrize("changes, message", HALF.values(), ids=HALF)
def test_half_of_torchrun_s_environment(world, tmp_path, changes, message):
    flags, out = command(world, tmp_path, "qqp", [])
    ran = launcher(*LIGHT).start(*flags, environ=ENVIRONMENT | changes, before=("without", "torch")).wait()
    assert ran.code == 2 and message in ran.err and len(ran.err.splitlines()) == 1 and not out.exists()


@pytest.mark.slow
def test_a_bad_flag_is_refused_within_seconds(world):
    """In a fresh process, with the interpreter's start: a second here, with room for a busy machine."""
    script, *flags = world.command("qqp")
    start = time.perf_counter()
    refused = subprocess.run(
        [sys.executable, ROOT / script, *map(str, flags), "--do_eval", "--output_dir", "/dev/null/x"],
        capture_output=True,
        text=True,
    )
    assert refused.returncode == 2 and "Not a directory" in refused.stderr
    assert time.perf_counter() - start < 4


def test_an_evaluated_model_of_another_task_is_named(world, tmp_path):
    """Before its data are read, of which there are none here."""
    model = shutil.copytree(world.teacher("qqp"), tmp_path / "model")
    (model / "arguments.json").write_text('{"task_name": "mrpc"}')
    flags = ["--do_eval", "--output_dir", tmp_path / "out", "--data_dir", tmp_path / "none"]
    answer = run_script(*world.command("qqp", model), *flags)
    assert answer.code == 2 and "trained with task_name mrpc, and here it is qqp" in answer.out


def test_a_model_of_another_task_is_named(world, tmp_path):
    """Its labels may be the same; refused for the warm-up, as no step is needed to see it."""
    teacher = tmp_path / "teacher"
    shutil.copytree(world.teacher("qqp"), teacher)
    (teacher / "arguments.json").write_text('{"task_name": "mrpc"}')
    settings = json.loads((teacher / "tokenizer_config.json").read_text())
    (teacher / "tokenizer_config.json").write_text(json.dumps(settings | {"do_lower_case": False}))
    flags = [*TRAIN, *HARD, *world.cap("qqp"), "--teacher_name_or_path", teacher, "--warmup_steps", 1000]
    answer = run_script(*world.command("qqp"), *flags, "--output_dir", tmp_path / "out")
    warning = f"warning: --teacher_name_or_path {teacher}: trained with task_name mrpc, and here it is qqp\n"
    warning += f"warning: --teacher_name_or_path {teacher}: its tokenizer keeps capitals, and here it is otherwise "
    warning += "(--do_lower_case)\n"
    assert (answer.code, answer.out) == (2, warning) and "the warm-up outlasts the run" in answer.err


@pytest.mark.parametrize("size", [1, 1_000_000])  # less and more than a buffer
def test_who_reads_the_output_may_stop(size):
    program = f"from emmental.utils.errors import run\nrun(lambda: print('x' * {size}))"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    writer = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, env=environ, **pipes)
    writer.stdout.close()
    assert writer.wait() == 141 and writer.stderr.read() == b""


def test_a_line_is_in_the_log_when_it_is_said():
    program = "import time\nfrom emmental.utils.errors import run\nrun(lambda: (print('said'), time.sleep(600)))"
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    writer = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, env=environ, stdout=subprocess.PIPE)
    ready, _, _ = select.select([writer.stdout], [], [], 60)
    writer.kill()
    assert ready and writer.communicate()[0] == b"said\n"


LEGAL = {
    "CRLF": (HEADER + GOOD * 9).replace(b"\n", b"\r\n"),
    "BOM": b"\xef\xbb\xbf" + HEADER + GOOD * 9,
    "quotes": HEADER + GOOD * 9 + b'1\t2\t3\t"ba\t"be" bi\t1\n',
    "no last line end": HEADER + GOOD * 9 + GOOD.strip(),
    "empty second sentence": HEADER + GOOD * 9 + b"1\t2\t3\tba\t\t1\n",
    "a million characters": HEADER + GOOD * 9 + b"1\t2\t3\t" + b"ba " * 340_000 + b"\tbe\t1\n",
    "one malformed row in 200": HEADER + GOOD * 200 + b"1\t2\n",
}


@pytest.mark.parametrize("content", LEGAL.values(), ids=LEGAL)
def test_odd_but_legal_glue_files_run(world, tmp_path, content):
    data = tsv(content)(world, tmp_path)
    shutil.copy(data / "train.tsv", data / "dev.tsv")
    flags = [*TRAIN, *HARD, "--data_dir", data, "--max_steps", 4, "--save_steps", 0, "--output_dir", tmp_path / "out"]
    ran = succeed(*world.command("qqp"), *flags)
    malformed = "train.tsv:202: skipped, 2 fields instead of 6"
    assert (malformed in ran.out) == (content == LEGAL["one malformed row in 200"])


def test_odd_but_legal_squad_files_run(world, tmp_path):
    odd = [
        paragraph(id="empty", question=""),
        paragraph(id="elsewhere", answers=[{"text": "bu", "answer_start": 3}]),
        {"context": "", "qas": []},
        paragraph(id="long", question="ba " * 340_000),
        {
            "context": "ba " * 2000 + "be bi",
            "qas": [paragraph(answers=[{"text": "be", "answer_start": 6000}])["qas"][0]],
        },
    ]
    path = squad(b"\xef\xbb\xbf" + json.dumps({"data": [{"paragraphs": odd}]}).encode())(world, tmp_path)
    flags = ["--train_file", path, "--predict_file", path, "--max_steps", 4, "--save_steps", 0]
    ran = succeed(*world.command("squad1"), *TRAIN, *HARD, *flags, "--output_dir", tmp_path / "out")
    assert f"{path}: 2 questions left out" in ran.out and "question empty left out: the question is empty" in ran.out
    assert json.loads((tmp_path / "out" / "result.json").read_text())["total"] == 4
