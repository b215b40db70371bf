"""The demo model's tokenizer: a small byte-level BPE trained on the training data itself.

Byte-level, so that any text round-trips, whether or not training had its characters. Digits stay
single: adding column by column needs one token per digit.
"""

import json
import re
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from training import render
from training.data import examples

VOCABULARY_SIZE = 768
PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CONTROL_TOKENS = (PAD, START, END)
"""Left out of decoded text."""
MARKUP_TOKENS = (
    "<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>",
)  # fmt: skip
"""Kept in decoded text, where the parsers of reasoning and tool calls look for them."""

# Words with the space before them, single digits, runs of marks, and white space.
_PIECES = r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_SAMPLES = 12_000


def train_tokenizer(seed: int) -> Tokenizer:
    """Learns the merges from a sample of the training stream."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    added = len(CONTROL_TOKENS) + len(MARKUP_TOKENS)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE - added,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(seed), trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in CONTROL_TOKENS])
    tokenizer.add_tokens([AddedToken(token, special=False) for token in MARKUP_TOKENS])
    return tokenizer


def _texts(seed: int) -> Iterable[str]:
    """What lies between the added tokens; those never take part in a merge."""
    added = re.compile("|".join(re.escape(token) for token in (*CONTROL_TOKENS, *MARKUP_TOKENS)))
    for example in islice(examples(seed), _SAMPLES):
        text = render.prompt(example.messages, example.tools, enable_thinking=example.thinking)
        yield from added.split(text + example.completion)


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """The id of a token that is known to exist."""
    found = tokenizer.token_to_id(token)
    assert found is not None, token
    return found


def save_tokenizer(tokenizer: Tokenizer, folder: Path, context: int) -> None:
    """Writes tokenizer.json and what transformers needs to load it."""
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        "eos_token": END,
        "pad_token": PAD,
        "bos_token": None,
        "unk_token": None,
        "clean_up_tokenization_spaces": False,
        "added_tokens_decoder": {
            str(token_id(tokenizer, token)): {
                "content": token,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": token in CONTROL_TOKENS,
            }
            for token in (*CONTROL_TOKENS, *MARKUP_TOKENS)
        },
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
