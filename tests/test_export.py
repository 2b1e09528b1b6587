"""A saved adapter verifies in a fresh process, and every kind of damage is caught by its reason."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stir_train.artifacts.run_dir import StageDir, StageInputs
from stir_train.config.inputs import ModelConfig
from stir_train.config.learning import DistillConfig, ObjectiveConfig
from stir_train.distill.objective import DistillLoss
from stir_train.distill.samples import IGNORED, BatchConfig, choose_samples, sequence_batches
from stir_train.distributed.engine import PlainEngine
from stir_train.distributed.world import alone
from stir_train.errors import ModelError, VerificationError
from stir_train.export.adapter import PROBES_FILE, save_adapter, save_probes
from stir_train.export.card import hub_id
from stir_train.export.verify import verify_adapter
from stir_train.models.load import load_model
from stir_train.models.locate import resolve_model_path
from stir_train.models.lora import add_lora, base_of, load_adapter, make_whole_student
from stir_train.stores.adapters import ADAPTER_DIRECTORY
from tests.support import bases
from tests.support.forked import forked_checks

EMBEDDED = ModelConfig(name="embedded/addition")
BASE = resolve_model_path(EMBEDDED.name)
CONFIG = DistillConfig(rank=8, alpha=16)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    stage = StageDir(tmp_path_factory.mktemp("run") / "distill")
    stage.begin(StageInputs({}, {}))
    model = add_lora(load_model(EMBEDDED), CONFIG, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    save_adapter(model, stage)
    save_probes(model, [[5, 9, 12, 20], [6, 7, 8, 30]], stage)
    return stage.path


def _verify(path: Path, base: str = BASE) -> None:
    verify_adapter(base, path / ADAPTER_DIRECTORY, path / PROBES_FILE, tolerance=1e-4)


def test_a_good_adapter_verifies_and_loads_onto_a_fresh_base(saved: Path) -> None:
    result = verify_adapter(BASE, saved / ADAPTER_DIRECTORY, saved / PROBES_FILE, tolerance=1e-4)
    assert result.effect > 0.1
    assert result.difference < 1e-5
    probes = load_file(saved / PROBES_FILE)
    student = load_adapter(load_model(EMBEDDED), saved / ADAPTER_DIRECTORY)
    with torch.no_grad():
        logits = student.model(input_ids=probes["token_ids"]).logits
    torch.testing.assert_close(logits, probes["adapted_logits"])


def _edit_config(**changes: object) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        file = path / ADAPTER_DIRECTORY / "adapter_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return edit


def _edit_tensors(
    change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]],
) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        file = path / ADAPTER_DIRECTORY / "adapter_model.safetensors"
        save_file(change(load_file(file)), file)

    return edit


def _stale_file(path: Path) -> None:
    (path / ADAPTER_DIRECTORY / "adapter_model.bin").write_bytes(b"old")


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "zeroed B": (
        _edit_tensors(lambda t: {k: v * ("lora_A" in k) for k, v in t.items()}),
        "every lora_B is zero",
    ),
    "wrong prefix": (
        _edit_tensors(lambda t: {k.replace("base_model.model", "model"): v for k, v in t.items()}),
        "missing|unexpected",
    ),
    "missing tensor": (_edit_tensors(lambda t: dict(list(t.items())[1:])), "missing"),
    "missing module": (_edit_tensors(lambda t: dict(list(t.items())[2:])), "missing"),
    "wrong shape": (
        _edit_tensors(lambda t: {k: v[:, :-1].contiguous() for k, v in t.items()}),
        "cannot load|is \\(",
    ),
    "output head": (
        _edit_tensors(lambda t: t | {"base_model.model.lm_head.lora_A.weight": torch.ones(8, 96)}),
        "neither embeddings nor the output head",
    ),
    "DoRA": (_edit_config(use_dora=True), "use_dora is set"),
    "other values": (_edit_tensors(lambda t: {k: 1.5 * v for k, v in t.items()}), "differ by"),
    "alpha 0": (_edit_config(lora_alpha=0), "lora_alpha is 0"),
    "bias": (_edit_config(bias="all"), "bias='none'"),
    "stale file": (_stale_file, "stale extra file adapter_model.bin"),
    "no weights": (
        lambda path: (path / ADAPTER_DIRECTORY / "adapter_model.safetensors").unlink(),
        "missing adapter_model.safetensors",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_caught_with_its_reason(saved: Path, tmp_path: Path, name: str) -> None:
    damage, reason = DAMAGES[name]
    copy = tmp_path / "distill"
    shutil.copytree(saved, copy)
    damage(copy)
    with forked_checks(), pytest.raises(VerificationError, match=reason):
        _verify(copy)


def test_another_base_is_caught(saved: Path, tmp_path: Path) -> None:
    other = tmp_path / "base"
    model = load_model(EMBEDDED).model
    with torch.no_grad():
        model.lm_head.weight.mul_(1.01)
    model.save_pretrained(other)
    with forked_checks(), pytest.raises(VerificationError, match="another base"):
        _verify(saved, str(other))


def test_an_adapter_that_learned_nothing_is_not_saved(tmp_path: Path) -> None:
    stage = StageDir(tmp_path / "distill")
    stage.begin(StageInputs({}, {}))
    with pytest.raises(VerificationError, match="learned nothing"):
        save_adapter(add_lora(load_model(EMBEDDED), CONFIG, seed=0), stage)
    with pytest.raises(ModelError, match=r"distill\.targets"):
        add_lora(load_model(EMBEDDED), CONFIG.model_copy(update={"targets": ("nothing",)}), seed=0)


def test_the_student_learns_from_the_shortest_correct_samples_only() -> None:
    graded, _ = bases.harvest()
    kept = choose_samples(graded, keep_per_prompt=2)
    correct = {(g.rollout.prompt_id, g.rollout.sample) for g in graded if g.grade.correct}
    assert {(r.prompt_id, r.sample) for r in kept} <= correct
    by_prompt: dict[str, list[int]] = {}
    for rollout in kept:
        by_prompt.setdefault(rollout.prompt_id, []).append(len(rollout.token_ids))
    for prompt_id, lengths in by_prompt.items():
        assert len(lengths) <= 2
        mine = [g.rollout for g in graded if g.rollout.prompt_id == prompt_id and g.grade.correct]
        assert min(lengths) == min(len(r.token_ids) for r in mine)
    student = make_whole_student(EMBEDDED, CONFIG, seed=0)
    model = student.model
    trainable = [p for p in model.parameters() if p.requires_grad]
    engine = PlainEngine(model, [torch.optim.AdamW(trainable)], alone())
    (batch,) = next(sequence_batches(kept, engine, 0, BatchConfig(4, pad_token_id=0, seed=0)))
    assert ((batch.labels != IGNORED) <= (batch.mask == 1)).all()
    sizes = {len(r.token_ids) for r in kept}
    assert {int(n) for n in (batch.labels != IGNORED).sum(1)} <= sizes
    assert batch.num_targets == int((batch.labels != IGNORED).sum())
    before = DistillLoss(model, student, ObjectiveConfig())(batch)
    before["sequence"].backward()
    trained = {n for n, p in model.named_parameters() if p.grad is not None}
    assert trained
    assert all("lora_" in name for name in trained)
    assert base_of(model) is model.get_base_model()


@pytest.mark.parametrize(
    ("name", "expected"),
    [("embedded/addition", ""), ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B")],
)
def test_a_card_names_a_base_only_as_a_hub_knows_it(name: str, expected: str) -> None:
    assert hub_id(ModelConfig(name=name)) == expected


def test_a_cards_base_in_a_nameless_directory_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert not hub_id(ModelConfig(name=str(tmp_path)))
    (tmp_path / "config.json").write_text('{"_name_or_path": "owner/base"}')
    assert hub_id(ModelConfig(name=str(tmp_path))) == "owner/base"
