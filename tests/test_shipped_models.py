"""The models that come with the package are what they claim to be."""

from __future__ import annotations

import pytest

from stir_train.config.stages import ModelConfig, TaskConfig
from stir_train.data.grading import grade_batch
from stir_train.data.problems import SourceProblem
from stir_train.data.prompts import render_prompts
from stir_train.generation.backend import GenerationRequest, SamplingParams
from stir_train.generation.engine import DecodeEngine
from stir_train.models.load import EMBEDDED_ROOT, load_model
from stir_train.recipes.tiny import measure_competence
from stir_train.tasks.families import FAMILIES
from stir_train.tasks.problem import held_out_problems
from stir_train.tasks.tokenizer import build_tokenizer


@pytest.mark.parametrize(
    "name", sorted(path.name for path in EMBEDDED_ROOT.iterdir() if path.is_dir())
)
def test_a_shipped_model_speaks_its_familys_vocabulary_and_is_good_but_imperfect(name: str) -> None:
    family = FAMILIES[name]
    loaded = load_model(ModelConfig(name=f"embedded/{name}"))
    assert loaded.tokenizer.get_vocab() == build_tokenizer([family], max_tokens=512).get_vocab()
    problems = held_out_problems(family, 60, seed=9)
    sources = [SourceProblem(p.question, p.answer, p.content, p.kind) for p in problems]
    prompts = render_prompts(sources, TaskConfig(), loaded.tokenizer)
    result = DecodeEngine(loaded, max_rows=60).generate(
        [GenerationRequest(p) for p in prompts], SamplingParams(320, loaded.stop_token_ids), seed=0
    )
    texts = [loaded.decode(r.token_ids) for r in result.rollouts]
    grades = grade_batch(
        TaskConfig(), [(t, p.gold, False) for t, p in zip(texts, prompts, strict=True)]
    )
    correct = sum(grade.correct for grade in grades) / len(grades)
    assert correct > 0.4
    assert correct < 1.0 or measure_competence(name, f"embedded/{name}", 24).passes
    assert not any(r.truncated for r in result.rollouts)
