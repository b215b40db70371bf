"""Model folders for tests, made on the spot: a byte-level tokenizer and whatever else is asked."""

import json
from collections.abc import Mapping
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

SPECIAL = ("<|bos|>", "<|im_start|>", "<|im_end|>", "<|pad|>")
"""Special tokens, with the ids from 256."""
ADDED = ("<think>", "</think>", "<tool_call>", "</tool_call>")
"""Tokens of their own that are ordinary text, with the ids after the special ones."""

TOKENIZER_CONFIG: dict[str, object] = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<|bos|>",
    "eos_token": {"__type": "AddedToken", "content": "<|im_end|>", "special": True},
    "pad_token": None,
    "tone_token": "<|tone|>",
}


def byte_tokenizer() -> Tokenizer:
    """Every byte is a token; nothing is merged."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL])
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in ADDED])
    return tokenizer


def make_model(
    folder: Path,
    *,
    template: str | None = None,
    tokenizer_config: Mapping[str, object] = TOKENIZER_CONFIG,
    **json_files: object,
) -> Path:
    """A folder with tokenizer files; ``config={…}`` writes config.json, and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    for name, content in {"tokenizer_config": tokenizer_config, **json_files}.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder
