"""SQuAD: reading and its refusals, windows against the released loop, answers against a naive search, the metrics."""

import json
import random
import string
import tracemalloc

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertTokenizerFast

from emmental.data.squad import Question, Questions, from_hub, locate, read
from emmental.data.squad_metrics import evaluate, normalize, predict, save
from emmental.data.squad_windows import check_lengths, tokenise
from emmental.utils.errors import InputError

LENGTHS = {"max_seq_length": 24, "doc_stride": 6, "max_query_length": 5}
PASSAGE = "The old Mill of Zürich, built in 1284, burned down twice: in 1401 (by lightning) and in 1733. " * 3
BUILT, LIGHTNING = PASSAGE.index("1284"), PASSAGE.index("by lightning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("squad")


@pytest.fixture(scope="module")
def tokenizer(folder):
    """WordPiece of single characters: words fall into many tokens, as rare words do."""
    characters = string.ascii_lowercase + string.digits
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "mill", "burned", "##ed", *characters, *string.punctuation]
    (folder / "vocab.txt").write_text("\n".join(words + [f"##{character}" for character in characters]))
    return BertTokenizerFast.from_pretrained(folder)


def entry(identity="q", question="When?", answers=(("1284", BUILT),), **more):
    return {
        "id": identity,
        "question": question,
        "answers": [{"text": text, "answer_start": start} for text, start in answers],
    } | more


def document(*qas, passage=PASSAGE):
    return {"version": "1.1", "data": [{"title": "", "paragraphs": [{"context": passage, "qas": list(qas)}]}]}


def write(path, *qas, passage=PASSAGE):
    path.write_text(json.dumps(document(*qas, passage=passage)))
    return path


def random_questions(seed: int, count: int = 12, most: int = 60) -> Questions:
    """Passages of up to `most` words, each with two questions and a piece of it as answer."""
    rng = random.Random(seed)
    items = []
    for number in range(count):
        if number % 2 == 0:
            words = [
                rng.choice(["mill", "burned", "Zürich,", "a", "1284", "(so)", "x-y"])
                for _ in range(rng.randint(1, most))
            ]
            passage = "  ".join(words)
        first = rng.randrange(len(words))
        answer = "  ".join(words[first : first + rng.randint(1, 3)])
        start = len("  ".join(words[:first])) + 2 * (first > 0)
        text = " ".join(rng.choices(["mill", "when", "1"], k=rng.randint(1, 4)))
        items.append(Question(str(number), text, passage, (answer,), (start,)))
    return Questions("random", items)


# ---------------------------------------------------------------- reading


def test_reads_the_official_layout_and_a_byte_order_mark(tmp_path):
    path = write(
        tmp_path / "train.json",
        entry(),
        entry("p", "Why?", [("by lightning", LIGHTNING), ("lightning", LIGHTNING + 3)]),
    )
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    questions = read(path, version_2=False)
    assert [question.id for question in questions] == ["q", "p"]
    assert questions[1] == Question("p", "Why?", PASSAGE, ("by lightning", "lightning"), (LIGHTNING, LIGHTNING + 3))
    assert questions.notes == []


def test_unanswerable_questions_need_version_2(tmp_path):
    path = write(tmp_path / "dev.json", entry(), entry("none", answers=(), is_impossible=True))
    assert [question.answers for question in read(path, version_2=True)] == [("1284",), ()]
    with pytest.raises(InputError, match=r"dev\.json.*'none'.*--version_2_with_negative"):
        read(path, version_2=False)


def test_single_bad_questions_are_noted_and_left_out_of_training_only(tmp_path, tokenizer):
    path = write(
        tmp_path / "train.json",
        entry("empty", "  "),
        entry("elsewhere", answers=[("1285", BUILT)]),
        entry("nothing", answers=[("", 3)]),
        entry("both", is_impossible=True),
        entry("tokenless", answers=[(" ", 3)]),
        entry("good"),
    )
    questions = read(path, version_2=True)
    assert dict(questions.notes) == {
        "empty": "the question is empty",
        "elsewhere": "the answer does not occur at answer_start",
        "nothing": "the answer does not occur at answer_start",
        "both": "is_impossible and the answers contradict each other",
        "tokenless": "the answer does not occur at answer_start",
    }
    trained = tokenise(questions, tokenizer, training=True, cache_dir=tmp_path, **LENGTHS)
    assert {questions[i].id for i in trained.question} == {"good"}
    assert trained.skipped == questions.notes
    evaluated = tokenise(questions, tokenizer, training=False, cache_dir=tmp_path, **LENGTHS)
    assert set(evaluated.question.tolist()) == set(range(6)) and not evaluated.skipped


def test_empty_passages_and_answers_without_token_are_left_out(tmp_path, tokenizer):
    noted = read(write(tmp_path / "a.json", entry(answers=[("", 0)]), passage=""), version_2=False)
    assert noted.notes == [("q", "the passage is empty")]
    blank = read(write(tmp_path / "b.json", entry(answers=[("\u200b", 1)]), passage="a\u200bb"), version_2=False)
    for questions, reason in ((noted, "the passage is empty"), (blank, "the answer holds no token")):
        with pytest.raises(InputError, match=f"no question is fit for training; 'q': {reason}"):
            tokenise(questions, tokenizer, training=True, cache_dir=tmp_path, **LENGTHS)
    window = tokenise(noted, tokenizer, training=False, cache_dir=tmp_path, **LENGTHS)
    logits = np.zeros(len(window.char_start), dtype=np.float32)
    predictions, nbest, _ = predict(window, logits, logits)
    assert predictions == {"q": ""} and nbest["q"][0]["probability"] == 1.0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        (b"\xff\xfe{}", "utf-8"),
        (b'{"data": [', "cannot be read"),
        (b"[" * 100_000, "recursion"),
        (b"[]", "'data' is missing, or no list"),
        (b'{"data": {}}', "'data' is missing, or no list"),
        (b'{"data": []}', "holds no question"),
        (b'{"data": [{"paragraphs": [{"qas": []}]}]}', r"data\[0\] paragraphs\[0\] .*'context' is missing"),
        ([entry(), entry()], r"qas\[1\] \(question 'q'\): its id occurred before"),
        ([entry(answers=[("x", len(PASSAGE))])], "'q'.*answer_start"),
        ([entry(answers=[("x", -1)])], "'q'.*answer_start -1"),
        ([entry(answers=[("x", True)])], r"'q'\) answers\[0\].*'answer_start' is missing, or no int"),
        ([entry(answers=[("x", "1")])], "'answer_start' is missing"),
        ([entry(answers=())], "'q'.*--version_2_with_negative"),
        ([entry(is_impossible=1)], "'is_impossible' is missing"),
        ([entry(question="\ud800")], "surrogate"),
        ([entry(identity=7)], "'id' is missing"),
        ([entry(), None], r"qas\[1\]"),
    ],
)
def test_bad_files_are_refused_in_one_line(tmp_path, content, message):
    path = tmp_path / "train.json"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        write(path, *content)
    with pytest.raises(InputError, match=message) as refusal:
        read(path, version_2=False)
    assert str(path) in str(refusal.value) and "\n" not in str(refusal.value)


def only_input_errors(path, content: bytes):
    path.write_bytes(content)
    try:
        assert len(read(path, version_2=True)) > 0
    except InputError as error:
        assert str(path) in str(error) and "\n" not in str(error)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)


@st.composite
def damaged(draw):
    """A good file's content with junk in one to three places of any depth."""
    content = document(entry(answers=[("1284", BUILT), ("Mill", 8)]), entry("p", answers=(), is_impossible=True))
    for _ in range(draw(st.integers(1, 3))):
        place = content
        while True:
            key = draw(st.sampled_from(list(place) if isinstance(place, dict) else range(len(place))))
            if not (place[key] and isinstance(place[key], dict | list) and draw(st.integers(0, 4))):
                break
            place = place[key]
        place[key] = draw(JUNK)
    return content


@settings(max_examples=60, deadline=None)
@given(content=st.binary(max_size=40))
def test_arbitrary_bytes_raise_nothing_but_input_errors(folder, content):
    only_input_errors(folder / "bytes.json", content)


@settings(max_examples=150, deadline=None)
@given(content=JUNK | damaged())
def test_arbitrary_json_raises_nothing_but_input_errors(folder, content):
    only_input_errors(folder / "any.json", json.dumps(content).encode())


def test_the_hub_layout_gives_the_same_questions(tmp_path):
    qas = [
        entry(),
        entry("p", "Why?", [("by lightning", LIGHTNING), ("lightning", LIGHTNING + 3)]),
        entry("none", answers=()),
    ]
    expected = read(write(tmp_path / "dev.json", *qas), version_2=True)
    rows = [
        {"id": qa["id"], "title": "", "context": PASSAGE, "question": qa["question"]}
        | {"answers": {name: [answer[name] for answer in qa["answers"]] for name in ("text", "answer_start")}}
        for qa in qas
    ]
    hub = tmp_path / "hub" / "plain_text"
    hub.mkdir(parents=True)
    datasets.Dataset.from_list(rows).to_parquet(hub / "validation-00000-of-00001.parquet")
    settings = {"source": str(tmp_path / "hub"), "cache_dir": str(tmp_path / "cache")}
    assert list(from_hub("validation", True, **settings)) == list(expected)
    with pytest.raises(InputError, match=r"'none'.*--version_2_with_negative"):
        from_hub("validation", False, **settings)
    with pytest.raises(InputError, match="split 'train' cannot be loaded"):
        from_hub("train", True, **settings)
    rows[1]["context"] = None
    datasets.Dataset.from_list(rows).to_parquet(hub / "train-00000-of-00001.parquet")
    with pytest.raises(InputError, match=r"paragraphs\[1\] is not as in a SQuAD file: 'context' is missing"):
        from_hub("train", True, source=settings["source"], cache_dir=str(tmp_path / "fresh"))


# ---------------------------------------------------------------- windows


def test_a_file_is_looked_for_in_the_data_folder_as_well(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "data"
    data.mkdir()
    (data / "dev.json").touch()
    assert locate("--predict_file", "dev.json", "data").samefile(data / "dev.json")
    assert locate("--predict_file", str(data / "dev.json"), "elsewhere") == data / "dev.json"
    with pytest.raises(InputError) as error:
        locate("--train_file", "train.json", "data")
    places = f"neither {tmp_path}/train.json nor data/train.json"
    assert str(error.value) == f"--train_file train.json: no such file, {places}"
    (tmp_path / "dev.json").touch()
    assert locate("--predict_file", "dev.json", "data").samefile(tmp_path / "dev.json")


def test_lengths_that_leave_no_room_are_refused():
    check_lengths(max_seq_length=195, doc_stride=128, max_query_length=64)
    with pytest.raises(InputError, match=r"--max_query_length 64 \+ --doc_stride 128 .* --max_seq_length 194"):
        check_lengths(max_seq_length=194, doc_stride=128, max_query_length=64)


def naive_windows(question, tokenizer, max_seq_length, doc_stride, max_query_length):
    """The released loop: (input ids, character offsets or None, whether in most context) of each window."""
    passage = tokenizer(question.passage, add_special_tokens=False, return_offsets_mapping=True)
    query = tokenizer(question.text, add_special_tokens=False)["input_ids"][:max_query_length]
    room = max_seq_length - len(query) - 3
    spans, begin = [], 0
    while True:
        spans.append(range(begin, min(begin + room, len(passage["input_ids"]))))
        if begin + room >= len(passage["input_ids"]):
            break
        begin += doc_stride

    def context(span, position):
        return min(position - span.start, span.stop - 1 - position) + 0.01 * len(span)

    for span in spans:
        ids = [2, *query, 3, *(passage["input_ids"][position] for position in span), 3]
        offsets = [None] * (len(query) + 2) + [passage["offset_mapping"][position] for position in span] + [None]
        best = [False] * (len(query) + 2)
        best += [span is max((s for s in spans if p in s), key=lambda s, p=p: context(s, p)) for p in span] + [False]
        yield ids, offsets, best


@pytest.mark.parametrize(
    ("most", "lengths"),  # the wide windows differ by more than 100 tokens, which changes the one of most context
    [(60, LENGTHS), (500, {"max_seq_length": 300, "doc_stride": 250, "max_query_length": 2})],
)
def test_windows_equal_the_released_loops(tmp_path, tokenizer, most, lengths):
    questions = random_questions(0, most=most)
    made = tokenise(questions, tokenizer, training=False, cache_dir=tmp_path, **lengths)
    expected = [(i, *w) for i, question in enumerate(questions) for w in naive_windows(question, tokenizer, **lengths)]
    offsets = made.examples.offsets
    assert made.question.tolist() == [i for i, *_ in expected] and len(expected) > 2 * len(questions)
    for number, (_, ids, chars, best) in enumerate(expected):
        tokens = slice(offsets[number], offsets[number + 1])
        assert made.examples.input_ids[tokens].tolist() == ids and len(ids) <= lengths["max_seq_length"]
        located = zip(made.char_start[tokens].tolist(), made.char_end[tokens].tolist(), strict=True)
        assert [None if pair == (-1, -1) else pair for pair in located] == chars
        assert made.max_context[tokens].tolist() == best
        first_separator = ids.index(3)
        assert made.examples.token_type_ids[tokens].tolist() == [int(i > first_separator) for i in range(len(ids))]
    for i, question in enumerate(questions):  # every passage token once, in the window of most context
        of_question = np.repeat(made.question, made.examples.lengths) == i
        passage = tokenizer(question.passage, add_special_tokens=False)["input_ids"]
        assert made.max_context[of_question].sum() == len(passage)


def test_memory_for_a_long_passage_grows_with_its_length(tmp_path, tokenizer):
    """4,000 and 16,000 words: four times as much, with room for what does not grow, and not sixteen times."""
    peaks = []
    for words in (4_000, 16_000):
        question = Question("q", "mill", " ".join(["mill"] * words), ("mill",), (0,))
        tracemalloc.start()
        made = tokenise(Questions("s", [question]), tokenizer, training=False, cache_dir=tmp_path, **LENGTHS)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert made.max_context.sum() == words
    assert peaks[1] < 5 * peaks[0]


@pytest.mark.parametrize("padded, width", [(False, 7), (True, 24)])
def test_fully_padded_windows_are_as_long_as_the_longest_allowed(tmp_path, tokenizer, padded, width):
    asked = Questions("here", [Question("q", "mill", "burned a mill", ("mill",), (9,))])
    made = tokenise(asked, tokenizer, training=True, cache_dir=tmp_path, pad_to_max_length=padded, **LENGTHS)
    assert made.examples.inputs(np.array([0]))["input_ids"].shape == (1, width)


def test_labels_decode_to_the_answer_or_point_at_cls(tmp_path, tokenizer):
    questions = random_questions(2)
    made = tokenise(questions, tokenizer, training=True, cache_dir=tmp_path, **LENGTHS)
    offsets, found = made.examples.offsets, set()
    for number, (start, end) in enumerate(zip(*(labels.tolist() for labels in made.examples.labels), strict=True)):
        question = questions[made.question[number]]
        tokens = slice(offsets[number], offsets[number + 1])
        char_start, char_end = made.char_start[tokens], made.char_end[tokens]
        answer_start, answer_end = question.starts[0], question.starts[0] + len(question.answers[0])
        whole = answer_start in char_start and answer_end in char_end
        assert (start > 0) == whole and (end > 0) == whole
        if whole:
            assert question.passage[char_start[start] : char_end[end]] == question.answers[0]
            found.add(question.id)
    assert len(found) == len(questions)


def test_cached_windows_are_remade_when_anything_they_depend_on_changes(tmp_path, tokenizer, monkeypatch):
    questions = random_questions(3, count=2)

    def files(questions=questions, training=True, **changes):
        tokenise(questions, tokenizer, training=training, cache_dir=tmp_path, **LENGTHS | changes)
        return len(list(tmp_path.glob("windows-*.arrow")))

    assert files() == 1
    monkeypatch.setattr("emmental.data.squad_windows._make_windows", None)  # a second call cuts nothing
    assert files() == 1
    monkeypatch.undo()
    assert files(doc_stride=5) == 2 and files(max_query_length=4) == 3 and files(max_seq_length=23) == 4
    assert files(training=False) == 5
    moved = questions[0]._replace(answers=(questions[0].passage,), starts=(0,))
    assert files(Questions("moved", [moved, questions[1]])) == 6
    asked = questions[0]._replace(text="another question")
    assert files(Questions("asked", [asked, questions[1]])) == 7
    tokenizer("mill", truncation=True, max_length=3)  # a call's settings are not the tokenizer
    assert files() == 7
    tokenizer = BertTokenizerFast.from_pretrained(tokenizer.name_or_path, do_lower_case=False)
    assert files() == 8


# ---------------------------------------------------------------- answers


def naive_predict(made, starts, ends, n_best_size, max_answer_length, version_2, threshold):
    """One question, one window, one pair at a time."""
    offsets, predictions, nbest, null_odds = made.examples.offsets, {}, {}, {}
    for i, question in enumerate(made.questions):
        spans, nulls = [], []
        for w in np.flatnonzero(made.question == i):
            tokens = range(offsets[w], offsets[w + 1])
            nulls.append((float(starts[tokens[0]]), float(ends[tokens[0]])))
            best_starts = sorted(tokens, key=lambda t: -starts[t])[:n_best_size]
            best_ends = sorted(tokens, key=lambda t: -ends[t])[:n_best_size]
            for first in best_starts:
                for last in best_ends:
                    inside = made.char_start[first] >= 0 and made.char_start[last] >= 0
                    if inside and made.max_context[first] and first <= last < first + max_answer_length:
                        text = question.passage[made.char_start[first] : made.char_end[last]]
                        spans.append((text, float(starts[first]), float(ends[last])))
        null = ("", *min(nulls, key=sum))
        best = max(spans, key=lambda span: span[1] + span[2], default=("", 0.0, 0.0))
        entries = []
        for span in sorted(spans + [null] * version_2, key=lambda span: -(span[1] + span[2])):
            if len(entries) < n_best_size and span[0] not in [entry[0] for entry in entries]:
                entries.append(span)
        if version_2 and null not in entries:
            entries.append(null)
        entries = entries or [best]
        null_odds[question.id] = null[1] + null[2] - best[1] - best[2]
        predictions[question.id] = "" if version_2 and null_odds[question.id] > threshold else best[0]
        total = sum(np.exp(start + end) for _, start, end in entries)
        nbest[question.id] = [(text, np.exp(start + end) / total, start, end) for text, start, end in entries]
    return predictions, nbest, null_odds if version_2 else None


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("version_2", [False, True])
@pytest.mark.parametrize("n_best_size", [1, 4, 20, 40])
def test_answers_equal_a_naive_search(folder, tokenizer, monkeypatch, seed, version_2, n_best_size):
    monkeypatch.setattr("emmental.data.squad_metrics.CHUNK", 5)
    made = tokenise(random_questions(seed), tokenizer, training=False, cache_dir=folder, **LENGTHS)
    rng = np.random.default_rng(seed)
    starts, ends = rng.integers(-4, 4, (2, len(made.char_start))).astype(np.float32)  # integers: many ties
    predictions, nbest, null_odds = predict(
        made,
        starts,
        ends,
        n_best_size=n_best_size,
        max_answer_length=7,
        version_2=version_2,
        null_score_diff_threshold=1,
    )
    expected = naive_predict(made, starts, ends, n_best_size, 7, version_2, 1)
    assert (predictions, null_odds) == (expected[0], expected[2])
    assert any(predictions.values())
    for identity, entries in expected[1].items():
        got = [(e["text"], e["start_logit"], e["end_logit"]) for e in nbest[identity]]
        assert got == [(text, start, end) for text, _, start, end in entries]
        assert [e["probability"] for e in nbest[identity]] == pytest.approx([entry[1] for entry in entries])


def test_the_answer_is_a_piece_of_the_original_passage(tmp_path, tokenizer):
    questions = Questions("one", [Question("q", "where", PASSAGE, ("Mill of Zürich",), (8,))])
    made = tokenise(questions, tokenizer, training=True, cache_dir=tmp_path, **LENGTHS)
    logits = np.zeros((2, len(made.char_start)), dtype=np.float32)
    for row, labels in zip(logits, made.examples.labels, strict=True):
        row[made.examples.offsets[:-1] + labels.numpy()] = 5.0
    assert predict(made, *logits)[0] == {"q": "Mill of Zürich"}
    assert predict(made, *logits, max_answer_length=2)[0]["q"] != "Mill of Zürich"


def test_prediction_files_hold_the_predictions(tmp_path):
    save(tmp_path / "out", {"q": "Zürich"}, {"q": [{"text": "Zürich", "probability": 1.0}]})
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "nbest_predictions_.json",
        "predictions_.json",
    ]
    assert json.loads((tmp_path / "out" / "predictions_.json").read_text()) == {"q": "Zürich"}
    save(tmp_path / "out", {"q": ""}, {"q": []}, {"q": 1.5})
    assert json.loads((tmp_path / "out" / "null_odds_.json").read_text()) == {"q": 1.5}


# ---------------------------------------------------------------- metrics


def asked(*answers):
    return [Question(str(i), "?", "", golds, (0,) * len(golds)) for i, golds in enumerate(answers)]


@pytest.mark.parametrize(
    ("prediction", "golds", "exact", "f1"),
    [
        ("the Denver Broncos", ("Denver Broncos",), 100, 100),  # articles
        ("Denver broncos!", ("The Denver Broncos.",), 100, 100),  # case and punctuation
        ("U.S.A.", ("usa",), 100, 100),
        ("theatre", ("atre",), 0, 0),  # an article is a whole word
        ("a-the b", ("athe b",), 100, 100),  # punctuation goes before articles
        ("co-operation", ("co operation",), 0, 0),
        ("café  au\u00a0lait", ("Café au lait",), 100, 100),
        ("Zürich", ("Zurich",), 0, 0),  # accents stay
        ("“old mill”", ("old mill",), 0, 0),  # only ASCII punctuation is stripped
        ("in 1284", ("1284",), 0, 200 / 3),
        ("the the cat", ("cat cat",), 0, 200 / 3),  # repeated words count as often as they stand
        ("green red", ("blue", "red green", "green"), 0, 100),  # the best over golds, for each metric on its own
        ("", ("1284",), 0, 0),
        (".", ("mill", "."), 100, 0),  # evaluate-v1.1.py: no words in common
    ],
)
def test_official_scores_of_version_1(prediction, golds, exact, f1):
    result = evaluate(asked(golds), {"0": prediction})
    assert result == {"exact": exact, "f1": pytest.approx(f1), "total": 1}


def test_official_scores_of_version_2():
    questions = asked(("mill",), (), (), ("the", "old mill"), ("x",))
    predictions = {"0": "mill", "1": "", "2": "something", "3": "the", "4": ""}
    result = evaluate(questions, predictions)
    # evaluate-v2.0.py drops golds without words, so "the" is wrong, and an empty answer is right where there is none
    assert result == pytest.approx(
        {"exact": 40, "f1": 40, "total": 5}
        | {"HasAns_exact": 100 / 3, "HasAns_f1": 100 / 3, "HasAns_total": 3}
        | {"NoAns_exact": 50, "NoAns_f1": 50, "NoAns_total": 2}
    )


def test_best_threshold_equals_an_exhaustive_search():
    rng = random.Random(0)
    questions = asked(*[("mill",) if rng.random() < 0.6 else () for _ in range(40)])
    predictions = {question.id: rng.choice(["mill", "old mill", "x", ""]) for question in questions}
    odds = {q.id: rng.gauss(-2.0 if q.answers and "mill" in predictions[q.id] else 2.0, 2.0) for q in questions}
    result = evaluate(questions, predictions, odds)

    def scores(threshold):  # in per cent, where every question of higher odds goes unanswered
        kept = {q.id: predictions[q.id] if odds[q.id] <= threshold else "" for q in questions}
        return evaluate(questions, kept)

    for name in ("exact", "f1"):
        best = max(scores(threshold)[name] for threshold in [-99.0, *odds.values()])
        assert result[f"best_{name}"] == pytest.approx(best) and best > result[name]
        assert scores(result[f"best_{name}_thresh"])[name] == pytest.approx(best)


@settings(max_examples=100, deadline=None)
@given(golds=st.lists(st.text().filter(normalize), min_size=1, max_size=4), data=st.data())
def test_a_gold_answer_scores_100(golds, data):
    for null_odds in (None, {"0": -1.0}):
        result = evaluate(asked(tuple(golds)), {"0": data.draw(st.sampled_from(golds))}, null_odds)
        assert result["exact"] == result["f1"] == 100
