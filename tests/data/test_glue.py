"""GLUE: readers on small files, legal oddities and bad input; tokens against plain tokenizer calls; metrics by hand."""

import os
import random
import subprocess
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from emmental.data import glue_metrics
from emmental.data.glue import TASKS, GlueTask, Rows, from_hub, read, tokenise
from emmental.utils.errors import InputError

HEADERS = {
    "cola": None,
    "sst-2": "sentence\tlabel",
    "mrpc": "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String",
    "sts-b": "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
    "qqp": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
    "mnli": "index\tpromptID\tpairID\tgenre\tp1\tp2\tp3\tp4\tsentence1\tsentence2\tlabel1\tgold_label",
    "qnli": "index\tquestion\tsentence\tlabel",
    "rte": "index\tsentence1\tsentence2\tlabel",
    "wnli": "index\tsentence1\tsentence2\tlabel",
}
ROWS = {  # two rows of each official file, and what must come of them
    "cola": (["gj04\t1\t\tOne.", "gj04\t0\t*\tTwo."], ["One.", "Two."], None, [1, 0]),
    "sst-2": (["good \t1", "bad \t0"], ["good ", "bad "], None, [1, 0]),
    "mrpc": (["1\t7\t8\ta\tb", "0\t7\t8\tc\td"], ["a", "c"], ["b", "d"], [1, 0]),
    "sts-b": (["0\tg\tf\t12\t1\tn\tn\ta\tb\t5.000", "1\tg\tf\t12\t1\tn\tn\tc\td\t0.4"], "ac", "bd", [5.0, 0.4]),
    "qqp": (["1\t2\t3\ta\tb\t0", "4\t5\t6\tc\td\t1"], ["a", "c"], ["b", "d"], [0, 1]),
    "mnli": (
        ["0" + "\t" * 8 + "a\tb\tx\tcontradiction", "1" + "\t" * 8 + "c\td\tx\tneutral"],
        "ac",
        "bd",
        [2, 1],
    ),
    "qnli": (["0\ta\tb\tentailment", "1\tc\td\tnot_entailment"], ["a", "c"], ["b", "d"], [0, 1]),
    "rte": (["0\ta\tb\tnot_entailment", "1\tc\td\tentailment"], ["a", "c"], ["b", "d"], [1, 0]),
    "wnli": (["0\ta\tb\t1", "1\tc\td\t0"], ["a", "c"], ["b", "d"], [1, 0]),
}
QQP, SST = HEADERS["qqp"].encode(), HEADERS["sst-2"].encode()
MANY = b"\n1\t2\t3\ta\tb\t0" * 199


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("end, bom", [("\n", b""), ("\r\n", b"\xef\xbb\xbf")])
def test_official_files_are_read(tmp_path, task, end, bom):
    lines, first, second, labels = ROWS[task]
    path = tmp_path / "train.tsv"
    path.write_bytes(bom + end.join([*([HEADERS[task]] if HEADERS[task] else []), *lines, ""]).encode())
    second = None if second is None else list(second)
    assert read(task, path) == Rows(str(path), list(first), second, labels, [])


LEGAL = {
    "quotes are characters": ('"a', 'b "c"'),
    "empty second sentence": ("a", ""),
    "empty first sentence": ("", "b"),
    "line separators of Unicode": ("a\u2028b\x85c\x0bd\x1ce", "f\u2029"),
    "carriage return in a text": ("a\rb", "c"),
    "NUL": ("a\x00b", "c"),
    "a million characters": ("word " * 200_000, "a"),
}


@pytest.mark.parametrize("first, second", LEGAL.values(), ids=LEGAL)
def test_legal_texts_are_read_unchanged(tmp_path, first, second):
    path = tmp_path / "dev.tsv"
    path.write_bytes(QQP + f"\n1\t2\t3\t{first}\t{second}\t1\n1\t2\t3\tx\ty\t0".encode())
    rows = read("qqp", path)
    assert (rows.first, rows.second, rows.labels, rows.skipped) == ([first, "x"], [second, "y"], [1, 0], [])


def test_malformed_rows_are_skipped_and_kept_by_line(tmp_path):
    path = tmp_path / "train.tsv"
    path.write_bytes(QQP + MANY + b"\n1\t2\t3\ta" + MANY + b"\n1\t2\t3\ta\tb\t" + MANY + b"\n1\t2\t3\t \t\t1" + MANY)
    rows = read("qqp", path)
    assert rows.skipped == [(201, "4 fields instead of 6"), (401, "no label"), (601, "no text")]
    assert len(rows) == len(rows.first) == len(rows.second) == 4 * 199


BAD = {  # task, content, what the message says beside the file's name
    "nothing": ("qqp", b"", "line 1: the file is empty"),
    "BOM alone": ("qqp", b"\xef\xbb\xbf", "line 1: the file is empty"),
    "blank lines": ("cola", b"\r\n\r\n\n", "line 1: the file is empty"),
    "header alone": ("qqp", QQP + b"\n", "line 2: the set is empty"),
    "no header": ("sst-2", b"good\t1\nbad\t0", "line 1: no column 'sentence'"),
    "test file": ("qqp", b"id\tquestion1\tquestion2\n0\ta\tb", "line 1: no column 'is_duplicate'"),
    "another task": ("mnli", QQP + b"\n1\t2\t3\ta\tb\t0", "line 1: no column 'sentence1'"),
    "commas": ("sst-2", b"sentence,label\ngood,1", "line 1: no column 'sentence'"),
    "header where there is none": ("cola", b"source\tlabel\tx\tsentence\na\t1\t\tb", "line 1: unknown label 'label'"),
    "unknown label": ("sst-2", SST + b"\ngood\t1\nbad\t2", "line 3: unknown label '2' (0, 1)"),
    "label with a space": ("sst-2", SST + b"\ngood\t1 ", "line 2: unknown label '1 '"),
    "label with a separator": ("sst-2", SST + "\ngood\t1\u2028".encode(), "line 2: unknown label '1\\u2028'"),
    "endless label": ("sst-2", SST + b"\ngood\t" + b"1" * 9999, "line 2: unknown label '1111"),
    "no consensus": (
        "mnli",
        f"{HEADERS['mnli']}\n".encode() + b"0" + b"\t" * 8 + b"a\tb\tx\t-",
        "line 2: unknown label",
    ),
    "score too high": ("sts-b", HEADERS["sts-b"].encode() + b"\n" + b"x\t" * 9 + b"5.1", "line 2: unknown label '5.1'"),
    "score not a number": ("sts-b", HEADERS["sts-b"].encode() + b"\n" + b"x\t" * 9 + b"nan", "(scores from 0 to 5)"),
    "score a word": ("sts-b", HEADERS["sts-b"].encode() + b"\n" + b"x\t" * 9 + b"high", "line 2: unknown label 'high'"),
    "fields missing": ("qqp", QQP + b"\n1\t2\t3\ta\tb\t0\n1\t2", "1 of 2 rows are malformed (line 3: 2 fields instead"),
    "a field too many": ("qqp", QQP + b"\n1\t2\t3\ta\tb\tc\t0", "1 of 1 rows are malformed (line 2: 7 fields"),
    "over one per cent": (
        "qqp",
        QQP + b"\n\n" + MANY[1:] + b"\n\n\n1\n",
        "4 of 203 rows are malformed (line 2: 1 fields",
    ),
    "zero-length text": ("sst-2", SST + b"\n\t1", "1 of 1 rows are malformed (line 2: no text)"),
    "not UTF-8": ("qqp", QQP + b"\n1\t2\t3\ta\tb\t0\n1\t2\t3\t\xe9\tb\t0", "line 3: not UTF-8 (byte 0xe9)"),
    "not UTF-8 after a BOM": ("sst-2", b"\xef\xbb\xbf" + SST + b"\n\xff\t1", "line 2: not UTF-8 (byte 0xff)"),
    "UTF-16": ("sst-2", SST.decode().encode("utf-16"), "line 1: not UTF-8"),
    "surrogates": ("sst-2", SST + b"\n\xed\xa0\x80\t1", "line 2: not UTF-8"),
}


@pytest.mark.parametrize("task, content, expected", BAD.values(), ids=BAD)
def test_bad_content_is_refused_in_one_line(tmp_path, task, content, expected):
    path = tmp_path / "train.tsv"
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        read(task, path)
    message = str(error.value)
    assert message.startswith(str(path)) and expected in message
    assert len(message.splitlines()) == 1 and len(message) < len(str(path)) + 200


def test_a_path_that_is_no_file_is_refused(tmp_path):
    os.symlink(tmp_path / "loop", tmp_path / "loop")
    os.symlink(tmp_path / "nowhere", tmp_path / "dangling")
    (tmp_path / "file").touch()
    for name in ("missing", "loop", "dangling", "", "missing/train.tsv", "file/train.tsv", "x" * 300):
        with pytest.raises(InputError, match=r": cannot be read \(.+\)$") as error:
            read("rte", tmp_path / name)
        assert str(tmp_path / name) in str(error.value)


@pytest.fixture(scope="session")
def fuzzed(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz") / "train.tsv"


pieces = st.sampled_from(
    [b"\t", b"\n", b"\r", b"\t1\n", b"\t0\n", b"4.5\n", b"neutral\n", b"\xef\xbb\xbf", b"\x00", b'"']
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(list(TASKS)), st.booleans(), st.lists(pieces | st.binary(max_size=8), max_size=30))
@example("sst-2", True, [b"\na\t1"])
def test_arbitrary_bytes_give_rows_or_an_input_error(fuzzed, task, headed, content):
    fuzzed.write_bytes((HEADERS[task] or "").encode() * headed + b"".join(content))
    try:
        rows = read(task, fuzzed)
    except InputError:
        return
    assert len(rows.first) == len(rows.labels) > 0 and (rows.second is None) == (len(TASKS[task].texts) == 1)


def to_hub(folder, name: str, columns: dict):
    from datasets import Dataset

    file = folder / f"{name}-00000-of-00001.parquet"
    file.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_dict(columns).to_parquet(str(file))


def test_from_hub_reads_a_local_folder(tmp_path):
    hub, cache = tmp_path / "glue", tmp_path / "cache"
    to_hub(hub, "mnli/validation_matched", {"premise": ["a"], "hypothesis": ["b"], "label": [2], "idx": [0]})
    to_hub(hub, "sst2/train", {"sentence": ["a", "b"], "label": [1, 0], "idx": [0, 1]})
    to_hub(hub, "stsb/train", {"sentence1": ["a"], "sentence2": ["b"], "label": [3.5], "idx": [0]})
    to_hub(hub, "qqp/test", {"question1": ["a"], "question2": ["b"], "label": [-1], "idx": [0]})
    to_hub(hub, "rte/train", {"sentence1": ["a"], "label": [1]})
    to_hub(hub, "mrpc/train", {"sentence1": ["a", "b"], "sentence2": ["c", None], "label": [1, 0]})

    rows = from_hub("mnli", "dev_matched", cache, str(hub))
    assert (rows.first, rows.second, rows.labels) == (["a"], ["b"], [2]) and "validation_matched" in rows.source
    rows = from_hub("sst-2", "train", cache, str(hub))
    assert (rows.first, rows.second, rows.labels) == (["a", "b"], None, [1, 0])
    assert from_hub("sts-b", "train", cache, str(hub)).labels == [3.5]
    for task, split, expected in (
        ("qqp", "test", "row 1 has the label -1"),
        ("rte", "train", "sentence2"),
        ("mrpc", "train", "row 2 has no sentence2"),
        ("cola", "dev", "cola"),
    ):
        with pytest.raises(InputError, match=expected) as error:
            from_hub(task, split, cache, str(hub))
        assert "--data_dir" in str(error.value) and len(str(error.value).splitlines()) == 1


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    from transformers import BertTokenizerFast

    letters = "abcdefghij"
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters), "?"]
    file = tmp_path_factory.mktemp("tokenizer") / "vocab.txt"
    file.write_text("\n".join(vocabulary))
    return BertTokenizerFast.from_pretrained(file.parent)


class Counted:
    """A tokenizer that counts its calls."""

    def __init__(self, tokenizer):
        self.tokenizer, self.backend_tokenizer, self.calls = tokenizer, tokenizer.backend_tokenizer, 0

    def __call__(self, *args, **kwargs):
        self.calls += 1
        return self.tokenizer(*args, **kwargs)

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)


def random_text(rng: random.Random, longest: int) -> str:
    return " ".join("".join(rng.choices("abcdefghij?z", k=rng.randint(1, 3))) for _ in range(rng.randint(0, longest)))


@pytest.mark.parametrize("length", [4, 11, 12, 128])
@pytest.mark.parametrize("pair", [False, True])
def test_tokenise_equals_the_tokenizer_example_by_example(tmp_path, tokenizer, length, pair):
    rng = random.Random(length)
    texts = [[random_text(rng, 12) for _ in range(60)] for _ in range(1 + pair)]
    rows = Rows("here", *texts, *([] if pair else [None]), [i % 2 for i in range(60)])
    examples = tokenise(rows, tokenizer, task="qqp" if pair else "sst-2", max_seq_length=length, cache_dir=tmp_path)
    assert len(examples) == 60 and examples.labels[0].dtype == torch.int64
    assert examples.labels[0].tolist() == rows.labels
    for i, row in enumerate(zip(*texts, strict=True)):
        plain = tokenizer(*([text] for text in row), truncation="longest_first", max_length=length)
        place = slice(examples.offsets[i], examples.offsets[i + 1])
        assert examples.input_ids[place].tolist() == plain["input_ids"][0]
        assert examples.token_type_ids[place].tolist() == plain["token_type_ids"][0]


def test_tokenise_truncates_two_texts_of_a_million_characters(tmp_path, tokenizer):
    long = " " + "long" * 12 + " "
    rows = Rows("here", ["ab c" + long * 20_000], ["j" + long * 20_000], [2.5])
    examples = tokenise(rows, tokenizer, task="sts-b", max_seq_length=8, cache_dir=tmp_path)
    pieces = ["[CLS]", "a", "##b", "c", "[SEP]", "j", "[UNK]", "[SEP]"]
    assert tokenizer.convert_ids_to_tokens(examples.input_ids.tolist()) == pieces
    assert examples.labels[0].dtype == torch.float32


@pytest.mark.parametrize("padded, width", [(False, 4), (True, 12)])
def test_fully_padded_inputs_are_as_long_as_the_longest_allowed(tmp_path, tokenizer, padded, width):
    rows = Rows("here", ["a b", "c"], None, [0, 1])
    settings = {"task": "sst-2", "max_seq_length": 12, "cache_dir": tmp_path}
    examples = tokenise(rows, tokenizer, pad_to_max_length=padded, **settings)
    assert examples.inputs(np.array([0, 1]))["input_ids"].shape == (2, width)


def test_tokens_are_cached_and_remade_when_needed(tmp_path, tokenizer):
    rows = Rows("here", ["a b c", "d"], ["e", "f g"], [0, 1])

    def calls(rows=rows, length=8, **options) -> int:
        counted = Counted(tokenizer)
        examples = tokenise(rows, counted, task="qqp", max_seq_length=length, cache_dir=tmp_path, **options)
        assert (
            examples.input_ids[: examples.offsets[1]].tolist() == tokenizer(rows.first[0], rows.second[0])["input_ids"]
        )
        assert examples.labels[0].tolist() == rows.labels
        return counted.calls

    assert calls() == 1 and calls() == 0
    (file,) = tmp_path.iterdir()  # nothing else is left beside it
    whole = file.read_bytes()
    assert calls(overwrite_cache=True) == 1
    assert calls(replace(rows, labels=[1, 0])) == 0
    assert calls(replace(rows, first=["a b c", "e"])) == 1
    assert calls(replace(rows, first=["a b c d", ""])) == 1
    assert calls(replace(rows, second=["e", "f h"])) == 1
    assert calls(length=9) == 1
    middle = len(whole) // 2
    for damaged in (
        b"",
        whole[:100],
        whole[:middle],
        whole[:-1],
        whole[:middle] + b"\x00" * (len(whole) - middle),
        b"?" * 99,
    ):
        file.write_bytes(damaged)
        assert calls() == 1 and calls() == 0 and file.read_bytes() == whole


def test_a_tokenizer_that_keeps_capitals_has_tokens_of_its_own(tmp_path, tokenizer):
    cased = type(tokenizer).from_pretrained(tokenizer.name_or_path, do_lower_case=False)
    rows, found = Rows("here", ["A b"], ["c"], [0]), []
    for used in (tokenizer, cased, tokenizer):
        examples = tokenise(rows, used, task="qqp", max_seq_length=8, cache_dir=tmp_path)
        found.append(tokenizer.convert_ids_to_tokens(examples.input_ids.tolist())[1])
    assert found == ["a", "[UNK]", "a"]


@pytest.mark.parametrize(
    "row, wrong",
    [
        ({"texts": ("a", "b", "c")}, "one or two columns"),
        ({"metrics": ("precision",)}, "precision"),
        ({"labels": ("x", "y", "z"), "metrics": ("f1",)}, "two labels"),
    ],
)
def test_a_task_that_cannot_be_read_or_measured_is_refused_at_once(row, wrong):
    with pytest.raises(ValueError, match=wrong):
        GlueTask(**row)


def test_one_process_tokenises_for_all(tmp_path, tokenizer, monkeypatch):
    """The others read what the first wrote; one whose disk is another's makes its own."""
    rows, calls = Rows("here", ["a b c"], None, [0]), []

    def tokens(**options) -> list[int]:
        counted = Counted(tokenizer)
        examples = tokenise(rows, counted, task="cola", max_seq_length=8, cache_dir=tmp_path, **options)
        calls.append(counted.calls)
        return examples.input_ids.tolist()

    monkeypatch.setattr("emmental.utils.distributed.from_main", lambda decide: None)  # as in any process but the first
    first = tokens()
    assert first == tokens(overwrite_cache=True) == tokenizer("a b c")["input_ids"]
    assert calls == [1, 0]


def test_a_cache_that_cannot_be_written_is_refused(tmp_path, tokenizer):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"--cache_dir .*file"):
        tokenise(Rows("here", ["a"], None, [0]), tokenizer, task="cola", max_seq_length=8, cache_dir=tmp_path / "file")


def logits(classes: list[int]) -> np.ndarray:
    return np.eye(max(classes) + 2)[classes] - 3.0


METRICS = [  # task, predictions, labels, by hand
    ("cola", logits([1, 1, 0, 0, 0, 1]), [1, 1, 1, 0, 0, 0], {"mcc": 1 / 3}),  # (2 * 2 - 1 * 1) / sqrt(3^4)
    ("sst-2", logits([1, 0, 1, 0]), [1, 1, 1, 0], {"acc": 0.75}),
    ("mrpc", logits([1, 1, 0, 1, 0]), [1, 1, 1, 0, 0], {"acc": 0.6, "f1": 2 / 3, "acc_and_f1": 19 / 30}),
    ("qqp", logits([0, 0, 0, 0]), [1, 1, 1, 0], {"acc": 0.25, "f1": 0.0, "acc_and_f1": 0.125}),
    ("mnli", logits([2, 1, 0]), [2, 1, 1], {"acc": 2 / 3}),
    # deviations -2 -1 3 and -1 0 1: 5 / sqrt(14 * 2); the ranks agree
    ("sts-b", np.array([[1.0], [2.0], [6.0]]), [1, 2, 3], {"pearson": 5 / 28**0.5, "spearmanr": 1.0}),
    ("sts-b", np.ones((3, 1)), [1.0, 2.0, 3.0], {"pearson": 0.0, "spearmanr": 0.0, "corr": 0.0}),
    ("sts-b", np.ones((1, 1)), [1.0], {"pearson": 0.0, "spearmanr": 0.0, "corr": 0.0}),
    ("cola", logits([1, 1, 1]), [0, 1, 0], {"mcc": 0.0}),
    ("cola", logits([1]), [1], {"mcc": 0.0}),
    ("mrpc", logits([0, 0]), [0, 0], {"acc": 1.0, "f1": 0.0, "acc_and_f1": 0.5}),
]


@pytest.mark.parametrize("task, predictions, labels, expected", METRICS)
def test_metrics(task, predictions, labels, expected):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = glue_metrics.evaluate(TASKS[task], predictions, np.array(labels))
    assert {name: scores[name] for name in expected} == pytest.approx(expected)
    assert list(scores) == [*TASKS[task].metrics, *filter(None, [TASKS[task].mean])]


def test_the_mismatched_set_alone_ends_in_mm():
    for split in ("dev", "dev_matched"):
        assert glue_metrics.of_split(split, {"acc": 1.0}) == {"acc": 1.0}
    assert glue_metrics.of_split("dev_mismatched", {"acc": 0.5}) == {"acc_mm": 0.5}


def test_checking_files_loads_nothing_heavy():
    heavy = {"torch", "transformers", "datasets", "pyarrow", "scipy", "sklearn"}
    code = f"import sys, emmental.data.glue; print({heavy} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"
