"""A word-level tokenizer whose pieces concatenate back to the text exactly."""

from __future__ import annotations

import random

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from stir_train.tasks.problem import TaskFamily

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"
PIECE = r"\n\n|\n|[A-Za-z]+ ?|[0-9]|[^\sA-Za-z0-9] ?|\s"
"""A blank line, a newline, a word or a sign with the space after it, or one digit."""

VOCABULARY_SAMPLE = 4000
"""Problems read to list the vocabulary: every author and hedge occurs many times among them."""


def build_tokenizer(families: list[TaskFamily], *, max_tokens: int) -> PreTrainedTokenizerFast:
    """List the pieces that the families' corpora use and build a tokenizer over them.

    Args:
        families: Task families; each is sampled with a fixed seed.
        max_tokens: The context length to record as ``model_max_length``.
    """
    splitter = pre_tokenizers.Split(Regex(PIECE), behavior="isolated")
    pieces: set[str] = set("0123456789")
    for family in families:
        rng = random.Random(f"vocabulary/{family.name}")
        for _ in range(VOCABULARY_SAMPLE):
            problem = family.make_problem(rng)
            text = problem.question + family.write_solution(problem, rng)
            pieces.update(piece for piece, _ in splitter.pre_tokenize_str(text))
    vocabulary = {word: i for i, word in enumerate([PAD, EOS, UNKNOWN, *sorted(pieces)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        model_max_length=max_tokens,
        clean_up_tokenization_spaces=False,
    )
