"""What is pushed of a run steers elsewhere as the run does, and nothing that was altered is used."""

from __future__ import annotations

import ast
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from stir_train.artifacts.tables import load_table
from stir_train.config.steering import (
    CustomSteering,
    ValueSteering,
    VectorAction,
    VectorSteering,
)
from stir_train.errors import ArtifactError
from stir_train.export.run_card import RunCard, render_run_card
from stir_train.models.identity import cached_snapshot, weights_by_content
from stir_train.models.locate import EMBEDDED_ROOT
from stir_train.steering.attach import steering
from stir_train.steering.loaded import LoadedRun, load_run
from stir_train.stores.published import PUBLISHED_FILE
from stir_train.stores.steering_files import RunFiles
from stir_train.tools.publish import licence_of
from stir_train.types.rollout import GradedRollout
from tests.support.commands import stir_train
from tests.support.hub_stub import COMMIT, HubStub, hub_stub

BASE = EMBEDDED_ROOT / "addition"


@pytest.fixture(scope="module")
def folder(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished run as a folder."""
    target = tmp_path_factory.mktemp("published") / "run"
    shown = stir_train(
        "export",
        str(finished / "smoke"),
        "--format",
        "run",
        "--to",
        str(target),
        "--license",
        "mit",
    )
    assert shown.returncode == 0, shown.stderr
    return target


def _base(path: Path = BASE) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(path)
    return model


def _answers(run: LoadedRun, graded: list[GradedRollout]) -> list[list[int]]:
    """Greedy answers under the run's controller inside plain generate, prompt by prompt."""
    tokenizer, model, answers = AutoTokenizer.from_pretrained(run.base_model), _base(), []
    with steering(model, tokenizer, run):
        for item in graded:
            prompt = torch.tensor([item.rollout.prompt_token_ids])
            output = model.generate(prompt, max_new_tokens=128, do_sample=False)
            answers.append(output[0, prompt.shape[1] :].tolist())
    return answers


def test_a_folder_steers_as_the_run_did(finished: Path, folder: Path) -> None:
    graded = load_table(
        finished / "smoke" / "evaluate" / "stir" / "rollouts-00000.parquet", GradedRollout
    )[:8]
    assert any(item.rollout.impulses for item in graded)
    run = load_run(folder)
    assert run.choice == load_run(finished / "smoke").choice
    assert _answers(run, graded) == [list(item.rollout.token_ids) for item in graded]


def test_prompts_are_rendered_as_the_runs_own(folder: Path, finished: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    question = "a3, b4, c1, d9: ones sum, exam\n"
    expected = list(tokenizer(question)["input_ids"])
    for source in (folder, finished / "smoke"):
        assert load_run(source).prompt_ids([question], tokenizer) == [expected]


def test_the_folder_holds_what_the_controller_reads_and_no_path_of_this_machine(
    folder: Path, finished: Path
) -> None:
    names = {path.name for path in folder.iterdir()}
    heads = {name for name in names if name.startswith("head-block-")}
    assert len(heads) == 1
    assert names - heads == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "basis.safetensors",
        PUBLISHED_FILE,
    }
    for path in folder.iterdir():
        assert str(EMBEDDED_ROOT).encode() not in path.read_bytes()
        assert str(finished).encode() not in path.read_bytes()
    card = (folder / "README.md").read_text()
    assert "license: mit" in card
    assert "| stir |" in card
    assert "| lora-student |" in card


def test_the_cards_snippet_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = (folder / "README.md").read_text()
    code = card.partition("```python\n")[2].partition("```")[0]
    assert "with steering(" in code
    code = code.replace("PATH/TO/THIS/FOLDER", str(folder))
    exec(code.replace("QUESTION", "a3, b4, c1, d9: ones sum, exam\\n"), {})
    assert "Answer: 7." in capsys.readouterr().out


def test_code_of_your_own_is_not_published(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = CustomSteering(controller="mine:MyController", depth=0.6)
    monkeypatch.setattr(RunFiles, "choice", lambda _self: own)
    to = tmp_path / "run"
    shown = stir_train("export", str(finished / "smoke"), "--format", "run", "--to", str(to))
    assert shown.returncode == 1
    assert "mine:MyController, is code of your own" in " ".join(shown.stderr.split())
    assert not to.exists()


CARD = RunCard(
    name="mine",
    source="me/mine",
    base_model="them/base-7b",
    hub_id="them/base-7b",
    commit=COMMIT,
    licence="apache-2.0",
    task="gsm8k",
    mode="value",
    is_attachable=True,
    has_student=False,
    plain_student=False,
    max_new_tokens=512,
    lineage={},
)


def _code(card: RunCard) -> str:
    code = render_run_card(card).partition("```python\n")[2].partition("```")[0]
    ast.parse(code)
    return code


def test_the_card_pins_the_base_and_promises_nothing_that_the_controller_cannot_do() -> None:
    text = render_run_card(CARD)
    assert text.startswith("---\nbase_model: them/base-7b\nlicense: apache-2.0\n")
    assert "None: the run was not evaluated" in text
    assert f'commit = "{COMMIT}"' in _code(CARD)
    assert _code(CARD).count("revision=commit") == 2
    previewing = replace(CARD, mode="preview", is_attachable=False)
    assert "with steering" not in _code(previewing)
    assert "decides after previews" in render_run_card(previewing)
    nameless = replace(CARD, base_model="my-base", hub_id="", commit="", licence="")
    assert 'base = "PATH/TO/my-base"' in _code(nameless)
    assert "revision" not in _code(nameless)
    assert "No licence was named" in render_run_card(nameless)
    abstains = replace(CARD, mode="none", has_student=True, plain_student=True)
    assert "abstained" in render_run_card(abstains)
    assert "the base's own answers" in " ".join(render_run_card(abstains).split())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("---\nlicense: mit\ntags: [x]\n---\n# Base\n", "mit"),
        ("---\ntags: [x]\n---\nlicense: mit\n", ""),
        ("license: mit\n", ""),
    ],
)
def test_the_bases_licence_is_read_from_its_cards_front_matter(
    tmp_path: Path, text: str, expected: str
) -> None:
    assert licence_of(tmp_path) == ""
    (tmp_path / "README.md").write_text(text)
    assert licence_of(tmp_path) == expected


@pytest.mark.parametrize("name", ["basis.safetensors", "adapter_model.safetensors"])
def test_a_file_that_is_missing_or_altered_is_refused(
    folder: Path, tmp_path: Path, name: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    content = bytearray((copy / name).read_bytes())
    content[-1] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=rf"{name} is damaged.*download it again"):
        load_run(copy)
    (copy / name).unlink()
    with pytest.raises(ArtifactError, match=rf"{name} is missing"):
        load_run(copy)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"files": {"../../x": {"num_bytes": 1, "sha256": "a"}}}, "should match pattern"),
        ({"choice": {"mode": "custom", "controller": "os:system"}}, "code"),
        ({"format": 2}, "format"),
    ],
)
def test_a_manifest_that_reaches_out_is_refused(
    folder: Path, tmp_path: Path, change: dict[str, object], reason: str
) -> None:
    held = json.loads((folder / PUBLISHED_FILE).read_text())
    (tmp_path / PUBLISHED_FILE).write_text(json.dumps({**held, **change}))
    with pytest.raises(ArtifactError, match=reason):
        load_run(tmp_path)


def test_another_model_and_another_mode_are_refused(folder: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    vector = VectorSteering(actions=(VectorAction(place="segment", depth=0.8, strength=1),))
    with pytest.raises(ArtifactError, match="holds no directions"):
        steering(_base(), tokenizer, folder, settings=vector).__enter__()
    elsewhere = ValueSteering(depth=0.1)
    with pytest.raises(ArtifactError, match="holds no head-block"):
        steering(_base(), tokenizer, folder, settings=elsewhere).__enter__()
    model = _base()
    with torch.no_grad():
        model.lm_head.weight.mul_(1.01)
    model.save_pretrained(tmp_path / "other")
    with pytest.raises(ArtifactError, match="another model weights"):
        steering(_base(tmp_path / "other"), tokenizer, folder).__enter__()


def test_the_same_weights_are_known_in_a_directory_and_in_the_hubs_cache(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--me--base"
    shutil.copytree(BASE, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    assert cached_snapshot("me/base", COMMIT) == repository / "snapshots" / COMMIT
    assert weights_by_content("me/base", COMMIT) == weights_by_content(str(BASE), None)
    assert weights_by_content("me/none", None) == ""
    model = _base()
    model.config._name_or_path = model.name_or_path = "me/base"
    model.config._commit_hash = COMMIT
    with steering(model, AutoTokenizer.from_pretrained(BASE), folder):
        pass


def test_what_was_pushed_is_downloaded_and_opens_offline_too(
    finished: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pushed(hub: HubStub) -> None:
        shown = stir_train(
            "push", str(finished / "smoke"), "me/mine", "--private", "--license", "mit"
        )
        assert shown.returncode == 0, shown.stderr
        (made,) = hub.made
        assert (made["name"], made["organization"]) == ("mine", "me")
        assert hub.commits == ["stir-train run smoke"]

    with hub_stub(monkeypatch, tmp_path / "cache") as hub:
        with pytest.raises(ArtifactError, match="does not give a repository"):
            load_run("me/mine")
        pushed(hub)
        run = load_run("me/mine")
        card = (run.files.path / "README.md").read_text()
        assert 'load_run("me/mine")' in card
        assert run.adapter == run.files.path
        same = [PUBLISHED_FILE, "basis.safetensors", "adapter_model.safetensors"]
        assert [(run.files.path / name).read_bytes() for name in same] == [
            (folder / name).read_bytes() for name in same
        ]
        with steering(_base(), AutoTokenizer.from_pretrained(BASE), "me/mine"):
            pass
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        assert load_run("me/mine").choice == run.choice
        with pytest.raises(ArtifactError, match="cannot be reached"):
            load_run("me/other")
    with pytest.raises(ArtifactError, match="no repository OWNER/NAME"):
        load_run("a/b/c")
