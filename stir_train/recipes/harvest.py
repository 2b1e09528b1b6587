"""Contrast right and wrong rollouts at control points."""

from __future__ import annotations

from stir_train.artifacts.run_dir import StageDir
from stir_train.distributed.leases import Note
from stir_train.harvest.contrast import contrast_rollouts
from stir_train.runtime.chunk_scheduler import make_missing
from stir_train.runtime.context import Finish, Outcome, RunContext
from stir_train.stores.contrasts import ContrastStore, candidates_file, save_contrasts
from stir_train.stores.rollouts import RolloutStore
from stir_train.stores.states import StateStore
from stir_train.types.rollout import MUCH_CUT_OFF


def run(context: RunContext, stage: StageDir) -> Finish:
    """Contrast right and wrong rollouts."""
    config = context.config
    rollouts, states = RolloutStore(context.stage("rollout")), StateStore(context.stage("rollout"))
    count = rollouts.require_complete().num_chunks()
    files = {f"{chunk:05d}": (candidates_file(chunk),) for chunk in range(count)}

    def make(key: str) -> dict[str, int]:
        chunk = int(key)
        graded = rollouts.read_chunk("", chunk)
        found = contrast_rollouts(
            graded,
            states.read_chunk("", chunk, graded),
            max_points=config.control_points.max_points,
            num_positive=config.harvest.num_positive,
            num_negative=config.harvest.num_negative,
            keep_truncated=config.harvest.keep_truncated,
            min_saving=config.harvest.min_saving,
        )
        save_contrasts(stage, chunk, found)
        return {
            "num_contrasts": len(found),
            "num_saving_tokens": int(found.saves_tokens.sum()),
            "num_problems": len(set(found.prompt_ids)),
        }

    def on_finished(key: str, note: Note) -> None:
        if note:
            context.metrics.log("harvest", note, step=int(key))

    make_missing(context, stage, files, make, on_finished)
    return lambda: _finish(context, stage)


def _finish(context: RunContext, stage: StageDir) -> Outcome:
    files = ContrastStore(stage).read()
    prompt_ids = {prompt for found in files for prompt in found.prompt_ids}
    points = {point for found in files for point in found.points.tolist()}
    num_contrasts = sum(map(len, files))
    num_saving = sum(int(found.saves_tokens.sum()) for found in files)
    return Outcome(
        {
            "num_contrasts": num_contrasts,
            "num_prompts": len(prompt_ids),
            "num_saving_tokens": num_saving,
        },
        f"{num_contrasts} contrasts ({num_saving} short against long) from {len(prompt_ids)} "
        f"problems at {len(points)} control points",
        ends_run=None if num_contrasts else _no_effect(context),
    )


def _no_effect(context: RunContext) -> str:
    """What to change where nothing can be contrasted; what was cut off is no inability."""
    found = context.stage("rollout").summary()
    count, cut_off = found["num_rollouts"], float(found["truncated_rate"])
    if cut_off >= MUCH_CUT_OFF:
        return (
            f"no effect: {round(cut_off * count)} of {count} rollouts were cut off at "
            f"generation.max_new_tokens={context.config.generation.max_new_tokens} before they ended, and "
            "count as wrong. Raise it, or see that the model's stop tokens end its answers (eos_token_id "
            f"in generation_config.json). Of all rollouts {found['correct_rate']:.1%} are correct, and "
            "there is nothing to contrast, so nothing to steer with"
        )
    return (
        f"no effect: of {count} rollouts {found['correct_rate']:.1%} are correct "
        f"({found['pass_at_n']:.1%} of the problems are solved in some sample), and no problem has "
        "samples that differ in outcome or in length at a control point. There is nothing to "
        "contrast, so nothing to steer with. Problems that the model solves sometimes, a higher "
        "rollout.temperature or more rollout.num_samples would change that"
    )
