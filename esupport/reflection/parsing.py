"""Answers into findings and replies. Models answer in many ways; what cannot be read is None and is asked for again."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from esupport.data.preference import UNKNOWN, Context, Finding

_NOT_KNOWN = {"unknown", "an unknown", "not known", "not said", "not mentioned", "not stated", "not clear", "not specified"}
_NOT_KNOWN |= {"unclear", "none", "n/a"}
_LABEL = re.compile(
    r"""^[*_#\s]{0,4}(?:here(?:'s|\s+is)\b[^:\n]{0,60}\b(?:reply|response|answer|message|version)\b[^:\n]{0,30}|"""
    r"""(?:the\s+|my\s+)?(?:refined|revised|rewritten|improved|better|new|final)\s+"""
    r"""(?:reply|response|answer|message|version)[^:\n]{0,30}|supporter|assistant|reply|response|answer)[*_\s]{0,3}:[*_\s]{0,4}""",
    re.IGNORECASE,
)
_COMMON = {"that", "this", "with", "have", "they", "their", "them", "been", "from", "what", "when", "were", "would", "your"}
_THOUGHTS = re.compile(r"<think>.*?(</think>|$)|^.*</think>", re.DOTALL)
_FENCE = re.compile(r"^```\w*\n(.*?)\n?```\s*$", re.DOTALL)
_QUOTES = (('"', '"'), ("“", "”"), ("'", "'"))


def parse_axis(answer: str, pattern: str, context: Context) -> Finding | None:
    """The finding in an answer of the form ``axes``."""
    found = re.match(pattern, without_thoughts(answer).strip(), re.DOTALL)
    if not found:
        return None
    groups = found.groupdict()
    finding = _finding(groups["text"], groups.get("evidence") or "", context)
    if finding and finding.known and "evidence" not in groups:
        return finding.model_copy(update={"evidence": _nearest_words(finding.text, context)})
    return finding


def parse_object(answer: str, axes: Iterable[str], context: Context) -> dict[str, Finding] | None:
    """The findings in the first JSON object of an answer: {axis: {text, evidence}} or {axis: text}, all axes there."""
    value = next(objects_in(without_thoughts(answer)), None)
    if value is None:
        return None
    findings = {}
    for axis in axes:
        said = value.get(axis)
        text, evidence = (said.get("text"), said.get("evidence")) if isinstance(said, dict) else (said, "")
        finding = _finding(text, evidence if isinstance(evidence, str) else "", context) if isinstance(text, str) else None
        if finding is None:
            return None
        findings[axis] = finding
    return findings


def parse_reply(answer: str) -> str:
    """A refined reply without fence, label and quotation marks around the whole; empty where nothing is left."""
    text = without_thoughts(answer).strip()
    fenced = _FENCE.match(text)
    # the marks stand around the reply, or around its label too
    return _unquoted(_LABEL.sub("", _unquoted(fenced[1] if fenced else text)))


def _unquoted(text: str) -> str:
    text = text.strip()
    for opening, closing in _QUOTES:
        inside = text[1:-1]
        if len(text) > 1 and text[0] == opening and text[-1] == closing and opening not in inside and closing not in inside:
            text = inside.strip()
    return text


def without_thoughts(answer: str) -> str:
    """An answer without the thoughts before it, be they whole, without their mark at the beginning, or cut before their end."""
    return _THOUGHTS.sub("", answer)


def objects_in(text: str) -> Iterator[dict[str, Any]]:
    """The JSON objects in a text, the outer ones."""
    decoder, start = json.JSONDecoder(strict=False), text.find("{")
    while start >= 0:
        try:
            value, end = decoder.raw_decode(text, start)
            yield value
        except (ValueError, RecursionError):  # no JSON, a number of thousands of digits, thousands of brackets
            end = start + 1
        start = text.find("{", end)


def _finding(text: str, evidence: str, context: Context) -> Finding | None:
    text, evidence = " ".join(text.split()), " ".join(evidence.split()).strip("\"'“” ")
    if not re.search(r"\w", text):
        return None
    if text.strip(" .").lower() in _NOT_KNOWN:
        return Finding(text=UNKNOWN)
    return Finding(text=text, evidence=evidence if _was_said(evidence, context) else "")


def _nearest_words(text: str, context: Context) -> str:
    """The seeker's sentence that shares most of the longer words with ``text``, the latest of equal ones; or nothing.

    For models too small to quote: it points a reader to the place, it is not the model's own evidence.
    """

    def stems(said: str) -> set[str]:
        return {word[:6] for word in re.findall(r"\w{4,}", said.lower())} - _COMMON

    said = [s for turn in context.turns if turn.role == "seeker" for s in re.split(r"(?<=[.!?])\s+", turn.text)]
    best = max(reversed(said), key=lambda sentence: len(stems(sentence) & stems(text)), default="")
    return best if stems(best) & stems(text) else ""


def _was_said(evidence: str, context: Context) -> bool:
    """Whether the seeker said these words: a model's quotation is kept only if it is one."""

    def words(text: str) -> str:
        return " ".join(re.findall(r"\w+", text.lower()))

    return bool(words(evidence)) and any(
        f" {words(evidence)} " in f" {words(turn.text)} " for turn in context.turns if turn.role == "seeker"
    )
