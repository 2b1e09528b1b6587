"""What a later stage would refuse is refused before the first one begins, all of it at once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, MixtralConfig

from stir_train.config.inputs import ModelConfig
from stir_train.config.learning import DistillConfig
from stir_train.errors import ModelError, StageError
from stir_train.models.locate import EMBEDDED_ROOT
from stir_train.models.lora_targets import require_servable_targets
from stir_train.runtime.early_checks import require_known_tokens, require_room
from stir_train.types.rollout import Prompt
from tests.support.smoke import run_smoke
from tests.support.tiny_models import GROUPED


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of an embedded model that a test may change."""
    return Path(shutil.copytree(EMBEDDED_ROOT / "addition", tmp_path / "model"))


def _prompt(number: int, num_tokens: int) -> Prompt:
    return Prompt(str(number), f"question {number}", "", (1,) * num_tokens, "5", "", ())


@pytest.mark.parametrize("split", ["harvest", "tune", "test", "evaluate.out_of_domain.other"])
def test_a_prompt_too_long_for_the_context_is_found_in_any_split_by_its_line(split: str) -> None:
    asked = {name: [_prompt(1, 8)] for name in ("harvest", "tune", "test")}
    asked[split] = [_prompt(1, 8), _prompt(2, 9), _prompt(3, 0)]
    places = {"2": "problems.jsonl:7"}
    with pytest.raises(StageError, match=r"2 prompts do not fit.*") as refused:
        require_room(asked, places, max_tokens=40, max_new_tokens=32)
    assert f"problems.jsonl:7 ({split}): 9 tokens" in str(refused.value)
    assert f"'question 3' ({split}): 0 tokens" in str(refused.value)
    require_room({split: [_prompt(1, 8)]}, {}, max_tokens=40, max_new_tokens=32)


def test_a_token_that_the_model_has_no_row_for_is_found_by_its_line() -> None:
    asked = {"harvest": [_prompt(1, 8)], "test": [_prompt(2, 1)]}
    require_known_tokens(asked, {}, vocab_size=2)
    with pytest.raises(StageError, match=r"problems\.jsonl:7 \(test\) holds token 1"):
        require_known_tokens({"test": asked["test"]}, {"2": "problems.jsonl:7"}, vocab_size=1)


def test_a_long_prompt_of_the_test_split_stops_a_run_before_its_rollouts(tmp_path: Path) -> None:
    problems = tmp_path / "problems.jsonl"
    rows = [{"question": f"{a}+{b}=?", "answer": str(a + b)} for a in range(9) for b in range(9)]
    rows[40]["question"] = "+".join(["1"] * 300) + "=?"
    problems.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = run_smoke(
        tmp_path,
        "task.name=custom",
        f"task.source={problems}",
        "splits.num_test=33",
        verb="rollout",
    )
    assert done.returncode == 1
    assert f"{problems}:41" in done.stderr, done.stderr
    assert "generation.max_new_tokens=128" in done.stderr
    assert not (tmp_path / "smoke" / "rollout").exists()


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        ("[lm_head]", "lm_head"),
        ("[q_proj,lm_head]", "lm_head"),
        ("[embed_tokens]", "embed_tokens"),
        ("[q_proj,nothing]", "no module nothing"),
        ("[nothing]", "nothing"),
    ],
)
def test_targets_that_no_server_would_load_stop_a_run_before_its_rollouts(
    tmp_path: Path, targets: str, said: str
) -> None:
    done = run_smoke(tmp_path, f"distill.targets={targets}")
    assert done.returncode == 1
    assert "distill.targets" in done.stderr
    assert said in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "smoke" / "rollout").exists()


def test_the_experts_of_a_mixture_are_refused_and_its_attention_is_not(tmp_path: Path) -> None:
    config = MixtralConfig(**GROUPED, num_local_experts=4)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    mixture = ModelConfig(name=str(tmp_path))
    with pytest.raises(
        ModelError, match=r"distill\.targets.*experts.*k_proj, o_proj, q_proj, v_proj"
    ):
        require_servable_targets(mixture, DistillConfig())
    require_servable_targets(mixture, DistillConfig(targets=("q_proj", "v_proj")))


def test_all_that_is_wrong_is_said_at_once_and_redo_discards_nothing(tmp_path: Path) -> None:
    briefly = "generation.max_new_tokens=8"
    made = run_smoke(tmp_path, briefly, verb="rollout")
    assert made.returncode == 0, made.stderr
    held = (tmp_path / "smoke" / "rollout" / "manifest.json").read_bytes()
    done = run_smoke(
        tmp_path,
        "--redo",
        "distill.targets=[lm_head]",
        "train.deepspeed_config=nowhere.json",
        briefly,
    )
    assert done.returncode == 1
    assert "2 things would stop this run later" in done.stderr, done.stderr
    assert "nowhere.json" in done.stderr
    assert "lm_head" in done.stderr
    assert (tmp_path / "smoke" / "rollout" / "manifest.json").read_bytes() == held


def test_a_stage_that_is_asked_for_alone_is_not_stopped_by_a_later_ones_settings(
    tmp_path: Path,
) -> None:
    settings = ("distill.targets=[lm_head]", "generation.max_new_tokens=8")
    done = run_smoke(tmp_path, *settings, verb="rollout")
    assert done.returncode == 0, done.stderr


def test_cut_off_rollouts_are_named_before_any_inability(tmp_path: Path) -> None:
    done = run_smoke(tmp_path, "generation.max_new_tokens=2", "distill.enabled=false")
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stderr.split())
    assert "100.0% of 96 completions were cut off at generation.max_new_tokens=2" in said
    assert "no effect: 96 of 96 rollouts were cut off at generation.max_new_tokens=2" in said
    assert "temperature" not in said.partition("no effect")[2]


def test_an_end_of_sequence_token_that_stops_nothing_is_said_before_the_rollouts(
    tmp_path: Path, model: Path
) -> None:
    file = model / "generation_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({**settings, "eos_token_id": settings["eos_token_id"] + 3}))
    done = run_smoke(tmp_path, f"model.name={model}", "generation.max_new_tokens=8", verb="rollout")
    said = " ".join(done.stderr.split())
    assert "ends no completion" in said, said
    assert "generation_config.json stops at" in said
    assert said.index("ends no completion") < said.index("rollouts,")
    sound = run_smoke(tmp_path, "name=sound", "generation.max_new_tokens=8", verb="rollout")
    assert "ends no completion" not in sound.stderr


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("tune.modes=[vector]", "tune.modes: vector takes gradients"),
        ("basis.directions=reward_gradient", "basis.directions: reward_gradient takes gradients"),
    ],
)
def test_gradients_are_refused_where_ranks_wait_for_one_another(
    tmp_path: Path, settings: str, said: str
) -> None:
    sharded = ("model.sharding=zero3", "distill.enabled=false")
    done = run_smoke(tmp_path, settings, *sharded, "--dry-run", "--no-measure")
    assert done.returncode == 1
    assert said in " ".join(done.stderr.split())
