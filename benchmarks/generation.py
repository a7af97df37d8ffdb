"""Generation of a sweep against what people do today, in one run: the same cells, prompts and tokens, compared before times are told.

    python benchmarks/generation.py [STUDY] [--rounds N] [--threads N] [--json FILE] ...

table     27 cells and the baseline x 16 prompts x 40 new tokens of SmolLM2-135M in float32, by
          - emosteer,
          - a loop over cells with a hook on `generate`, and steering-vectors and repeng in that loop,
          - a process for each cell (of some cells, scaled),
          and in the same rounds the machine's own matrix products and memory at these shapes, and the whole command. The default: a
          quarter of an hour a round on two cores; with --loop-cells 7 a third of that
long      prompts of 200 tokens, against the loop on 7 cells, scaled
scope     scope `all`, against the loop on 7 cells, scaled
cells     the cost against the number of cells, 1 to 300
lengths   ... against the length of the prompts, 50 to 1,000 tokens
rows      ... against the rows in a batch, 16 to 512
mixture   256 distinct cells in a batch, against one cell 256 times
command   the whole command alone: how much of its wall clock is not the model's arithmetic
gpu       8 billion random weights in bfloat16 on a GPU, 27 and 270 cells, 128 new tokens; --tiny tries the code on any machine

Every variant has a process of its own, with the same threads; its seconds are of prefill and decoding, with model, vectors and norms
at hand. They take turns in each round, and medians are told. steering-vectors and repeng get an environment of their own each, with
versions that they accept, built once in the cache (`EMOSTEER_CACHE`). Ends with 1 where one cannot be built, a variant fails, or
replies differ by more than a tie of two logits.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from engine import studies
from engine.comparison import DifferentWorkError
from engine.environments import EnvironmentNotBuiltError, interpreter
from engine.gpu import gpu
from engine.player import EMOSTEER, VARIANTS, PlayerFailedError
from engine.studies import Options
from engine.tables import TABLES

from emosteer.cores import prepare_openmp
from emosteer.errors import EmosteerError

PEERS = tuple(VARIANTS)
STUDIES: dict[str, tuple[Callable[[Options], dict[str, Any]], Options]] = {
    "table": (studies.table, Options(variants=PEERS, commands=True)),
    "long": (studies.lengths, Options(loop_cells=7, points=(200,))),
    "scope": (studies.table, Options(loop_cells=7, scope="all")),
    "cells": (studies.cells, Options(prompts=8, new_tokens=20, rounds=1, loop_cells=2, points=(1, 3, 10, 30, 100, 300))),
    "lengths": (studies.lengths, Options(rounds=1, loop_cells=2, points=(50, 100, 200, 500, 1000))),
    "rows": (studies.rows, Options(new_tokens=20, rounds=1, points=(16, 32, 64, 128, 256, 512))),
    "mixture": (studies.mixture, Options(rounds=5, points=(256,))),
    "command": (studies.whole_command, Options(rounds=1)),
}
"""Each with what it does if nothing else is said."""
QUICK_POINTS = {"long": (200,), "cells": (1, 2), "lengths": (200,), "rows": (4, 8), "mixture": (8,)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a study, print its table, and write what it found."""
    given = _given(arguments)
    # Goes to all variants alike, with this process's environment.
    prepare_openmp()
    try:
        found = gpu(given.tiny, given.rounds) if given.study == "gpu" else _measured(given)
    except (EnvironmentNotBuiltError, DifferentWorkError, EmosteerError, PlayerFailedError) as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from None
    found = {"study": given.study, "machine": machine(given.threads), **found}
    print("\n".join(TABLES[given.study](found)))
    print(f"\n{found['machine']}")
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _measured(given: argparse.Namespace) -> dict[str, Any]:
    study, options = STUDIES[given.study][0], options_of(given)
    for name in options.variants:
        # Before anything is measured.
        if library := VARIANTS[name].environment:
            interpreter(library)
    return study(options)


def _given(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", nargs="?", default="table", choices=[*STUDIES, "gpu"])
    parser.add_argument("--quick", action="store_true", help="two cells, four prompts, eight tokens, one round: a smoke test")
    parser.add_argument("--rounds", type=int, help="how often each variant does its work")
    parser.add_argument(
        "--threads", type=int, default=len(os.sched_getaffinity(0)), help="of torch, in every process; default: all cores"
    )
    parser.add_argument("--variants", type=_words, help=f"beside emosteer, of {', '.join(PEERS[1:])}")
    parser.add_argument("--loop-cells", type=int, help="cells that the loops do, spread over all and scaled; 0: all")
    parser.add_argument("--processes", type=int, help="cells that get a process each, scaled; 0: all")
    parser.add_argument("--points", type=_numbers, help="of the study's own axis")
    parser.add_argument("--layers", type=_numbers)
    parser.add_argument("--coefficients", type=lambda text: tuple(map(float, text.split(","))), help="in residual norms")
    parser.add_argument("--prompts", type=int)
    parser.add_argument("--new-tokens", type=int)
    parser.add_argument(
        "--commands", action=argparse.BooleanOptionalAction, help="run the whole command in each round of the table too"
    )
    parser.add_argument("--model", help="a model's directory instead of SmolLM2; its blocks must be at `get_decoder().layers`")
    parser.add_argument("--tiny", action="store_true", help="of the GPU study: a tiny model, on any device")
    parser.add_argument("--json", type=Path, help="write all figures there too")
    return parser.parse_args(arguments)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


def _words(text: str) -> tuple[str, ...]:
    if unknown := set(names := tuple(filter(None, text.split(",")))) - set(PEERS[1:]):
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: choose of {', '.join(PEERS[1:])}")
    return (EMOSTEER, *names)


def options_of(given: argparse.Namespace) -> Options:
    """A study's own options, with what was given instead."""
    options = STUDIES[given.study][1]
    if given.quick:
        points = QUICK_POINTS.get(given.study, ())
        options = replace(
            options, layers=(1,), coefficients=(0.2, 0.3), prompts=4, new_tokens=8, rounds=1, processes=1, points=points
        )
        options = replace(options, commands=False)
    names = (
        "rounds",
        "threads",
        "variants",
        "loop_cells",
        "processes",
        "points",
        "layers",
        "coefficients",
        "prompts",
        "new_tokens",
        "commands",
        "model",
    )
    return replace(options, **{name: value for name in names if (value := getattr(given, name)) is not None})


def machine(threads: int) -> dict[str, Any]:
    """What the figures were measured on."""
    info = Path("/proc/cpuinfo")
    names = (
        [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    return {
        "processor": names[0] if names else platform.processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": threads,
        "load": os.getloadavg(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


if __name__ == "__main__":
    main()
