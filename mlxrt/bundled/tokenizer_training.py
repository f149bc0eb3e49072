"""Trains the bundled model's tokenizer: a byte-level BPE that splits text as Python does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

END_OF_TEXT = "<|endoftext|>"
"""The one special token; it stands between files. Its id is the last of the vocabulary."""

LINE_END = "Ċ"
"""A line end, as a byte-level vocabulary spells it."""

SPLIT = r"\n| {2,}| ?[\p{L}_]+|\p{N}| ?[^\s\p{L}\p{N}_]+|\s"
"""A line end alone, indentation as one piece, a name with its underscores, a digit, punctuation.

A line end never joins what follows it, so a prompt may end with one and be split as in training.
"""


def train_tokenizer(texts: Iterator[str], vocab_size: int) -> Tokenizer:
    """Returns a tokenizer of `vocab_size` tokens, the special token included.

    Any text round-trips: the 256 bytes are tokens, nothing is normalised.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=24,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
    if tokenizer.get_vocab_size() != vocab_size:
        raise ValueError(f"the corpus is too small for a vocabulary of {vocab_size} tokens")
    return tokenizer


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """Returns the id of a token given as the vocabulary spells it.

    Raises:
        KeyError: the vocabulary has no such token.
    """
    found = tokenizer.token_to_id(token)
    if found is None:
        raise KeyError(token)
    return int(found)


def save_tokenizer(tokenizer: Tokenizer, folder: Path, context_length: int) -> None:
    """Writes tokenizer.json, tokenizer_config.json and special_tokens_map.json into `folder`."""
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context_length,
        "clean_up_tokenization_spaces": False,
        "add_bos_token": False,
        "bos_token": None,
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "unk_token": None,
    }
    special = {"eos_token": END_OF_TEXT, "pad_token": END_OF_TEXT}
    _write(folder / "tokenizer_config.json", settings)
    _write(folder / "special_tokens_map.json", special)


def _write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
