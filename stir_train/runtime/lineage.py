"""Whether what a reading verb takes from a run is of this model and seed, and whole."""

from __future__ import annotations

from stir_train.artifacts.verification import foreign_sources, require_whole
from stir_train.errors import ArtifactError
from stir_train.runtime.context import RunContext
from stir_train.runtime.upstream import upstream_of


def require_lineage(context: RunContext, *names: str) -> None:
    """Check finished stages that are about to be read, with all that they were made from.

    Their data are not looked for: what was learned is read also where they are no longer at hand.

    Raises:
        ArtifactError: If one is damaged, of another model or seed, or made from another stage than the one
            that lies beside it.
    """
    found = {
        name: context.stage(name)
        for asked in names
        for name in (*upstream_of(context.run_dir, context.config, asked), asked)
        if context.stage(name).is_complete
    }
    model, seed = context.resources.described.identity.parts(), context.config.seed
    wrong = []
    for name, stage in found.items():
        require_whole(stage)
        held = stage.require_complete()["sources"]
        wrong += [
            f"{name} was made with another {part}"
            for part, value in model.items()
            if held.get(part, value) != value
        ]
        made_with = stage.settings().get("seed", seed)
        if made_with != seed:
            wrong.append(f"{name} was made with seed {made_with}, not {seed}")
    wrong += foreign_sources(found)
    if wrong:
        listed = "\n".join(f"  - {line}" for line in wrong)
        raise ArtifactError(
            f"{context.run_dir.path} holds what this configuration did not make:\n{listed}\n"
            "Get the run's own stages back from a copy, name the configuration that made them, or --redo "
            "the first of these stages."
        )
