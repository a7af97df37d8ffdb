"""The engine on a GPU: a LLaMA of 8 billion random weights in bfloat16, against the loop and against the memory's bandwidth.

Random weights cost what trained ones cost. No reply ends early, every row has a vector of its own, and the prompts are random tokens.
`tiny` is a model of four small blocks, on any device: it shows that the study runs, and its times say nothing.
"""

from __future__ import annotations

import platform
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from emosteer.engine import Decoding, Engine, Request, RowSeed
from emosteer.model.capture import capture
from emosteer.model.language_model import LanguageModel, choose_device, wrap
from emosteer.steering import Push, Steering
from engine.comparison import first_difference
from engine.measuring import spread
from engine.variants.loop import hooked, replies
from engine.work import Cell, Tokens, Work

LLAMA_8B = {
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
}
TINY = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    # With the usual one, blocks as narrow as these add next to nothing.
    "initializer_range": 0.2,
}
SPECIAL = ("<unk>", "</s>")
BUFFER_BYTES = {"cuda": 1 << 32, "cpu": 1 << 24}


@dataclass(frozen=True)
class Size:
    """How much is done."""

    cells: tuple[int, ...] = (27, 270)
    prompts: int = 16
    prompt_tokens: int = 64
    new_tokens: int = 128
    rows: int = 256
    """In a batch, where cells are mixed."""
    distinct: tuple[int, ...] = (1, 16, 64, 256)
    """Cells among those rows."""
    rounds: int = 3
    loop_cells: int = 2
    """Cells that the loop does in each round, scaled to all."""


TINY_SIZE = Size(cells=(2, 3), prompts=3, prompt_tokens=8, new_tokens=6, rows=8, distinct=(1, 8), rounds=1, loop_cells=2)


def gpu(tiny: bool, rounds: int | None = None) -> dict[str, Any]:
    """The whole study. Raises EmosteerError where there is no GPU, unless it is `tiny`."""
    device = choose_device("auto" if tiny else "cuda")
    size = Size(**{**asdict(TINY_SIZE if tiny else Size()), **({"rounds": rounds} if rounds else {})})
    model = random_model(TINY if tiny else LLAMA_8B, device)
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine(),
        "size": asdict(size),
        "cells": {n: against_the_loop(model, n, size) for n in size.cells},
        "mixture": mixture(model, size),
    }
    if device.type == "cuda":
        found["peak_memory_mib"] = torch.cuda.max_memory_allocated() / 2**20
    return found


def random_model(shape: dict[str, Any], device: torch.device) -> LanguageModel:
    """A LLaMA of a shape with random weights in bfloat16, and a tokenizer that nothing is asked of."""
    torch.manual_seed(0)
    config = LlamaConfig(**shape, bos_token_id=None, eos_token_id=1, pad_token_id=0)
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval().requires_grad_(False)
    inner = Tokenizer(models.WordLevel({token: i for i, token in enumerate(SPECIAL)}, unk_token=SPECIAL[0]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token=SPECIAL[0], eos_token=SPECIAL[1])
    return wrap("random-llama", model, tokenizer)


def _prompts(model: LanguageModel, size: Size) -> tuple[Tokens, ...]:
    generator = torch.Generator().manual_seed(1)
    vocabulary = model.model.config.vocab_size
    drawn = torch.randint(len(SPECIAL), vocabulary, (size.prompts, size.prompt_tokens), generator=generator)
    return tuple(tuple(row) for row in drawn.tolist())


@torch.no_grad()
def pushes(model: LanguageModel, prompts: Sequence[Tokens], layers: Sequence[int]) -> list[Push]:
    """A random direction for each of the given blocks, a third as long as the residual stream is there."""
    with capture(model.anatomy) as seen:
        model.model(input_ids=torch.tensor(prompts, device=model.device), use_cache=False)
    norms = [float(seen["residual", layer].float().norm(dim=-1).median()) for layer in range(model.n_blocks)]
    drawn = torch.randn(len(layers), model.width, generator=torch.Generator().manual_seed(2))
    return [Push("residual", layer, norms[layer] / 3 * row / row.norm()) for layer, row in zip(layers, drawn, strict=True)]


def _layer(number: int, model: LanguageModel) -> int:
    """All blocks in turn, but the last: a push there is nearly lost."""
    return number % max(1, model.n_blocks - 1)


def _seconds(started: float, model: LanguageModel) -> float:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter() - started


def against_the_loop(model: LanguageModel, n_cells: int, size: Size) -> dict[str, Any]:
    """Cells and prompts, every row with a vector of its own: by the engine, and some of the cells by the loop, in turn."""
    prompts = _prompts(model, size)
    rows = [(cell, prompt) for cell in range(n_cells) for prompt in range(size.prompts)]
    own = pushes(model, prompts, [_layer(cell, model) for cell, _ in rows])
    requests = _requests(prompts, [prompt for _, prompt in rows], [Steering((push,)) for push in own], size)
    sampled = spread(size.loop_cells, n_cells)
    chosen = [i for i, (cell, _) in enumerate(rows) if cell in sampled]
    vectors = {cell: torch.stack([own[i].vector for i in chosen if rows[i][0] == cell]) for cell in sampled}
    cells = [Cell(vectors[cell], _layer(cell, model)) for cell in sampled]
    work = Work("", (), prompts, size.new_tokens, tuple(sorted(model.stop_tokens)), model.pad_token_id, size.new_tokens)
    seconds: dict[str, list[float]] = {"emosteer": [], "loop": []}
    accounts = []
    for number in range(-1, size.rounds):
        _note(f"{n_cells} cells", number)
        ours, took, account = _generate(model, requests)
        started = time.perf_counter()
        theirs = [reply for cell in cells for reply in replies(model.model, work, cell, hooked)]
        scaled = _seconds(started, model) * n_cells / len(sampled)
        if number >= 0:
            seconds["emosteer"].append(took)
            seconds["loop"].append(scaled)
            accounts.append(account)
    median = {name: statistics.median(of_name) for name, of_name in seconds.items()}
    return {
        "seconds": seconds,
        "median": median,
        "loop_cells": len(sampled),
        "tokens": len(requests) * size.new_tokens,
        "ratio": median["loop"] / median["emosteer"],
        "agreement": agreement(list(zip([ours[i] for i in chosen], theirs, strict=True)), size.new_tokens),
        "accounts": accounts,
    }


def agreement(pairs: Sequence[tuple[Tokens, Tokens]], new_tokens: int) -> dict[str, float]:
    """How far replies agree, which in bfloat16 they need not: the share that is equal, and of tokens before they differ."""
    until = [first_difference(one, other) for one, other in pairs]
    return {
        "equal": sum(position is None for position in until) / len(pairs),
        "tokens_before_a_difference": statistics.mean(new_tokens if p is None else p for p in until) / new_tokens,
    }


def mixture(model: LanguageModel, size: Size) -> dict[str, Any]:
    """A batch full of rows, of one cell up to as many as rows: the slowdown, and the share of the memory's bandwidth at the most."""
    prompts = _prompts(model, size)
    own = pushes(model, prompts, [_layer(number, model) for number in range(max(size.distinct))])
    steerings = [Steering((push,)) for push in own]
    shown = [row % size.prompts for row in range(size.rows)]
    runs: dict[int, list[dict[str, Any]]] = {n: [] for n in size.distinct}
    widths: list[float] = []
    for number in range(-1, size.rounds):
        _note("mixture", number)
        widths.append(bandwidth(model.device))
        for n in size.distinct[:: -1 if number % 2 else 1]:
            requests = _requests(prompts, shown, [steerings[row % n] for row in range(size.rows)], size)
            _, took, account = _generate(model, requests, size.rows)
            if number >= 0:
                runs[n].append({"seconds": took, "account": account})
    median = {n: statistics.median(run["seconds"] for run in of_n) for n, of_n in runs.items()}
    least = least_bytes(model, size)
    accounts = [run["account"] for run in runs[max(size.distinct)]]
    # NaN where the engine has not counted them.
    step = statistics.median(account["decode_seconds"] / max(1, account["steps"]) for account in accounts) or float("nan")
    best = max(widths)
    return {
        "runs": runs,
        "median": median,
        "slowdown": {n: seconds / median[min(size.distinct)] for n, seconds in median.items()},
        "bandwidth": best,
        "step_seconds": step,
        "least_bytes": least,
        "share_of_bandwidth": {what: n_bytes / best / step for what, n_bytes in least.items()},
    }


def least_bytes(model: LanguageModel, size: Size) -> dict[str, float]:
    """Bytes that a step must read from memory: the weights, and with them the keys and values at the middle of a reply.

    A prompt's keys and values are counted once, a reply's for each row.
    """
    config = model.model.config
    linear = [module for module in model.model.modules() if isinstance(module, torch.nn.Linear)]
    weights = sum(module.weight.numel() * module.weight.element_size() for module in linear)
    position = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * model.dtype.itemsize
    read = size.prompts * size.prompt_tokens + size.rows * size.new_tokens / 2
    return {"weights": weights, "weights, keys and values": weights + position * read}


def bandwidth(device: torch.device) -> float:
    """Bytes of memory that a copy reads and writes in a second: the fastest of ten."""
    n_bytes = BUFFER_BYTES.get(device.type, BUFFER_BYTES["cpu"])
    source = torch.ones(n_bytes // 4, device=device)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(10):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        started = time.perf_counter()
        target.copy_(source)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return 2 * n_bytes / min(seconds)


def _requests(prompts: Sequence[Tokens], shown: Sequence[int], steerings: Sequence[Steering], size: Size) -> list[Request]:
    decoding = Decoding(max_new_tokens=size.new_tokens, min_new_tokens=size.new_tokens)
    rows = zip(shown, steerings, strict=True)
    return [Request(prompts[prompt], RowSeed(0, str(prompt), 0), steering, decoding) for prompt, steering in rows]


def _generate(
    model: LanguageModel, requests: Sequence[Request], batch_rows: int | None = None
) -> tuple[list[Tokens], float, dict[str, Any]]:
    """Replies in order, the seconds that they took, and the account of the engine, which is a new one."""
    engine = Engine(model, batch_rows=batch_rows)
    started = time.perf_counter()
    found = dict(engine.generate(requests))
    took = _seconds(started, model)
    return [found[i].tokens for i in range(len(requests))], took, asdict(engine.account)


def _note(what: str, number: int) -> None:
    print(f"{what}: {'rehearsal' if number < 0 else f'round {number + 1}'}", file=sys.stderr, flush=True)
