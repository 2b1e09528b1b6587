# %% [markdown]
# # What the controller does to one problem
#
# A completion has control points, where a step of the reasoning ends. At each of them the controller looks at the model's
# state, retrieves entries of the control basis by their keys, asks the value head what each would be worth, and
# injects the best one if it beats doing nothing. This page follows that through one problem, on the run of
# [Bring your own model](bring-your-own-model.md).

# %%
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from stir_train.artifacts.run_dir import RunDir
from stir_train.models.identity import identify_model
from stir_train.steering.artifacts import open_run_artifacts
from stir_train.steering.attach import steering
from stir_train.stores.rollouts import RolloutStore

RUN = Path("runs/mine")
model = AutoModelForCausalLM.from_pretrained("my-model")
tokenizer = AutoTokenizer.from_pretrained("my-model")

# %% [markdown]
# ## What there is to steer with
#
# A basis entry is a direction in the residual stream after one block, with the key by which it is found. Directions come
# from contrasts: the mean state of right rollouts less that of wrong ones, at the same control point of the same
# problem.

# %%
artifacts = open_run_artifacts(RUN, identify_model(model, tokenizer))
settings = artifacts.choice()
basis = artifacts.basis()
print(settings)
for name, tensor in vars(basis).items():
    print(f"{name:<14} {tuple(tensor.shape)}")

# %% [markdown]
# ## A problem on which they differ
#
# The evaluation has kept every answer. Take the first test problem whose steered answer is not the greedy one.

# %%
answers = RolloutStore(RunDir(RUN).stage("evaluate"))
pairs = list(zip(answers.read("greedy"), answers.read("stir"), strict=True))
changed = [pair for pair in pairs if pair[0].rollout.token_ids != pair[1].rollout.token_ids]
print(f"{len(changed)} of {len(pairs)} answers differ")
greedy, steered = changed[0] if changed else pairs[0]
print(tokenizer.decode(steered.rollout.prompt_token_ids))
for name, answer in (("greedy", greedy), ("steered", steered)):
    print(f"--- {name}: {answer.grade.reason}, {len(answer.rollout.token_ids)} tokens")
    print(answer.text)

# %% [markdown]
# ## Every decision
#
# `steering` follows `model.generate` and notes what is decided. `null` is the worth of doing nothing, in the
# units of the value head; an entry is injected where its worth is higher.

# %%
prompt = torch.tensor([steered.rollout.prompt_token_ids])
with steering(model, tokenizer, RUN) as decisions:
    made = model.generate(prompt, max_new_tokens=128, do_sample=False)
for decision in decisions:
    best = max(decision.scores, default=float("nan"))
    did = (
        f"entry {decision.chosen} x {decision.strength:.1f}" if decision.strength else "left alone"
    )
    print(
        f"point {decision.point:>2}, token {decision.token_index:>3}, block {decision.block}: "
        f"null {decision.null_score:+.3f}, best {best:+.3f}: {did}"
    )

# %% [markdown]
# ## The same text, cut at the impulses

# %%
completion, start = made[0, prompt.shape[1] :].tolist(), 0
for decision in (d for d in decisions if d.strength):
    print(tokenizer.decode(completion[start : decision.token_index + 1]).rstrip())
    print(f"    ^ {decision.strength:+.1f} x entry {decision.chosen} into block {decision.block}")
    start = decision.token_index + 1
print(tokenizer.decode(completion[start:], skip_special_tokens=True))

# %% [markdown]
# The tokens are those of the run's own engine: what was evaluated is what you get.

# %%
ended = steered.rollout.token_ids
print(tuple(completion[: len(ended)]) == ended)
