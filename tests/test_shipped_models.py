"""The models that come with the package are what they claim to be."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from stir_train.config.inputs import ModelConfig, TaskConfig
from stir_train.data.grading import grade_batch
from stir_train.data.problems import SourceProblem
from stir_train.data.prompts import render_prompts
from stir_train.generation.backend import GenerationRequest, SamplingParams
from stir_train.generation.transformers.engine import DecodeEngine
from stir_train.models.describe import describe_model
from stir_train.models.load import load_model
from stir_train.models.locate import EMBEDDED_ROOT
from stir_train.tasks.families import FAMILIES
from stir_train.tasks.problem import held_out_problems
from stir_train.tasks.tokenizer import build_tokenizer
from stir_train.tools.tiny import measure_competence
from tests.support import tiny_models


@pytest.mark.parametrize("architecture", ["qwen2", "gemma3-hybrid", "gpt-neox"])
def test_a_model_is_described_as_it_is_loaded(architecture: str, tmp_path: Path) -> None:
    model = tiny_models.build(architecture).model
    model.generation_config.eos_token_id = [1, 2]
    model.save_pretrained(tmp_path)
    load_model(ModelConfig(name="embedded/addition")).tokenizer.save_pretrained(tmp_path)
    for name in (str(tmp_path), "embedded/sorting"):
        described, loaded = (f(ModelConfig(name=name)) for f in (describe_model, load_model))
        assert described.identity == loaded.identity
        assert described.stop_token_ids == loaded.stop_token_ids
        assert described.decode([5, 6, 1]) == loaded.decode([5, 6, 1])
        assert described.vocab_size == loaded.model.config.get_text_config().vocab_size


@pytest.mark.parametrize(
    "name", sorted(path.name for path in EMBEDDED_ROOT.iterdir() if path.is_dir())
)
def test_a_shipped_model_speaks_its_familys_vocabulary_and_is_good_but_imperfect(name: str) -> None:
    families = re.sub(r"-\d+$", "", name).split("-and-")  # NAME-SEED is one trained apart
    loaded = load_model(ModelConfig(name=f"embedded/{name}"))
    known = build_tokenizer([FAMILIES[family] for family in families], max_tokens=512)
    assert loaded.tokenizer.get_vocab() == known.get_vocab()
    for family in families:
        problems = held_out_problems(FAMILIES[family], 32, seed=9)
        sources = [SourceProblem(p.question, p.answer, p.content, p.kind) for p in problems]
        prompts = render_prompts(sources, TaskConfig(), loaded.tokenizer)
        result = DecodeEngine(loaded, max_rows=32).generate(
            [GenerationRequest(p) for p in prompts],
            SamplingParams(320, loaded.stop_token_ids),
            seed=0,
        )
        texts = [loaded.decode(r.token_ids) for r in result.rollouts]
        grades = grade_batch(
            TaskConfig(), [(t, p.gold, False) for t, p in zip(texts, prompts, strict=True)]
        )
        correct = sum(grade.correct for grade in grades) / len(grades)
        assert correct > 0.4
        assert correct < 1.0 or measure_competence(family, f"embedded/{name}", 12).passes
        assert not any(r.truncated for r in result.rollouts)
