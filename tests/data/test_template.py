"""Pairs and windows by each tokenizer's own template, and answers by the offsets of byte-level tokens."""

import random

import numpy as np
import pytest
import tokenizers
from tiny import WORDS, make_tokenizer
from transformers import AutoTokenizer

from emmental.data import glue
from emmental.data.squad import Question, Questions
from emmental.data.squad_metrics import predict
from emmental.data.squad_windows import tokenise

FAMILIES = ("bert", "roberta", "electra", "distilbert", "modernbert")


@pytest.fixture(scope="module", params=FAMILIES)
def tokenizer(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    make_tokenizer(folder, request.param)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def byte_tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bytes")
    make_tokenizer(folder, "roberta")
    return AutoTokenizer.from_pretrained(folder)


def sentences(rng: random.Random, count: int, longest: int) -> list[str]:
    return [" ".join(rng.choices([*WORDS, "xy,", "?"], k=rng.randint(0, longest))) for _ in range(count)]


@pytest.mark.parametrize("length", [6, 13, 128])
@pytest.mark.parametrize("task", ["sst-2", "qqp"])
def test_pairs_equal_the_tokenizers_own(tmp_path, tokenizer, length, task):
    rng = random.Random(length)
    texts = [sentences(rng, 40, 12) for _ in range(2 if task == "qqp" else 1)]
    rows = glue.Rows("here", *texts, *([] if len(texts) == 2 else [None]), [i % 2 for i in range(40)])
    examples = glue.tokenise(rows, tokenizer, task=task, max_seq_length=length, cache_dir=tmp_path)
    padded = examples.inputs(np.arange(40))
    assert (padded["input_ids"][padded["attention_mask"] == 0] == tokenizer.pad_token_id).all()
    for i, row in enumerate(zip(*texts, strict=True)):
        own = tokenizer(*([text] for text in row), truncation="longest_first", max_length=length)
        place = slice(examples.offsets[i], examples.offsets[i + 1])
        assert examples.input_ids[place].tolist() == own["input_ids"][0]
        types = own["token_type_ids"][0] if "token_type_ids" in own else [0] * len(own["input_ids"][0])
        assert examples.token_type_ids[place].tolist() == types


def questions_of(rng: random.Random, count: int) -> Questions:
    """Answers of one to three words, at the start of the passage, after a space, after a line's end."""
    made = []
    for number in range(count):
        words = rng.choices(WORDS, k=rng.randint(5, 30))
        begin = rng.choice([0, rng.randrange(len(words))])
        answer = " ".join(words[begin : begin + rng.randint(1, 3)])
        before = " ".join([*words[:begin], ""]) if begin else ""
        passage = rng.choice(["", "  ", "\n"]) + " ".join(words)
        start = passage.index(" ".join(words)) + len(before)
        made.append(Question(f"q{number}", " ".join(rng.choices(WORDS, k=4)), passage, (answer,), (start,)))
    return Questions("here", made)


LENGTHS = {"max_seq_length": 24, "doc_stride": 7, "max_query_length": 6}


def test_windows_equal_the_tokenizers_own(tmp_path, tokenizer):
    """The first window of every question; later ones begin doc_stride tokens on."""
    questions = questions_of(random.Random(1), 20)
    made = tokenise(questions, tokenizer, training=False, cache_dir=tmp_path, **LENGTHS)
    assert made.examples.pad_token == tokenizer.pad_token_id
    for place, question in enumerate(questions):
        window = list(made.question).index(place)
        own = tokenizer([question.text], [question.passage], truncation="only_second", max_length=24)
        tokens = slice(made.examples.offsets[window], made.examples.offsets[window + 1])
        assert made.examples.input_ids[tokens].tolist() == own["input_ids"][0]
        types = own["token_type_ids"][0] if "token_type_ids" in own else [0] * len(own["input_ids"][0])
        assert made.examples.token_type_ids[tokens].tolist() == types
        inside = [at == 1 for at in own.sequence_ids(0)]
        assert (made.char_start[tokens] >= 0).tolist() == inside


def assert_labels_decode(made) -> None:
    """The label's tokens are the answer, to the letter, and a search over perfect logits gives it back."""
    found, examples = set(), made.examples
    start, end = (0.0 * made.char_start.astype("float32") for _ in range(2))
    for window, place in enumerate(made.question):
        question = made.questions[place]
        first, last = (int(labels[window]) for labels in examples.labels)
        if (first, last) != (0, 0):
            tokens = examples.offsets[window] + first, examples.offsets[window] + last
            start[tokens[0]] = end[tokens[1]] = 9.0
            answer = question.passage[made.char_start[tokens[0]] : made.char_end[tokens[1]]]
            assert answer == question.answers[0]
            found.add(question.id)
    assert found == {question.id for question in made.questions}
    predictions, _, _ = predict(made, start, end)
    assert predictions == {question.id: question.answers[0] for question in made.questions}


def test_answers_come_back_to_the_letter(tmp_path, tokenizer):
    questions = questions_of(random.Random(2), 40)
    lengths = LENGTHS | {"max_seq_length": 64, "doc_stride": 20}
    assert_labels_decode(tokenise(questions, tokenizer, training=True, cache_dir=tmp_path, **lengths))


def test_offsets_that_count_the_space_before_a_word(tmp_path, byte_tokenizer):
    """As of byte-level tokenizers whose post-processor does not trim them."""
    backend = byte_tokenizer.backend_tokenizer
    ends = ("</s>", 2), ("<s>", 0)
    backend.post_processor = tokenizers.processors.RobertaProcessing(*ends, trim_offsets=False, add_prefix_space=False)
    encoded = byte_tokenizer("ba be", add_special_tokens=False, return_offsets_mapping=True)
    assert any(start == 2 for start, _ in encoded["offset_mapping"])
    questions = questions_of(random.Random(3), 40)
    lengths = LENGTHS | {"max_seq_length": 64, "doc_stride": 20}
    assert_labels_decode(tokenise(questions, byte_tokenizer, training=True, cache_dir=tmp_path, **lengths))


def test_characters_of_several_byte_tokens(tmp_path, byte_tokenizer):
    passage = "ba čeština 北京 be"
    made = [Question(word, "ba ?", passage, (word,), (passage.index(word),)) for word in ("čeština", "北京", "be")]
    lengths = LENGTHS | {"max_seq_length": 64, "doc_stride": 20}
    made = tokenise(Questions("here", made), byte_tokenizer, training=True, cache_dir=tmp_path, **lengths)
    assert_labels_decode(made)
