"""What a person reads: Markdown tables of what the studies found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from engine.comparison import TIE
from engine.player import EMOSTEER, LOOP, PROCESS, VARIANTS

Found = dict[str, Any]
GOALS: dict[str, dict[str, float]] = {
    "table": {PROCESS: 9.0, LOOP: 4.2, "steering-vectors": 5.0, "repeng": 5.0},
    "scope": {LOOP: 2.0},
    "long": {LOOP: 6.0},
}
"""Study -> how many times as long as emosteer a variant should take at least, for the study's own work on a CPU."""


def table(found: Found) -> Iterator[str]:
    """The main table, the roofline, and the whole command."""
    yield from _variants(found)
    yield from _roofline(found["roofline"])
    if "command" in found:
        loop = found["variants"].get(LOOP, {}).get("median")
        yield from command(found, loop)


def _variants(found: Found) -> Iterator[str]:
    work, variants = found["work"], found["variants"]
    ours = variants[EMOSTEER]["median"]
    yield _work_line(work)
    yield ""
    yield "| variant | s | tokens/s | times as long | goal | replies that differ | peak memory, MiB |"
    yield "|---|---|---|---|---|---|---|"
    for name, one in variants.items():
        label = _label(name, one)
        goal = _goal(found, name)
        told = (label, _seconds(one), f"{one['tokens_per_second']:.0f}", f"{one['median'] / ours:.2f}", goal)
        yield f"| {' | '.join(told)} | {len(one['differences'])} | {one['memory_mib']:.0f} |"
    if gaps := [one["gap"] for of_variant in variants.values() for one in of_variant["differences"]]:
        yield ""
        yield f"Replies that differ do so from a tie on: two logits at most {max(gaps):.1e} apart (a tie is under {TIE:.0e})."
    setup = [more["setup_seconds"] for more in variants[EMOSTEER]["more"]]
    account = variants[EMOSTEER]["more"][-1]["account"]
    yield ""
    path = f"path `{account['path']}` ({account['reason']})"
    yield f"emosteer: {path}, batches of {account['batch_rows']} rows; setting up an engine took {max(setup):.2f} s besides."


def _goal(found: Found, variant: str) -> str:
    goal = GOALS.get(found.get("study", ""), {}).get(variant)
    return "" if goal is None else f"{goal:g}"


def _label(name: str, one: Found) -> str:
    versions = one["versions"]
    shown = [f"{library} {version}" for library, version in versions.items() if library not in ("torch", "emosteer")]
    return VARIANTS[name].label + (f" ({', '.join(shown)})" if shown else "")


def _work_line(work: Found) -> str:
    size = f"{work['cells']} cells and the baseline x {work['prompts']} prompts x {work['new_tokens']} new tokens"
    return f"{size}, prompts of {work['prompt_tokens']:.0f} tokens in the mean, scope {work['scope']}, float32"


def _roofline(roofline: Found) -> Iterator[str]:
    yield ""
    yield (
        f"Decoding: {roofline['decode_seconds']:.1f} s for {roofline['steps']} steps of {roofline['rows']} rows in the mean "
        f"(reading prompts: {roofline['prefill_seconds']:.1f} s)."
    )
    yield (
        f"The machine's own matrix products at these shapes reach {roofline['gflop_per_second']:.0f} GFLOP/s, reading memory "
        f"{roofline['gigabytes_per_second']:.1f} GB/s: the steps cannot take less than {roofline['least_seconds']:.1f} s, "
        f"{roofline['share']:.0%} of what they took (goal: 80 %). That counts the blocks of every row, of which "
        f"{roofline['share_spared']:.0%} were run for another row with the same history."
    )


def command(found: Found, loop: float | None = None) -> Iterator[str]:
    """The whole command's seconds, and what they went to."""
    told = found["command"]
    yield ""
    yield f"The whole command, `emosteer -m {' '.join(told['line'])}`, everything included: {told['seconds']:.1f} s."
    if loop:
        yield f"The loop, which does nothing but generate, took {loop / told['seconds']:.2f} times as long (goal: 2.5)."
    yield ""
    yield "| of these | s |"
    yield "|---|---|"
    for part, seconds in told["arithmetic"].items():
        yield f"| the model: {part} | {seconds:.1f} |"
    yield f"| all else | {told['seconds'] - sum(told['arithmetic'].values()):.1f} ({told['overhead']:.0%}) |"
    yield ""
    yield f"What the command says of itself: {'; '.join(told['runs'][-1]['took'])}"


def curve(found: Found, axis: str) -> Iterator[str]:
    """A line for each point, against the loop."""
    yield _work_line(next(iter(found["points"].values()))["work"])
    yield ""
    yield f"| {axis} | emosteer, s | tokens/s | the loop, s | times as long | peak memory, MiB |"
    yield "|---|---|---|---|---|---|"
    for point, one in found["points"].items():
        ours, loop = one["variants"][EMOSTEER], one["variants"][LOOP]
        told = (_seconds(ours), f"{ours['tokens_per_second']:.0f}", _seconds(loop), f"{loop['median'] / ours['median']:.2f}")
        yield f"| {point} | {' | '.join(told)} | {ours['memory_mib']:.0f} |"
    if goal := _goal(found, LOOP):
        yield ""
        yield f"Goal: {goal} times as long."


def _seconds(one: Found) -> str:
    """A variant's median. Scaled seconds are an estimate, and say so."""
    return f"{one['median']:.1f}" + (f" ({1 / one['scale']:.0%} of the cells, scaled)" if one["scale"] > 1 else "")


def rows(found: Found) -> Iterator[str]:
    """A line for each number of rows."""
    yield _work_line(found["work"])
    yield ""
    yield "| rows in a batch | s | tokens/s | peak memory so far, MiB |"
    yield "|---|---|---|---|"
    for point, one in found["points"].items():
        yield f"| {point} | {one['median']:.1f} | {one['tokens_per_second']:.0f} | {one['runs'][0]['memory_mib']:.0f} |"


def mixture(found: Found) -> Iterator[str]:
    """One batch of distinct cells against one of the same."""
    work, runs, ratios = found["work"], found["runs"], found["ratios"]
    yield f"One batch of {work['rows']} rows, {work['prompts']} prompts, {work['new_tokens']} new tokens each, float32"
    yield ""
    yield "| cells in the batch | s | tokens/s |"
    yield "|---|---|---|"
    for label, name in ((1, "repeated"), (work["rows"], "distinct")):
        yield f"| {label} | {runs[name]['median']:.2f} | {runs[name]['tokens_per_second']:.0f} |"
    yield ""
    spread = f"{100 * (min(ratios) - 1):+.1f} to {100 * (max(ratios) - 1):+.1f} %"
    yield f"Distinct cells cost {100 * (found['ratio'] - 1):+.1f} % (median of {len(ratios)} pairs, {spread}; goal: at most 2 %)."


def gpu(found: Found) -> Iterator[str]:
    """The GPU study."""
    size, mixed = found["size"], found["mixture"]
    lengths = f"{size['prompts']} prompts of {size['prompt_tokens']} tokens x {size['new_tokens']} new tokens, bfloat16"
    yield f"{found['device']}: {lengths}, a vector for each row"
    yield ""
    yield "| cells | emosteer, s | tokens/s | the loop (scaled), s | times as long (goal: 10) | equal replies | equal until then |"
    yield "|---|---|---|---|---|---|---|"
    for n, one in found["cells"].items():
        ours, loop = one["median"]["emosteer"], one["median"]["loop"]
        agreed = [f"{share:.0%}" for share in one["agreement"].values()]
        told = [f"{ours:.2f}", f"{one['tokens'] / ours:.0f}", f"{loop:.1f}", f"{one['ratio']:.1f}", *agreed]
        yield f"| {n} | {' | '.join(told)} |"
    yield ""
    yield f"| distinct cells in a batch of {size['rows']} rows | s | slowdown |"
    yield "|---|---|---|"
    for n, seconds in mixed["median"].items():
        yield f"| {n} | {seconds:.2f} | {mixed['slowdown'][n]:.3f} |"
    yield ""
    shares = ", ".join(f"{share:.0%} counting {what}" for what, share in mixed["share_of_bandwidth"].items())
    step = f"a step takes {1000 * mixed['step_seconds']:.2f} ms"
    yield f"Memory: {mixed['bandwidth'] / 1e9:.0f} GB/s; {step}: {shares} (goal: 60 %)."


TABLES: dict[str, Callable[[Found], Iterator[str]]] = {
    "table": table,
    "long": lambda found: curve(found, "tokens in a prompt"),
    "scope": table,
    "cells": lambda found: curve(found, "cells"),
    "lengths": lambda found: curve(found, "tokens in a prompt"),
    "rows": rows,
    "mixture": mixture,
    "command": command,
    "gpu": gpu,
}
