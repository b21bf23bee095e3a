"""Small random models of five families, and chat templates of the forms that people meet."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from esupport.data.conversation import Conversation, Turn
from esupport.data.files import SPLITS, read_splits
from esupport.models.attention import NAME
from esupport.models.built import CHATML, _train_tokenizer

SMALL = {
    "vocab_size": 600,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 2048,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "mistral": {"model_type": "mistral", "sliding_window": 24},
    "qwen2": {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 24, "max_window_layers": 2},
    "qwen3": {"model_type": "qwen3"},
    "gemma3": {"model_type": "gemma3_text", "sliding_window": 24, "sliding_window_pattern": 2, "query_pre_attn_scalar": 8},
}


def small_model(family: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random model with weights large enough that a wrong mask shows; ``changes`` are keys of its configuration."""
    from transformers import AutoConfig

    settings = dict(FAMILIES[family])
    config = AutoConfig.for_model(settings.pop("model_type"), **{**SMALL, **settings, **changes})
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=NAME)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3)
    return model.eval()


TEMPLATES: dict[str, tuple[str, list[str], str]] = {
    # name: (template, special tokens, end of turn)
    "smollm2": (
        "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful model.<|im_end|>\n{% endif %}" + CHATML,
        ["<|im_start|>", "<|im_end|>"],
        "<|im_end|>",
    ),
    "qwen": (CHATML, ["<|im_start|>", "<|im_end|>"], "<|im_end|>"),
    "llama3": (
        "{{ '<|begin_of_text|>' }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n'"
        " + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
        ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        "<|eot_id|>",
    ),
    "mistral": (
        "{{ '<s>' }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}"
        "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + '[/INST]' }}"
        "{% else %}{{ ' ' + m['content'] + '</s>' }}{% endif %}{% endfor %}",
        ["<s>", "</s>", "[INST]", "[/INST]"],
        "</s>",
    ),
    "gemma": (
        "{{ '<bos>' }}{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
        "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' + m['content'] | trim"
        " + '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
        ["<bos>", "<start_of_turn>", "<end_of_turn>"],
        "<end_of_turn>",
    ),
    # thinking blocks stand in the generation prompt and are dropped from earlier turns, as Qwen3 does: not prefix-preserving
    "thinking": (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
        "{% if m['role'] == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
        "{{ m['content'] + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n\n</think>\n\n' }}{% endif %}",
        ["<|im_start|>", "<|im_end|>", "<think>", "</think>"],
        "<|im_end|>",
    ),
    # the number of the seeker's turns stands first: rewrites its beginning
    "counting": (
        "{{ messages | selectattr('role', 'equalto', 'user') | list | length }} <|im_start|>"
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}",
        ["<|im_start|>", "<|im_end|>"],
        "<|im_end|>",
    ),
}
NO_SYSTEM = ("mistral", "gemma")


def shipped_texts() -> list[str]:
    """What is said in the shipped conversations."""
    shipped = read_splits("pkg://esupport.data/shipped", "data.path")
    return [turn["text"] for split in SPLITS for raw in shipped[split] for turn in raw.value["turns"]]


def tokenizer_for(template: str, vocabulary: int = 600) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with the special tokens and the template of a family."""
    tokenizer = _train_tokenizer(shipped_texts()[:200], vocabulary - 10)
    text, special, _ = TEMPLATES[template]
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    tokenizer.chat_template = text
    return tokenizer


def conversation(turns: int = 8, opens: str = "seeker", name: str = "c", words: str = "") -> Conversation:
    """A made-up conversation of ``turns`` turns."""
    sides = ("seeker", "supporter") if opens == "seeker" else ("supporter", "seeker")
    said = tuple(
        Turn.model_validate({"role": sides[i % 2], "text": f"Turn {i} of {name}: the rain went on {words} all day."})
        for i in range(turns)
    )
    return Conversation(id=name, turns=said)
