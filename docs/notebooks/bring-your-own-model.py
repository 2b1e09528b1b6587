# %% [markdown]
# # Bring your own model
#
# A directory with a model, a file with problems, a configuration of a dozen lines: that is a run. Here the
# model is a copy of the tiny one that comes with the package, so that every cell runs in seconds on a CPU. Put the
# path or the hub id of yours in its place; [Steer a real model](../real-model.md) says what then
# takes how long.

# %%
import json
import shutil
from pathlib import Path

from stir_train.cli import app


def stir_train(*arguments: str) -> None:
    """What `stir-train ...` does in a shell."""
    app(list(arguments), standalone_mode=False)


# %% [markdown]
# ## A model and problems
#
# Any directory that `transformers` loads as a causal language model will do. Problems are JSON lines with a
# question and an answer.

# %%
from stir_train.models.locate import resolve_model_path

shutil.copytree(resolve_model_path("embedded/addition"), "my-model", dirs_exist_ok=True)
stir_train("tiny", "problems", "problems.jsonl", "--problems", "72")
print(Path("problems.jsonl").read_text().splitlines()[0])

# %% [markdown]
# ## A configuration
#
# `stir-train init my-model problems.jsonl` writes one with reasons. This one is cut down as far as it goes: it
# takes the settings of the controller as given, where a real run tries several on the tune split.

# %%
Path("mine.yaml").write_text(
    """\
name: mine
num_threads: 1
model: {name: my-model}
task: {name: mine, source: problems.jsonl}
splits: {num_harvest: 24, num_tune: 16, num_test: 24}
generation: {max_new_tokens: 128}
rollout: {num_samples: 4}
harvest: {depths: [0.6, 0.8]}
basis: {size: 48, min_per_point: 2}
validation: {enabled: false}
value: {num_steps: 150, num_members: 2, hidden_width: 32}
steering: {mode: value, depth: 0.6, strength: 3.0}
tune: {enabled: false}
distill: {enabled: false}
evaluate: {controls: false, num_bootstrap: 200}
"""
)
stir_train("data", "mine.yaml")

# %% [markdown]
# `data` shows what the model will be asked and how the problems are divided, and loads no weights. Look at the
# prompt: a missing chat template or a wrong answer marker is seen here.
#
# ## The run

# %%
stir_train("run", "mine.yaml")

# %% [markdown]
# Twenty-four test problems decide nothing: the interval of the difference is wide, and the table says so. What matters
# here is the path. The same command again does nothing, and after a kill it goes on where it stopped.
#
# ## In your own `generate`
#
# The run directory is all that is needed to steer the model in your own code.

# %%
from transformers import AutoModelForCausalLM, AutoTokenizer

from stir_train.steering.attach import steering

model = AutoModelForCausalLM.from_pretrained("my-model")
tokenizer = AutoTokenizer.from_pretrained("my-model")
question = json.loads(Path("problems.jsonl").read_text().splitlines()[0])["question"]
inputs = tokenizer(question, return_tensors="pt")

with steering(model, tokenizer, "runs/mine") as decisions:
    made = model.generate(inputs["input_ids"], max_new_tokens=128, do_sample=False)
print(tokenizer.decode(made[0], skip_special_tokens=True))
print(f"{sum(d.strength > 0 for d in decisions)} impulses at {len(decisions)} control points")
