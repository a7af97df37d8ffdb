"""Sweeps whose report is looked at, and a page with what its browser said."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from made_up_sweep import PROVENANCE, SCORED, join, made_up_cell, publish, random_replies, random_scores, with_company
from playwright.sync_api import ConsoleMessage, Page, Request
from safetensors.numpy import save_file

from emosteer.records.cell import ATTRIBUTION, Cell
from emosteer.records.publish import publish_json
from emosteer.records.store import Resolved, Store, StoredReply
from emosteer.records.sweep import Sweep

PATIENCE = 180_000
"""Milliseconds, for a machine that has much else to do."""
READY = "html[data-charts=ready]"
N_PROMPTS = 14
PAIRS = ("joy_sadness", "trust_disgust")
LAYERS = ((2,), (4,), (10,), (1, 5))
COEFFICIENTS = (-0.1, 0.1, 0.3)
MINUS = "\u2212"
WIDEST = "Math.max(...[...document.querySelectorAll('.chart .main-svg')].map(one => one.getBoundingClientRect().width))"
FAINT = """() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgb = color => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const linear = v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const luminance = color => [0.2126, 0.7152, 0.0722].reduce((sum, weight, i) => sum + weight * linear(color[i] / 255), 0);
  const ground = element => {
    for (let one = element; one; one = one.parentElement) {
      const color = rgb(getComputedStyle(one).backgroundColor);
      if (color[3] === 255) return color;
    }
    return [255, 255, 255, 255];
  };
  const found = new Set();
  for (const element of document.querySelectorAll('body *')) {
    const hasText = [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
    if (!hasText || !element.checkVisibility() || element.closest('svg, script, option, button:disabled')) continue;
    const [light, dark] = [rgb(getComputedStyle(element).color), ground(element)].map(luminance).sort((x, y) => y - x);
    const ratio = (light + 0.05) / (dark + 0.05);
    if (ratio < 4.5) found.add(`${element.tagName}.${element.className} ${ratio.toFixed(2)}: ${element.textContent.slice(0, 30)}`);
  }
  return [...found];
}"""
"""The elements whose text contrasts with what is behind it by less than WCAG 2.2, 1.4.3, asks for."""


class Opened:
    """A page, with all that its browser said and asked for."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.requests: list[str] = []
        page.set_default_timeout(PATIENCE)
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", self._see)

    def show(self, path: Path, wait_for: str = READY) -> None:
        """Open a file, and wait until all of it is drawn."""
        self.page.goto(path.as_uri())
        self.page.wait_for_selector(wait_for, state="attached")

    def until(self, expression: str) -> None:
        """Wait until a JavaScript expression holds. (`page.wait_for_function` evaluates in the page, which its policy forbids.)"""
        ends = time.monotonic() + PATIENCE / 1000
        while not self.page.evaluate(expression):
            assert time.monotonic() < ends, expression
            self.page.wait_for_timeout(50)

    def drawn(self) -> None:
        """Wait until nothing is being drawn."""
        self.page.wait_for_selector(READY, state="attached")

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def _see(self, request: Request) -> None:
        self.requests.append(request.url)


def whole_sweep(root: Path, pairs: Sequence[str] = PAIRS, n_controls: int = 1, name: str = "mine") -> Sweep:
    """Two pairs at several blocks and coefficients, with what they are compared with, and an attribution each; one cell failed."""
    sweep = Sweep(root / name, Store(root / "store"))
    cells = [
        made_up_cell(sweep.store, pair, n_prompts=N_PROMPTS, layers=layers, coefficient=coefficient)
        for pair in pairs
        for layers in LAYERS
        for coefficient in COEFFICIENTS
    ]
    asked = [cells[0].prompting("Feel joy.")]
    shuffled = [cell.shuffled(0, "exchanged") for cell in cells]
    attributions = [dataclasses.replace(cell, kind=ATTRIBUTION) for cell in cells[:: len(cells) // len(pairs)]]
    company = [*with_company(cells, n_controls), *shuffled, *asked, *attributions]
    join(sweep, company)
    failed = cells[7]
    sweep.record_failure(failed, {"exception": "OutOfMemoryError", "message": "no memory for <this>", "host": "here"})
    for number, cell in enumerate(company):
        if cell.kind == ATTRIBUTION:
            publish_attribution(sweep.store, cell)
        elif cell is not failed:
            shift = 9 * cell.coefficient if cell.kind == "cell" else 0.0
            scores = scores_of(number, shift)
            publish(sweep.store, sweep.scorers(), cell, scores, seed=number)
    return sweep


def scores_of(seed: int, shift: float = 0.0) -> dict[str, list[float]]:
    """Made-up scores of a cell's replies, readable and with perplexities above 1."""
    scores = random_scores(N_PROMPTS, seed, shift) | {"duplication": [0.0] * N_PROMPTS}
    return scores | {"perplexity": [1 + abs(value) for value in scores["perplexity"]]}


def publish_attribution(store: Store, cell: Cell, n_blocks: int = 12) -> None:
    """An attribution of a model that is nowhere."""
    chance = np.random.default_rng(1)
    path = store.paths.attribution_scores(cell.attribution_id)
    path.parent.mkdir(parents=True)
    shapes = {
        "last.attention": (4, n_blocks),
        "last.mlp": (4, n_blocks),
        "last.residual": (4, n_blocks),
        "last.head": (4, n_blocks, 3),
    }
    shapes |= {"everywhere.attention": (4, n_blocks), "everywhere.mlp": (4, n_blocks)}
    save_file({name: chance.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}, path)
    scores = chance.normal(size=n_blocks)
    facts = {
        "id": cell.attribution_id,
        "model": "made-up",
        "pair": cell.pair.name if cell.pair else None,
        "direction": "denoising",
        "metric": "log p(expressive words) - log p(counterpart words)",
        "pair_ids": ["a", "b", "c", "d"],
        "n_dropped": 0,
        "ranking": [int(block) for block in np.argsort(-np.abs(scores))],
        "block_scores": scores.tolist(),
        "block_scores_low": (scores - 0.5).tolist(),
        "block_scores_high": (scores + 0.5).tolist(),
        "first_share": [1 / n_blocks] * n_blocks,
        "check": [
            {
                "site": "mlp",
                "position": "last",
                "components": [[1], [2]],
                "pearson": 0.5,
                "spearman": None,
                "same_sign": 0.5,
                "is_low": True,
            }
        ],
    }
    publish_json(store.paths.attribution_summary(cell.attribution_id), facts)


def publish_texts(sweep: Sweep, cell: Cell, text_of: Callable[[int], str], seed: int = 0) -> None:
    """Replies that are given, with made-up scores."""
    replies = [
        StoredReply(reply.prompt_id, reply.sample, text_of(number), reply.tokens, True)
        for number, reply in enumerate(random_replies(sweep.store, cell, seed))
    ]
    scores = random_scores(len(replies), seed) | {"duplication": [0.0] * len(replies)}
    resolved = Resolved(cell.layers or (), 3.0, cell.coefficient) if cell.vector else Resolved()
    sweep.store.publish(cell, replies, resolved, PROVENANCE)
    for scorer in sweep.scorers():
        sweep.store.publish_scores(cell, scorer.key, scorer.facts(), {m: scores[m] for m in SCORED[scorer.name]})
