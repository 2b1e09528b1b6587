"""The whole pipeline through the command line: resume, kill, damage, and what it leaves behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from unittest import mock

import pytest
import torch

from stir_train.artifacts.run_dir import RunDir
from stir_train.artifacts.tables import load_table
from stir_train.basis.validate import Injection, mean_gain
from stir_train.cli.arguments import load
from stir_train.config.load import load_config
from stir_train.config.run import RunConfig
from stir_train.config.steering import HybridSteering, PreviewSteering
from stir_train.errors import StageError
from stir_train.monitoring.console import make_console
from stir_train.runtime.attempt import read_run
from stir_train.stores.interventions import InterventionStore
from stir_train.stores.metric_log import read_metric_log
from stir_train.stores.rollouts import RolloutStore
from stir_train.tools.compare import read_results
from stir_train.tools.serve import Address, plan_server
from stir_train.types.rollout import GradedRollout
from stir_train.types.steering import Intervention
from stir_train.types.utility import Utility
from tests.support.read_only import read_only
from tests.support.smoke import (
    STAGES,
    Looked,
    digests,
    look_at_smoke,
    run_smoke,
)
from tests.support.wandb_records import read_records


def test_every_stage_is_whole_and_a_second_run_does_nothing(finished: Path) -> None:
    run = finished / "smoke"
    before = digests(finished)
    for stage in STAGES:
        assert (run / stage / "complete").is_file(), stage
        manifest = json.loads((run / stage / "manifest.json").read_text())
        listed = set(manifest["files"]) | {"manifest.json", "stage.json", "complete"}
        present = {
            str(p.relative_to(run / stage))
            for p in (run / stage).rglob("*")
            if p.is_file() and ".checksums" not in p.parts
        }
        assert present == listed, stage
    again = run_smoke(finished)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("nothing to do") == len(STAGES)
    assert digests(finished) == before


def test_wandb_holds_what_is_promised(finished: Path) -> None:
    run = finished / "smoke"
    (file,) = (run / "wandb").glob("offline-run-*/*.wandb")
    history: set[str] = set()
    summary: dict[str, str] = {}
    settings: dict[str, str] = {}
    for record in read_records(file):
        if record.run.run_id:
            assert record.run.run_id == (run / "wandb_id").read_text()
            settings |= {item.key: item.value_json for item in record.run.config.update}
        keys = ["/".join(item.nested_key) or item.key for item in record.history.item]
        history |= set(keys)
        for item in record.summary.update:
            summary["/".join(item.nested_key) or item.key] = item.value_json
    promised = (
        "rollout/correct_rate rollout/truncated_rate rollout/tokens_per_second rollout/queue_depth "
        "rollout/eta_seconds rollout/state_norm harvest/num_contrasts basis/4/logdet "
        "basis/4/spectrum basis/coverage/kept validate/round-1/mean_uplift value/block-4/loss "
        "steer/strength steer/gain_over_null distill/loss distill/loss/sequence distill/loss/logits "
        "distill/grad_norm distill/learning_rate distill/memory_gib distill/eta_seconds "
        "evaluate/greedy/correct_rate evaluate/stir/intervention_rate evaluate/methods/path report/page/path"
    )
    assert set(promised.split()) <= history
    assert not [name for name in history if name.startswith("tune/") and "." in name]
    reached = (
        "value/auroc_block_4 value/ece_block_4 evaluate/stir/tokens_mean headline/stir/accuracy"
    )
    assert set(reached.split()) <= set(summary)
    assert {"seed", "git_sha", "rollout"} <= set(settings)
    for stage in STAGES:
        recorded = json.loads(summary[f"{stage}/sha256"])
        assert recorded == RunDir(run).stage(stage).fingerprint()


def test_results_are_complete_and_consistent(finished: Path) -> None:
    results = read_results(finished / "smoke")
    assert results.num_items == 24
    assert results.test_openings == 1
    null = results.find("control-empty-basis")
    assert null is not None
    assert null.reused_tokens_mean == 0, "the control is decoded whole, to show what it shows"
    assert results.share_reused > 0
    rows = {row.name: row.metrics for row in results.methods}
    assert rows["control-empty-basis"].delta_accuracy_ci95 == (0.0, 0.0)
    assert rows["control-empty-basis"].tokens_mean == rows["greedy"].tokens_mean
    for row in rows.values():
        total = row.committed_tokens_mean + row.extra_tokens_mean
        assert row.tokens_mean == pytest.approx(total)
        low, high = row.accuracy_ci95
        assert low <= row.accuracy <= high
    stir = results.find("stir")
    assert stir is not None
    assert stir.chosen_on == "tune"
    assert stir.steering is not None
    page = (finished / "smoke" / "report" / "report.html").read_text()
    assert "http://" not in page
    assert "https://" not in page
    assert page.count("<svg") >= 10
    made = page[page.index("How it was made") :]
    for shown in ("Distillation", "Sample answers", "lora-student: "):
        assert shown in page
    assert "Attempt 1:" in made or "Attempts 1, " in made
    logs = read_metric_log(finished / "smoke" / "metrics.jsonl")
    for stage in STAGES:
        assert logs[stage].wall_seconds is not None
    assert logs["rollout"].num_tokens > 0
    assert len(logs["distill"].curves("loss")[""]) == 2, "the first step and the last"


@pytest.fixture(scope="module")
def looked(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Looked:
    """The run as verbs that only read it left it."""
    return look_at_smoke(finished, tmp_path_factory.mktemp("exported") / "lora")


def test_what_only_reads_a_run_takes_no_lock_and_leaves_it_as_it_was(looked: Looked) -> None:
    for verb, done in looked.answers.items():
        assert done.returncode == 0, (verb, done.stderr)
    assert looked.after == looked.before


@pytest.mark.parametrize("verb", ["run", "report"])
def test_what_would_write_to_a_read_only_disk_says_so(finished: Path, verb: str) -> None:
    with read_only(finished / "smoke"):
        done = run_smoke(finished, verb=verb)
    assert done.returncode == 1
    assert f"Read-only file system ({finished / 'smoke'}" in done.stderr


def test_what_would_be_served_is_shown_and_what_cannot_be_is_refused(finished: Path) -> None:
    shown = run_smoke(finished, "--dry-run", "--", "--max-num-seqs", "4", verb="serve")
    assert shown.returncode == 0, shown.stderr
    assert "smoke: the base model, steered as the run chose (value)" in shown.stdout
    assert "smoke-lora-student: the student, unsteered" in shown.stdout
    for part in ("SteeredWorker", "SteeredScheduler", "--enable-lora", "--max-num-seqs 4"):
        assert part in shown.stdout
    too_narrow = "takes heads of 32 and more, and those of embedded/addition are 16 wide"
    assert too_narrow in " ".join(shown.stdout.split())
    started = run_smoke(finished, verb="serve")
    assert started.returncode == 1
    assert too_narrow in " ".join(started.stderr.split())
    for argument, why in (
        ("--no-enforce-eager", "hooks on compiled graphs never run"),
        ("--tensor-parallel-size=2", "a pass is steered in one process"),
        ("--dtype=half", "it is model.dtype"),
    ):
        refused = run_smoke(finished, "--dry-run", "--", argument, verb="serve")
        assert refused.returncode == 1
        assert f"not with stir-train serve: {why}" in refused.stderr


@pytest.mark.parametrize("settings", [PreviewSteering(depth=0.6), HybridSteering(depth=0.6)])
def test_a_choice_that_needs_previews_is_not_served(
    settings: PreviewSteering | HybridSteering, finished: Path
) -> None:
    config = load(finished / "smoke", [])
    address = Address("127.0.0.1", 8000)
    with read_run(config, make_console()) as context:
        choice = mock.patch.object(context.steering, "choice", return_value=settings)
        with choice, pytest.raises(StageError, match=f"mode {settings.mode}, decides after prev"):
            plan_server(context, "vllm", address, further=())


def test_every_export_is_written_where_it_was_asked_for(
    finished: Path, looked: Looked, tmp_path: Path
) -> None:
    for form in ("gguf", "lm-eval"):
        target = tmp_path / form
        refused = run_smoke(finished, "--format", form, "--to", str(target), verb="export")
        assert refused.returncode == 1
        assert "only what was measured so is exported: tuning chose 'value'" in refused.stderr
        assert not target.exists()
    assert {path.name for path in looked.adapter.iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    assert str(looked.adapter) in looked.answers["export"].stderr
    card = (looked.adapter / "README.md").read_text()
    results = read_results(finished / "smoke")
    for row in results.methods:
        if row.name in ("greedy", "stir", "lora-student"):
            assert f"| {row.name} | {100 * row.metrics.accuracy:.1f} |" in card
    assert RunDir(finished / "smoke").stage("distill").fingerprint()[:16] in card
    assert "lora-rejection" in {student.name for student in results.students}


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_the_adapter_is_two_files_that_plain_peft_loads(finished: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from stir_train.models.locate import EMBEDDED_ROOT

    adapter = finished / "smoke" / "distill" / "lora"
    assert {p.name for p in adapter.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    base = AutoModelForCausalLM.from_pretrained(EMBEDDED_ROOT / "addition")
    assert PeftModel.from_pretrained(base, adapter).active_adapter == "default"
    served = run_smoke(finished, "--engine=transformers", verb="verify")
    assert served.returncode == 0, served.stderr
    assert "64 of 64 greedy tokens through transformers" in " ".join(served.stderr.split())


@pytest.mark.parametrize("method", ["stir", "lora-student"])
def test_a_prompt_is_answered_and_decisions_are_shown(finished: Path, method: str) -> None:
    assert read_results(finished / "smoke").find(method) is not None
    question = "a3, b4, c1, d9: ones sum, exam\n"
    answered = run_smoke(finished, "--method", method, "--prompt", question, verb="generate")
    assert answered.returncode == 0, answered.stderr
    assert "Answer: " in answered.stdout
    shown = run_smoke(finished, "--method", method, "--index", "1", verb="trace")
    assert shown.returncode == 0, shown.stderr
    assert "point 1" in shown.stdout
    assert "gold answer" in shown.stdout


def test_an_unknown_method_is_refused(finished: Path) -> None:
    wrong = run_smoke(finished, "--method", "magic", verb="trace")
    assert wrong.returncode == 1
    assert "is none of greedy, stir" in wrong.stderr


def test_other_settings_or_a_damaged_file_stop_with_what_to_do(
    finished: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    changed = run_smoke(copy, "harvest.num_positive=1")
    assert changed.returncode == 1
    assert "harvest.num_positive: 2 then, 1 now" in changed.stderr
    assert "--redo" in changed.stderr
    shutil.rmtree(copy / "smoke" / "tune")
    # Finished, missing or to be remade, a stage goes by the rollouts' control points; so does steering.
    prompt = ("--prompt", "a3, b4, c1, d9: ones sum, exam\n")
    for verb, *options in (("value",), ("tune",), ("value", "--redo"), ("generate", *prompt)):
        other = run_smoke(copy, "control_points.max_points=3", *options, verb=verb)
        assert other.returncode == 1
        assert "rollout was made with other settings" in " ".join(other.stderr.split())
        assert "control_points.max_points: 8 then, 3 now" in other.stderr
    assert (copy / "smoke" / "value" / "complete").exists(), "nothing was thrown away"
    shard = next((copy / "smoke" / "rollout").glob("states-*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-100])
    shutil.rmtree(copy / "smoke" / "harvest")
    damaged = run_smoke(copy, verb="harvest")
    assert damaged.returncode == 1
    assert "is damaged" in damaged.stderr
    assert not (copy / "smoke" / "harvest" / "complete").exists()


def test_redo_remakes_a_stage_and_those_after_it(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    redone = run_smoke(copy, "--redo", "basis.size=16", verb="basis")
    assert redone.returncode == 0, redone.stderr
    assert (copy / "smoke" / "harvest" / "complete").exists()
    assert not (copy / "smoke" / "tune").exists()


def test_redo_of_a_stage_that_is_off_discards_nothing(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    refused = run_smoke(copy, "--redo", verb="directions")
    assert refused.returncode == 1
    assert "directions: off" in refused.stderr
    assert (copy / "smoke" / "harvest" / "complete").exists()
    assert (copy / "smoke" / "report" / "complete").exists()


def test_plain_generate_inside_the_context_gives_the_engines_tokens(finished: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from stir_train.config.steering import PreviewSteering
    from stir_train.errors import ArtifactError, StageError
    from stir_train.models.locate import EMBEDDED_ROOT
    from stir_train.steering.attach import steering
    from stir_train.types.rollout import GradedRollout

    run = finished / "smoke"
    table = load_table(run / "evaluate" / "stir" / "rollouts-00000.parquet", GradedRollout)
    assert any(g.rollout.impulses for g in table)
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_ROOT / "addition", padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(EMBEDDED_ROOT / "addition")
    prompts = [tokenizer.decode(g.rollout.prompt_token_ids) for g in table]
    inputs = tokenizer(prompts, return_tensors="pt", padding=True)
    inputs.pop("token_type_ids", None)
    with steering(model, tokenizer, run) as decisions:
        output = model.generate(**inputs, max_new_tokens=128, do_sample=False)
        assert sum(d.chosen >= 0 for d in decisions) == sum(len(g.rollout.impulses) for g in table)
        sampled = model.generate(**inputs, max_new_tokens=32, do_sample=True, top_k=5)
        assert sampled.shape[0] == len(table)
        with pytest.raises(StageError, match="beam search"):
            model.generate(**inputs, max_new_tokens=8, num_beams=2, do_sample=False)
    width = inputs["input_ids"].shape[1]
    for row, graded in zip(output[:, width:].tolist(), table, strict=True):
        expected = list(graded.rollout.token_ids)
        assert row[: len(expected)] == expected
        assert set(row[len(expected) :]) <= {tokenizer.pad_token_id}
    plain = model.generate(**inputs, max_new_tokens=128, do_sample=False)
    assert plain.tolist() != output.tolist()  # and the context left no hook
    previewing = PreviewSteering(depth=0.8)
    with pytest.raises(StageError, match="needs previews"):
        steering(model, tokenizer, run, settings=previewing).__enter__()
    with torch.no_grad():
        model.lm_head.weight.mul_(1.01)
    model.save_pretrained(finished / "other")
    other = AutoModelForCausalLM.from_pretrained(finished / "other")
    with pytest.raises(ArtifactError, match="other weights"):
        steering(other, tokenizer, run).__enter__()


def test_validation_goes_on_with_the_block_whose_controller_did_best(finished: Path) -> None:
    stage = RunDir(finished / "smoke").stage("validate")
    config = load_config(RunConfig, finished / "smoke" / "config.yaml", [])
    price = config.utility.token_price / config.generation.max_new_tokens

    greedy = RolloutStore(stage).read("null")

    def utility(item: GradedRollout) -> float:
        return item.grade.correct - price * len(item.rollout.token_ids)

    alone = [
        trial
        for path in sorted(stage.path.glob("round-00/trials-*.parquet"))
        for trial in load_table(path, Intervention)
    ]

    def score(block: int) -> tuple[float, float]:
        answers = RolloutStore(stage).read(f"round-01/block-{block}-strength-3")
        assert len(answers) == config.validation.selection_problems
        pairs = list(zip(answers, greedy, strict=False))
        assert all(a.rollout.prompt_id == g.rollout.prompt_id for a, g in pairs)
        gained = sum(max(0.0, utility(a) - utility(g)) for a, g in pairs)
        # Equally good controllers are told apart by what single trials gained.
        single = mean_gain(
            alone,
            Injection(block, 3.0),
            Utility(config.utility.token_price, config.generation.max_new_tokens),
        )
        return gained, single

    first, second = (
        {plan.block for plan in InterventionStore(stage).plan(number)} for number in range(2)
    )
    assert first == {3, 4}
    assert score(3) != score(4), "a tie tests nothing"
    assert second == {max(first, key=score)}
