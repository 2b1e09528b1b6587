"""Decoding a real model beside transformers and vLLM; `decode.py --model` prints it.

The same prompts, rows, dtype (bfloat16) and number of new tokens for all: nothing stops early. Engines take
turns in one process on one thread, and a ratio is the median of those within a turn. Time is the processor's,
which other work on the machine changes little; on a GPU it is the wall's.

vLLM takes part where it can be imported, so start this with the Python that has it, and with its engine in
the same process: ``VLLM_ENABLE_V1_MULTIPROCESSING=0 VLLM_CPU_KVCACHE_SPACE=2 python benchmarks/decode.py ...``.
"""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from transformers import GenerationConfig

from stir_train.config.inputs import ModelConfig
from stir_train.generation.backend import GenerationRequest, SamplingParams
from stir_train.generation.transformers.engine import DecodeEngine
from stir_train.models.load import LoadedModel, load_model
from stir_train.types.rollout import Prompt

OURS = "stir_train"
MODES = {"greedy": (0.0, 1.0), "sampled": (0.7, 0.95)}
"""Temperature and top-p."""

Decode = Callable[[], int]
"""Decodes every prompt; the number of tokens made."""


def table(model: str, *, device: str, rows: int, new_tokens: int, repeats: int) -> None:
    """Print tokens a second of every engine, greedy and sampled, and how they compare."""
    torch.set_num_threads(1)
    loaded = load_model(ModelConfig(name=model, device=device, dtype="bfloat16"))
    prompts = word_problems(loaded, rows)
    engines: dict[str, Callable[[SamplingParams], int]] = {
        OURS: partial(_ours, DecodeEngine(loaded, max_rows=rows), prompts),
        "transformers": partial(_transformers, loaded, prompts),
    }
    if importlib.util.find_spec("vllm") is None:
        print("vllm is not installed beside this Python, and left out")
    else:
        engines["vllm"] = partial(_vllm, _open_vllm(model, rows, loaded.max_tokens), prompts)
    print(
        f"{model}, bfloat16, {device}, one thread; {rows} rows, {new_tokens} new tokens each, "
        f"{repeats} turns after one that is not counted"
    )
    rates: dict[tuple[str, str], list[float]] = {(e, m): [] for e in engines for m in MODES}
    for turn in range(repeats + 1):
        for mode, (temperature, top_p) in MODES.items():
            sampling = SamplingParams(new_tokens, (), temperature=temperature, top_p=top_p)
            for name, decode in engines.items():
                rate = _rate(partial(decode, sampling), device)
                if turn:
                    rates[name, mode].append(rate)
    print(
        f"{'tokens a second':16}" + "".join(f"{mode:>10}" for mode in MODES) + "   sampled/greedy"
    )
    for name in engines:
        middle = [statistics.median(rates[name, mode]) for mode in MODES]
        share = _ratio(rates[name, "sampled"], rates[name, "greedy"])
        print(f"{name:16}" + "".join(f"{rate:10.1f}" for rate in middle) + f"{share:17.2f}")
    for other in engines:
        if other != OURS:
            ratios = [f"{_ratio(rates[OURS, m], rates[other, m]):.2f}x {m}" for m in MODES]
            print(f"{OURS} / {other}: {', '.join(ratios)}")


def word_problems(loaded: LoadedModel, count: int) -> list[Prompt]:
    """Short problems of different lengths."""
    texts = [
        f"A farmer has {i + 3} cows, buys {2 * i + 5} and sells {i + 1}."
        + " It rains." * (i % 8)
        + " How many cows are there? Think step by step."
        for i in range(count)
    ]
    return [
        Prompt(str(i), text, text, tuple(loaded.tokenizer(text)["input_ids"]), "")
        for i, text in enumerate(texts)
    ]


def _rate(decode: Decode, device: str) -> float:
    """Tokens a second."""
    if device != "cpu":
        torch.cuda.synchronize()
        start = time.perf_counter()
        made = decode()
        torch.cuda.synchronize()
        return made / (time.perf_counter() - start)
    start = time.process_time()
    made = decode()
    return made / (time.process_time() - start)


def _ratio(one: list[float], other: list[float]) -> float:
    """The median of ratios within turns."""
    return statistics.median(a / b for a, b in zip(one, other, strict=True))


def _ours(engine: DecodeEngine, prompts: list[Prompt], sampling: SamplingParams) -> int:
    made = engine.generate([GenerationRequest(p) for p in prompts], sampling, seed=0)
    return sum(len(rollout.token_ids) for rollout in made.rollouts)


@torch.no_grad()
def _transformers(loaded: LoadedModel, prompts: list[Prompt], sampling: SamplingParams) -> int:
    """One batch, padded on the left."""
    width = max(len(p.token_ids) for p in prompts)
    ids = torch.tensor([[0] * (width - len(p.token_ids)) + [*p.token_ids] for p in prompts])
    mask = torch.tensor(
        [[0] * (width - len(p.token_ids)) + [1] * len(p.token_ids) for p in prompts]
    )
    options: dict[str, Any] = {"do_sample": False}
    if sampling.temperature:
        options = {"do_sample": True, "temperature": sampling.temperature, "top_k": 0}
        options["top_p"] = sampling.top_p
    output = loaded.model.generate(
        input_ids=ids.to(loaded.device),
        attention_mask=mask.to(loaded.device),
        generation_config=GenerationConfig(
            max_new_tokens=sampling.max_new_tokens,
            min_new_tokens=sampling.max_new_tokens,
            pad_token_id=0,
            **options,
        ),
    )
    return int(output[:, width:].numel())


def _open_vllm(model: str, rows: int, max_tokens: int) -> Any:
    from vllm import LLM, envs  # noqa: PLC0415 - it is not always there

    if envs.VLLM_ENABLE_V1_MULTIPROCESSING:
        raise SystemExit("set VLLM_ENABLE_V1_MULTIPROCESSING=0: another process's time is not seen")
    return LLM(
        model=model, dtype="bfloat16", max_num_seqs=rows, max_model_len=min(max_tokens, 4096)
    )


def _vllm(llm: Any, prompts: list[Prompt], sampling: SamplingParams) -> int:
    import vllm  # noqa: PLC0415

    torch.set_num_threads(1)
    made = llm.generate(
        [{"prompt_token_ids": list(p.token_ids)} for p in prompts],
        vllm.SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_new_tokens,
            ignore_eos=True,
        ),
        use_tqdm=False,
    )
    return sum(len(answer.outputs[0].token_ids) for answer in made)
