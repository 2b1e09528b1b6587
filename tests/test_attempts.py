"""What attempts leave behind for whoever looks from outside."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from stir_train.artifacts.run_dir import RunDir
from stir_train.config.load import load_config
from stir_train.config.run import RunConfig
from stir_train.errors import ArtifactError
from stir_train.launch.status import run_status
from tests.support.smoke import SMOKE


@pytest.mark.parametrize("name", ["process.json", "progress.json", "failure.json"])
@pytest.mark.parametrize("content", [b"", b"\x80", b"[1]", b"{}", b'{"rank": ', bytes(40)])
def test_a_damaged_record_of_an_attempt_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    config = load_config(RunConfig, SMOKE, [f"output_dir={tmp_path}"])
    (run.path / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    (run.path / "logs" / "attempt_of_mine").mkdir(parents=True)
    attempt = run.new_attempt()
    (attempt / "process.json").write_text('{"host": "elsewhere", "pid": 1, "began_at": 0}')
    assert run_status(run.path).state == "not begun"
    (attempt / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=rf"{name} is damaged.*delete it"):
        run_status(run.path)
    (attempt / name).unlink()
    assert run_status(run.path).state == "not begun"
