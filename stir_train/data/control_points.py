"""Find control points on token ids with a small automaton, one row of transitions per state.

A control point is the token that completes a delimiter. Matching works on the bytes that each
vocabulary item stands for, so a delimiter split over tokens, or inside one, is found exactly,
without decoding and for a whole batch at once. Matches do not overlap, as in ``str.find``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from stir_train.config.stages import ControlPointConfig
from stir_train.errors import ConfigError

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"


@dataclass(frozen=True)
class ControlPointAutomaton:
    """Transition tables over the vocabulary.

    Attributes:
        next_state: ``Int[Q V]``, state after reading a token.
        completes: ``Bool[Q V]``, whether the token is a control point.
        opens: Token that opens a region which this automaton is confined to, or -1.
        closes: Token that closes it, or -1.
        inside_state: Start state when the prompt leaves that region open.
    """

    next_state: Int[Tensor, "Q V"]
    completes: Bool[Tensor, "Q V"]
    opens: int = -1
    closes: int = -1
    inside_state: int = 0

    def start(self, prompt_token_ids: Sequence[int]) -> int:
        """The state before the first completion token; the prompt itself is never matched."""
        for token in reversed(prompt_token_ids):
            if token == self.opens >= 0:
                return self.inside_state
            if token == self.closes >= 0:
                return 0
        return 0

    def step(
        self, state: Int[Tensor, "B"], token_ids: Int[Tensor, "B"]
    ) -> tuple[Int[Tensor, "B"], Bool[Tensor, "B"]]:
        """Read one token per row; return the new states and which rows are at a control point."""
        return self.next_state[state, token_ids], self.completes[state, token_ids]

    def find(
        self, token_ids: Sequence[int], prompt_token_ids: Sequence[int] = ()
    ) -> tuple[int, ...]:
        """Indices of the control-point tokens of one completion."""
        state, found = self.start(prompt_token_ids), []
        for index, token in enumerate(token_ids):
            if bool(self.completes[state, token]):
                found.append(index)
            state = int(self.next_state[state, token])
        return tuple(found)

    def to(self, device: torch.device) -> ControlPointAutomaton:
        """A copy on another device."""
        return dataclasses.replace(
            self, next_state=self.next_state.to(device), completes=self.completes.to(device)
        )


def build_automaton(
    tokenizer: PreTrainedTokenizerBase, config: ControlPointConfig, *, vocab_size: int
) -> ControlPointAutomaton:
    """Build the automaton that a configuration describes.

    Raises:
        ConfigError: If the vocabulary cannot spell a delimiter, or lacks the think tokens.
    """
    if config.every_tokens is not None:
        automaton = _every_tokens(config.every_tokens, vocab_size)
    else:
        automaton = _delimiters(tokenizer, config.delimiters, vocab_size=vocab_size)
    return _only_in_think(automaton, tokenizer) if config.only_in_think else automaton


def _every_tokens(period: int, vocab_size: int) -> ControlPointAutomaton:
    """Count tokens; the tables are views of one column, whatever the vocabulary."""
    states = torch.arange(period)[:, None]
    return ControlPointAutomaton(
        ((states + 1) % period).expand(period, vocab_size),
        (states == period - 1).expand(period, vocab_size),
    )


def _only_in_think(
    automaton: ControlPointAutomaton, tokenizer: PreTrainedTokenizerBase
) -> ControlPointAutomaton:
    """Two copies of the automaton: outside, where nothing counts, and inside."""
    vocabulary = tokenizer.get_vocab()
    missing = [token for token in (THINK_OPEN, THINK_CLOSE) if token not in vocabulary]
    if missing:
        raise ConfigError(
            f"control_points.only_in_think: this tokenizer has no token {' or '.join(missing)}; "
            "turn it off, or use a model that thinks between them"
        )
    opens, closes = vocabulary[THINK_OPEN], vocabulary[THINK_CLOSE]
    num_states = len(automaton.next_state)
    outside = torch.zeros_like(automaton.next_state)
    inside = automaton.next_state + num_states
    outside[:, opens] = num_states
    inside[:, closes] = 0
    completes = automaton.completes.clone()
    completes[:, closes] = False
    return ControlPointAutomaton(
        torch.cat([outside, inside]),
        torch.cat([torch.zeros_like(completes), completes]),
        opens=opens,
        closes=closes,
        inside_state=num_states,
    )


def _delimiters(
    tokenizer: PreTrainedTokenizerBase, delimiters: Sequence[str], *, vocab_size: int
) -> ControlPointAutomaton:
    """Find any of the delimiters: Aho-Corasick, run through each token's bytes.

    Special tokens, and ids of the output layer that the tokenizer lacks, stand for no bytes.
    """
    pieces = token_bytes(tokenizer, vocab_size)
    available = {byte for piece in pieces for byte in piece}
    for delimiter in delimiters:
        if not set(delimiter.encode()) <= available:
            raise ConfigError(
                f"control_points.delimiters: no token of this model can spell {delimiter!r}"
            )
    step, accepting = _byte_automaton([delimiter.encode() for delimiter in delimiters])
    num_states = len(step)
    next_state = torch.empty((num_states, vocab_size), dtype=torch.long)
    completes = torch.zeros((num_states, vocab_size), dtype=torch.bool)
    interesting = {byte for delimiter in delimiters for byte in delimiter.encode()}
    for token, piece in enumerate(pieces):
        if piece and not interesting & set(piece):
            next_state[:, token] = 0
            continue
        for start in range(num_states):
            state, hit = start, False
            for byte in piece:
                state = step[state].get(byte, 0)
                if accepting[state]:
                    state, hit = 0, True
            next_state[start, token] = state
            completes[start, token] = hit
    return ControlPointAutomaton(next_state, completes)


def token_bytes(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> list[bytes]:
    """The bytes each vocabulary item adds to the decoded text; none for special tokens.

    Raises:
        ConfigError: If the tokenizer is not a fast one, whose decoder says how pieces join.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ConfigError(
            f"{type(tokenizer).__name__} has no fast backend, which control points need; "
            "convert it with tokenizers, or use a model that ships tokenizer.json"
        )
    decoder = str(backend.decoder)
    special = set(tokenizer.all_special_ids)
    byte_of = {char: byte for byte, char in _byte_level_alphabet().items()}
    result = [b""] * vocab_size
    for piece, token in tokenizer.get_vocab().items():
        if token in special or token >= vocab_size:
            continue
        if "ByteLevel" in decoder and all(char in byte_of for char in piece):
            result[token] = bytes(byte_of[char] for char in piece)
        elif "ByteFallback" in decoder and len(piece) == 6 and piece.startswith("<0x"):
            result[token] = bytes([int(piece[3:5], 16)])
        else:
            result[token] = piece.replace("▁", " ").encode()
    return result


def _byte_level_alphabet() -> dict[int, str]:
    """The byte-to-character table of byte-level BPE: printable bytes as they are, others shifted."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {byte: chr(byte) for byte in printable}
    for offset, byte in enumerate(b for b in range(256) if b not in table):
        table[byte] = chr(256 + offset)
    return table


def _byte_automaton(patterns: Sequence[bytes]) -> tuple[list[dict[int, int]], list[bool]]:
    """Aho-Corasick over bytes: a complete transition map per state, and the accepting states.

    States are the prefixes of the patterns; a missing byte leads to the start. Entering an
    accepting state is a match.
    """
    prefixes = sorted(
        {p[:i] for p in patterns for i in range(len(p) + 1)}, key=lambda p: (len(p), p)
    )
    index = {prefix: i for i, prefix in enumerate(prefixes)}
    alphabet = {byte for pattern in patterns for byte in pattern}
    step: list[dict[int, int]] = []
    for prefix in prefixes:
        moves = {}
        for byte in alphabet:
            text = prefix + bytes([byte])
            while text not in index:
                text = text[1:]
            moves[byte] = index[text]
        step.append(moves)
    accepting = [any(prefix.endswith(p) for p in patterns) for prefix in prefixes]
    return step, accepting
