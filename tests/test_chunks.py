"""Which chunks of an unfinished stage are made again."""

from __future__ import annotations

from pathlib import Path

import pytest

from stir_train.artifacts.run_dir import StageDir, StageInputs
from stir_train.runtime.chunk_scheduler import missing_keys
from stir_train.stores.rollouts import decisions_file, rollouts_file
from stir_train.stores.states import states_file


@pytest.mark.parametrize("name", ["", "round-00", "out-of-domain/other/stir"])
@pytest.mark.parametrize("kind", [rollouts_file, states_file, decisions_file])
@pytest.mark.parametrize("how", ["flipped", "cut", "deleted"])
def test_a_chunk_of_which_any_file_is_damaged_is_made_again(
    tmp_path: Path, name: str, kind: object, how: str
) -> None:
    assert callable(kind)
    stage = StageDir(tmp_path / "rollout")
    stage.begin(StageInputs({}, {}))
    for number in range(3):
        for file in (states_file, decisions_file, rollouts_file):
            with stage.writing(file(name, number)) as path:
                path.write_bytes(b"content of some length")
    files = {str(number): (rollouts_file(name, number),) for number in range(4)}
    assert missing_keys(stage, files) == ["3"]
    damaged = stage.path / kind(name, 1)
    if how == "deleted":
        damaged.unlink()
    else:
        damaged.write_bytes(b"content of some" if how == "cut" else b"content of same length")
    assert missing_keys(stage, files) == ["1", "3"]
