"""The delimiter automaton against plain string search, over several kinds of tokenizer."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from stir_train.config.stages import ControlPointConfig
from stir_train.data.control_points import build_automaton, token_bytes
from stir_train.errors import ConfigError
from stir_train.models.load import LoadedModel

SAMPLE = Path(__file__).parent / "data" / "gsm8k_sample.jsonl"
GSM8K = [json.loads(line) for line in SAMPLE.read_text(encoding="utf-8").splitlines()]
CORPUS = [
    # Real problems and solutions, their steps one line or one blank line apart.
    *(f"{row['question']}\n\n{row['answer']}" for row in GSM8K),
    *(row["answer"].replace("\n", "\n\n") for row in GSM8K),
    "Wait\n\nno.\n \n\n\n\nCafé, naïve, 東京.\r\n\r\nDone\n\n",
]


def _byte_level() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=800, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def _sentencepiece_style() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=800,
        special_tokens=["<unk>", *(f"<0x{b:02X}>" for b in range(256))],
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    # The bytes are ordinary tokens in such vocabularies; only <unk> is special.
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


TOKENIZERS = {"byte-level": _byte_level(), "sentencepiece": _sentencepiece_style()}
DELIMITERS = (["\n\n"], ["\n"], [". ", "\n\n"], ["aba"], ["So", "\n\n\n"])


def _at(*delimiters: str) -> ControlPointConfig:
    return ControlPointConfig(delimiters=delimiters)


def _by_string_search(pieces: list[bytes], delimiters: list[str]) -> tuple[int, ...]:
    """Non-overlapping leftmost-ending matches in the joined bytes, mapped back to tokens."""
    text, owner = b"".join(pieces), [i for i, p in enumerate(pieces) for _ in p]
    found, start = [], 0
    while True:
        ends = [
            position + len(d.encode())
            for d in delimiters
            if (position := text.find(d.encode(), start)) >= 0
        ]
        if not ends:
            return tuple(dict.fromkeys(found))
        start = min(ends)
        found.append(owner[start - 1])


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("delimiters", DELIMITERS)
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**9))
def test_random_token_strings_equal_string_search(
    name: str, delimiters: list[str], seed: int
) -> None:
    tokenizer = TOKENIZERS[name]
    rng = random.Random(seed)
    likely = [i for t, i in tokenizer.get_vocab().items() if any(c in t for c in "ĊSoab.Ġ▁\n")]
    ids = [
        rng.choice(likely) if rng.random() < 0.8 else rng.randrange(len(tokenizer))
        for _ in range(40)
    ]
    automaton = build_automaton(tokenizer, _at(*delimiters), vocab_size=len(tokenizer))
    pieces = token_bytes(tokenizer, len(tokenizer))
    assert automaton.find(ids) == _by_string_search([pieces[i] for i in ids], delimiters)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_token_bytes_join_to_the_decoded_text(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    pieces = token_bytes(tokenizer, len(tokenizer))
    automaton = build_automaton(tokenizer, _at("\n\n"), vocab_size=len(tokenizer))
    for text in CORPUS:
        ids = tokenizer(text)["input_ids"]
        assert b"".join(pieces[i] for i in ids) == tokenizer.decode(ids).encode() == text.encode()
        assert automaton.find(ids) == _by_string_search([pieces[i] for i in ids], ["\n\n"])
        assert automaton.find(ids) or "\n\n" not in text


def test_the_embedded_model_marks_every_paragraph(loaded: LoadedModel) -> None:
    automaton = build_automaton(loaded.tokenizer, _at("\n\n"), vocab_size=65)
    ids = loaded.tokenizer("Easy, just add.\n\njust 3+b4=7.\n\nAnswer: 7.")["input_ids"]
    blank = loaded.tokenizer.get_vocab()["\n\n"]
    assert automaton.find(ids) == tuple(i for i, t in enumerate(ids) if t == blank)


def test_a_delimiter_the_tokenizer_cannot_spell_is_refused(loaded: LoadedModel) -> None:
    with pytest.raises(ConfigError, match="can spell"):
        build_automaton(loaded.tokenizer, _at("§"), vocab_size=65)


def test_every_n_tokens_counts_tokens_of_the_completion(loaded: LoadedModel) -> None:
    every = ControlPointConfig(every_tokens=4)
    automaton = build_automaton(loaded.tokenizer, every, vocab_size=65)
    assert automaton.find([9] * 13, [5, 5, 5]) == (3, 7, 11)


def test_think_scope_starts_where_the_prompt_left_it_and_ends_at_the_close() -> None:
    tokenizer = _byte_level()
    tokenizer.add_tokens(["<think>", "</think>"])
    config = ControlPointConfig(only_in_think=True)
    automaton = build_automaton(tokenizer, config, vocab_size=len(tokenizer))
    opens, closes = tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    step = tokenizer("a.\n\nb")["input_ids"]
    inner = build_automaton(tokenizer, _at("\n\n"), vocab_size=len(tokenizer)).find(step)
    thinking = [*step, *step, closes, *step]
    expected = (*inner, *(i + len(step) for i in inner))
    assert automaton.find(thinking, [7, opens]) == expected
    assert automaton.find(thinking, [7, opens, 8, closes]) == ()
    assert automaton.find(thinking, [7]) == ()
    assert automaton.find([opens, *thinking]) == tuple(i + 1 for i in expected)


def test_think_scope_needs_a_tokenizer_that_thinks(loaded: LoadedModel) -> None:
    with pytest.raises(ConfigError, match="no token <think> or </think>"):
        build_automaton(loaded.tokenizer, ControlPointConfig(only_in_think=True), vocab_size=65)
