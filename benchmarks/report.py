"""How large the report of a large sweep is, and how long it takes: to write, to open in a browser, and to use.

    python benchmarks/report.py [--cells 1000] [--replies 100000] [--keep FILE]

The sweep's tables are made up: cells over five pairs, twenty blocks and ten coefficients, a random control for each block and
coefficient, every number random (which compresses worst), replies of 40 words drawn word by word from the shipped texts. The browser
is Debian's chromium (scripts/browser.sh), headless; seconds in the page count from the moment at which the file is opened.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from playwright.sync_api import Page, sync_playwright

from emosteer.config import METRICS, ModelConfig
from emosteer.datasets import SHIPPED
from emosteer.records.cell import CELL, Cell, ModelSpec, PairSpec, VectorSpec
from emosteer.records.store import Store
from emosteer.records.sweep import DONE, Command, Sweep, Task
from emosteer.report.grid import MEASURES
from emosteer.report.page import render
from emosteer.tables import Tables

PAIRS = ("joy_sadness", "trust_disgust", "anger_fear", "anticipation_surprise", "love_hate")
BLOCKS = 20
WORDS = 40


def main() -> None:
    """Make a sweep up, write its report, open it, and print the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", default=1000, type=int)
    parser.add_argument("--replies", default=100_000, type=int)
    parser.add_argument("--keep", type=Path, help="keep the page there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        sweep, tables = made_up(Path(directory), options.cells, max(options.replies // options.cells, 1))
        started, spent = time.perf_counter(), time.process_time()
        page = render(sweep, tables, most_replies=10**9)
        took, worked = time.perf_counter() - started, time.process_time() - spent
        print(f"{options.cells:,} cells, {len(tables.replies):,} replies: written in {took:.1f} s, of which {worked:.1f} s of a CPU")
        print(f"size: {len(page) / 1e6:.1f} MB, of which replies {part(page, 'data-replies') / 1e6:.1f}, numbers ", end="")
        print(f"{part(page, 'data-grid') / 1e6:.1f}, plotly {part(page, 'data-plotly') / 1e6:.1f}")
        path = options.keep or Path(directory, "report.html")
        path.write_bytes(page)
        for told, seconds in used(path):
            print(f"{told}: {seconds:.2f} s")


def part(page: bytes, name: str) -> int:
    """Bytes of one of the page's data."""
    begin = page.index(f'id="{name}"'.encode())
    return page.index(b"</script>", begin) - begin


def used(path: Path) -> Iterator[tuple[str, float]]:
    """What a reader does -> seconds until it is there."""
    program = shutil.which("chromium")
    if program is None:
        raise SystemExit("no chromium: scripts/browser.sh installs it")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(300_000)
        session = page.context.new_cdp_session(page)
        session.send("Performance.enable")
        started = time.perf_counter()
        page.goto(path.as_uri())
        for what in ("maps", "replies", "charts"):
            page.wait_for_selector(f"html[data-{what}=ready]", state="attached")
            yield f"opened, {what}", time.perf_counter() - started
        found = {one["name"]: one["value"] for one in session.send("Performance.getMetrics")["metrics"]}
        yield "CPU of the page's process until then", found["ProcessTime"]
        yield "another metric, heatmap", chosen(page, "metric", "first_person")
        page.wait_for_selector("html[data-charts=ready]", state="attached")
        yield "replies of one block", chosen(page, "reply-layer", "7")
        yield "replies of all blocks", chosen(page, "reply-layer", "")
        yield "replies by cost", chosen(page, "reply-order", "cost")
        memory = page.evaluate("performance.memory.usedJSHeapSize")
        print(f"memory of the page's script: {memory / 1e6:.0f} MB")
        browser.close()


def chosen(page: Page, select: str, value: str) -> float:
    """Seconds that the page's script works after a choice."""
    script = """([id, value]) => {
      const select = document.getElementById(id), started = performance.now();
      select.value = value;
      select.dispatchEvent(new Event('change', {bubbles: true}));
      return (performance.now() - started) / 1000;
    }"""
    return float(page.evaluate(script, [select, value]))


def made_up(root: Path, n_cells: int, n_prompts: int) -> tuple[Sweep, Tables]:
    """A sweep whose cells are written down, and tables of them without any truth."""
    sweep = Sweep(root / "large", Store(root / "store"))
    cells = [cell_of(number) for number in range(n_cells)]
    controls = {cell.control(0).id: cell.control(0) for cell in cells}
    everything = [*cells, *controls.values(), cells[0].baseline()]
    settings = {"scorers": {}, "statistics": {}, "tracking": {"name": "none"}, "engine": {}, "worker": {}}
    sweep.add(Command(["emosteer", "-m"], settings, {"host": "here"}, [Task(cell) for cell in everything]))
    results = results_of(cells, list(controls.values()), n_prompts)
    replies = replies_of([*cells, cells[0].baseline()], n_prompts)
    empty = pd.DataFrame()
    return sweep, Tables(results, replies, empty, states={cell.id: DONE for cell in everything})


def cell_of(number: int) -> Cell:
    """One point of a grid over pairs, blocks and coefficients."""
    pair = PAIRS[number % len(PAIRS)]
    target, counterpart = pair.split("_")
    place = number // len(PAIRS)
    return Cell(
        CELL,
        ModelSpec(ModelConfig(name="made-up", path="/nowhere"), "sha256:made-up", BLOCKS),
        prompts="prompts",
        prompts_name="made-up",
        pair=PairSpec(
            pair, target, counterpart, target if target in METRICS else "positive", f"texts of {pair}", f"diagnostics of {pair}"
        ),
        vector=VectorSpec("mean_difference", f"texts of {pair}"),
        neutral="neutral",
        layers=(place % BLOCKS,),
        coefficient=round(0.02 * (1 + place // BLOCKS), 2),
    )


def results_of(cells: Sequence[Cell], controls: Sequence[Cell], n_prompts: int) -> pd.DataFrame:
    """A row per cell and control, with every number that there may be."""
    chance = np.random.default_rng(0)
    axes = pd.DataFrame([axes_of(cell, n_prompts) for cell in (*cells, *controls)])
    names = [f"{metric}_{measure}" for metric in METRICS for measure in MEASURES]
    numbers = pd.DataFrame({name: numbers_of(name, chance, len(axes)) for name in names})
    ratio = pd.Series(1 + chance.random(len(axes)), name="perplexity_ratio")
    return pd.concat([axes, numbers, ratio], axis=1)


def numbers_of(name: str, chance: np.random.Generator, n: int) -> Any:
    return chance.random(n) if name.endswith(("_p", "_q", "_p_perm", "steered", "baseline")) else chance.normal(size=n)


def axes_of(cell: Cell, n_prompts: int) -> dict[str, Any]:
    assert cell.vector is not None
    return {
        "cell_id": cell.id,
        "is_control": cell.kind != CELL,
        "model": "made-up",
        "dtype": "float32",
        "pair": cell.pair.name if cell.pair else None,
        "target": cell.pair.target if cell.pair else None,
        "primary": cell.pair.primary if cell.pair else None,
        "vector_id": cell.vector_id,
        "vector_method": cell.vector.method,
        "site": cell.site,
        "scope": cell.scope,
        "intervention": cell.intervention,
        "decay": cell.decay,
        "layer": cell.layers[0] if cell.layers else None,
        "layers": cell.layers_text,
        "coefficient": cell.coefficient,
        "coefficient_unit": cell.coefficient_unit,
        "seed": cell.seed,
        "prompts": cell.prompts_name,
        "n_prompts": n_prompts,
        "status": DONE,
        "error": None,
        "attempt": 1,
        "seconds": 1.5,
        "baseline_id": cell.baseline_id,
        "control_key": cell.control_key,
        **dataclasses.asdict(cell.generation),
    }


def replies_of(cells: Sequence[Cell], n_prompts: int) -> pd.DataFrame:
    """A row per cell and prompt."""
    followers = chain()
    starts = sorted(followers)
    random.seed(0)
    chance = np.random.default_rng(1)
    frames = [
        pd.DataFrame(
            {
                "cell_id": cell.id,
                "prompt_id": [f"p{i}" for i in range(n_prompts)],
                "sample": 0,
                "turn": 0,
                "prompt": [f"What would you do on day {i} of a long journey?" for i in range(n_prompts)],
                "reply": [walk(followers, starts) for _ in range(n_prompts)],
                "is_baseline": cell.kind != CELL,
                **{metric: np.round(chance.random(n_prompts) * 20, 4) for metric in METRICS},
            }
        )
        for cell in cells
    ]
    return pd.concat(frames, ignore_index=True)


def chain() -> dict[str, list[str]]:
    """Word -> the words that follow it in the shipped texts."""
    followers: dict[str, list[str]] = defaultdict(list)
    for path in sorted(SHIPPED.glob("pairs/*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            words = f"{row['positive']} {row['negative']}".split()
            for word, following in pairwise(words):
                followers[word].append(following)
    return followers


def walk(followers: dict[str, list[str]], starts: Sequence[str]) -> str:
    word = random.choice(starts)
    words = [word]
    while len(words) < WORDS:
        word = random.choice(followers.get(word) or starts)
        words.append(word)
    return " ".join(words)


if __name__ == "__main__":
    main()
