"""The card that goes with an exported vector: what it does, measured, how it was made, and its limits, as model hubs show it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from emosteer.records.cell import Cell
from emosteer.records.sweep import DONE
from emosteer.summary import RULE, best_readable
from emosteer.tables import READABLE_DUPLICATION, READABLE_PERPLEXITY_RATIO, Tables

SHOWN = {
    "first_person": "first-person pronouns per 100 words",
    "sentiment": "VADER's compound score, -1 to 1",
    "perplexity": "of the reply under the unsteered model",
    "repetition": "share of repeated 3-word runs",
    "duplication": "share of replies that begin alike",
    "words": "length of a reply",
}
"""Metrics besides the primary one -> in which unit."""
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
SIGNIFICANT = 0.05
SITES = {
    "residual": "the residual stream after decoder block",
    "attention": "the attention's output in decoder block",
    "mlp": "the MLP's output in decoder block",
}


@dataclass(frozen=True)
class CardOf:
    """What a card is about."""

    cell: Cell
    tables: Tables
    confidence: float
    """Level of the intervals in the tables."""
    vector_facts: Mapping[str, Any]
    """What the store says of how the vector was made."""
    layers: tuple[int, ...]
    coefficient: float
    """At each of the blocks."""
    lengths: Sequence[float]
    """Of what is added, at each of the blocks, in the units of the activations."""
    files: Sequence[str]
    """Names of the files beside the card."""

    @property
    def row(self) -> Mapping[str, Any]:
        """The cell's row of `results`."""
        results = self.tables.results
        return dict(results[results["cell_id"] == self.cell.id].iloc[0])


def model_card(of: CardOf) -> str:
    """The card of an exported vector, as Markdown with YAML in front."""
    parts = [_front(of), _title(of), _measured(of), _made(of), _limits(of), _use(of)]
    return "\n".join(parts)


def _front(of: CardOf) -> str:
    path = of.cell.model.config.path
    is_on_hub = bool(HUB_ID.fullmatch(path)) and not Path(path).exists()
    tags = ["activation-steering", "steering-vector", "emotion", str(of.row["target"])]
    facts = {"library_name": "emosteer", "tags": tags} | ({"base_model": path} if is_on_hub else {})
    return f"---\n{yaml.safe_dump(facts, sort_keys=False)}---\n"


def _title(of: CardOf) -> str:
    cell, row = of.cell, of.row
    coefficient = float(row["coefficient"])
    counterpart = cell.pair.counterpart if cell.pair else ""
    what = {
        "add": f"Added to {SITES[cell.site]} {_blocks(of)} (counted from 0)",
        "set": f"With the projection of {SITES[cell.site]} {_blocks(of)} (counted from 0) on it set to the coefficient",
        "ablate": f"Taken out of {SITES[cell.site]} {_blocks(of)} (counted from 0)",
    }[cell.intervention]
    toward = f"pushes its replies toward {row['target']} and away from {counterpart}"
    if cell.intervention == "add" and coefficient < 0:
        toward = f"pushes its replies away from {row['target']} and toward {counterpart}"
    return "\n".join(
        [
            f"# {row['pair']} at block {_blocks(of)} of {_escaped(row['model'])}",
            "",
            f"A steering vector. {what} while the model replies, with the coefficient {coefficient:g}, it {toward}; by how much "
            "stands below. Positive minus negative: a positive coefficient means the target.",
            "",
        ]
    )


def _measured(of: CardOf) -> str:
    row, cell = of.row, of.cell
    how = f"sampled at temperature {cell.generation.temperature:g}" if cell.generation.do_sample else "greedy"
    lines = [
        "## What it does, measured",
        "",
        f"{int(row['n_prompts'])} prompts ({_escaped(row['prompts'])}), {cell.generation.n_samples} reply each, {how}, at most "
        f"{cell.generation.max_new_tokens} tokens, steered at the positions `{cell.scope}`. Steered against unsteered replies to "
        f"the same prompts; intervals are of {of.confidence:.0%}, by bootstrap over prompts; p is Wilcoxon's, q "
        f"Benjamini-Hochberg's over the {len(of.tables.cells)} cells of the sweep.",
        "",
        "| metric | unit | unsteered | steered | difference | p | q |",
        "|---|---|---|---|---|---|---|",
    ]
    primary = str(row["primary"])
    for metric, unit in {primary: "words per 100 words", **SHOWN}.items():
        if math.isnan(_number(row, f"{metric}_delta")):
            continue
        name = f"**{metric}** (declared before the run)" if metric == primary else metric
        lines.append(
            f"| {name} | {unit} | {_number(row, f'{metric}_baseline'):.2f} | {_number(row, f'{metric}_steered'):.2f} | "
            f"{_interval(row, f'{metric}_delta', metric)} | {_p(_number(row, f'{metric}_p'))} | {_p(_number(row, f'{metric}_q'))} |"
        )
    lines.append("")
    beyond = f"{primary}_beyond_random"
    if not math.isnan(_number(row, beyond)):
        n = int(row["n_controls"])
        lines.append(
            f"Beyond {n} random direction{'s' if n > 1 else ''} of the same length: {_interval(row, beyond, beyond)}, "
            f"q {_p(_number(row, f'{beyond}_q'))}."
        )
    return "\n".join([*lines, *_confirmed(of), ""])


def _confirmed(of: CardOf) -> list[str]:
    found = of.tables.confirmations
    rows = found[found["cell_id"] == of.cell.id].to_dict("records") if "cell_id" in found else []
    return [
        f"Chosen on one half of the prompts and measured on the other: {row['confirmed']:+.2f} [{row['ci_low']:+.2f}, "
        f"{row['ci_high']:+.2f}], p {_p(row['p'])}, best of {row['n_cells']} cells in {row['agreement']:.0%} of the halves."
        for row in rows
        if not row["reason"]
    ]


def _made(of: CardOf) -> str:
    cell, facts = of.cell, of.vector_facts
    assert cell.vector is not None
    lengths = ", ".join(f"{length:.4g}" for length in of.lengths)
    lines = [
        "## How it was made",
        "",
        f"- Model: {_escaped(cell.model.config.name)}, {cell.model.config.dtype}, weights `{cell.model.fingerprint}`.",
        f"- Texts: {facts.get('n_pairs', 'an unknown number of')} contrastive pairs of `{_escaped(str(of.row['pair']))}` (source "
        f"`{cell.vector.source}`, digest `{cell.vector.texts[:12]}`); method `{cell.vector.method}`, "
        f"reading `{cell.vector.reading}`.",
        f"- Length of what is {'added' if cell.intervention != 'ablate' else 'taken out: all of it, whatever this says'}: {lengths}, "
        f"that is {of.coefficient:g} {'residual norms' if cell.coefficient_unit == 'fraction' else 'raw vectors'}.",
    ]
    for key, text in (
        ("split_half", "cosine between vectors of two halves of the texts"),
        ("auc", "held-out texts told apart (AUC)"),
    ):
        values = facts.get(key) or []
        told = [f"{values[layer]:.2f}" for layer in of.layers if layer < len(values) and values[layer] is not None]
        lines += [f"- {text[0].upper()}{text[1:]}: {', '.join(told)}."] if told else []
    lines += [f"- Cell `{cell.id}` of the sweep `{_escaped(str(of.row['sweep']))}`, vector `{cell.vector_id}`.", ""]
    return "\n".join(lines)


def _limits(of: CardOf) -> str:
    row, primary = of.row, str(of.row["primary"])
    lines = ["## Limits", ""]
    q, beyond = _number(row, f"{primary}_q"), _number(row, f"{primary}_beyond_random_q")
    if not q < SIGNIFICANT:
        lines.append(f"- **Not significant**: q of {primary} is {_p(q)}. What is above may be chance.")
    elif beyond >= SIGNIFICANT:
        lines.append(f"- **Not significantly more than a random push of that length** (q {_p(beyond)}).")
    ratio, alike = _number(row, "perplexity_ratio"), _number(row, "duplication_steered")
    if ratio > READABLE_PERPLEXITY_RATIO or alike > READABLE_DUPLICATION:
        lines.append(f"- **Hardly readable**: perplexity x{ratio:.2f}, {alike:.0%} of the replies begin alike. {RULE}")
    replied = of.tables.replied
    rivals = replied[replied["pair"] == row["pair"]]
    best = best_readable(rivals)
    if best is not None and best["cell_id"] == of.cell.id and len(rivals) > 1:
        lines.append(
            f"- It is the best readable of its pair's {len(rivals)} cells on these prompts: the largest of many noisy numbers, and "
            "therefore too large."
        )
    unfinished = int((of.tables.cells["status"] != DONE).sum())
    if unfinished:
        lines.append(f"- {unfinished} of the sweep's cells were not done when this was written.")
    lines += [
        f"- Measured on {int(row['n_prompts'])} prompts with these weights in {of.cell.model.config.dtype} alone. Quantised weights, "
        "another template, language or system message may give other numbers; another model needs another vector.",
        "- An emotion is here the rate of its words in the NRC lexicon: what a reply says, not what it means, nor what anyone feels.",
        "- Beyond the coefficients that were tried, text falls apart.",
    ]
    if of.cell.scope != "all" and "control_vector.gguf" in of.files:
        lines.append(
            f"- Measured with scope `{of.cell.scope}`. llama.cpp, repeng and steering-vectors add at every position, of the prompt, "
            "too, which is `scope=all` here and gives other replies."
        )
    return "\n".join([*lines, ""])


def _use(of: CardOf) -> str:
    cell = of.cell
    layer = str(of.layers[0]) if len(of.layers) == 1 else str(list(of.layers))
    options = f"layer={layer}, coefficient={of.row['coefficient']:g}" + (
        f', coefficient_unit="{cell.coefficient_unit}"' if cell.coefficient_unit != "fraction" else ""
    )
    more = f', across_blocks="{cell.across_blocks}"' if cell.across_blocks != "each" else ""
    more += f', scope="{cell.scope}"' if cell.scope != "generated" else ""
    more += f', intervention="{cell.intervention}"' if cell.intervention != "add" else ""
    more += f", decay={cell.decay:g}" if cell.decay != 1 else ""
    lines = [
        "## Use",
        "",
        "```python",
        "import emosteer",
        "",
        f'model = emosteer.load_model("{_quoted(cell.model.config.name)}")  # or the directory or hub id of these weights',
        'vector = emosteer.load_vector("vector.safetensors")',
        f'emosteer.steer(model, ["How was your day?"], vector, {options}{more}).texts',
        "```",
        "",
    ]
    if "control_vector.gguf" in of.files:
        lines += [
            "With llama.cpp, where a scale of 1 stands for this card's coefficient (0.5 for half of it):",
            "",
            "```",
            "llama-cli -m model.gguf --control-vector control_vector.gguf",
            "llama-cli -m model.gguf --control-vector-scaled control_vector.gguf:0.5",
            "```",
            "",
            'repeng reads the same file: `ControlVector.import_gguf("control_vector.gguf")`.',
        ]
    if cell.intervention == "add":
        lines += [f"For steering-vectors: `emosteer.to_steering_vectors(vector, {options})`.", ""]
    return "\n".join(lines)


def _blocks(of: CardOf) -> str:
    return "+".join(map(str, of.layers))


def _number(row: Mapping[str, Any], column: str) -> float:
    value = row.get(column)
    return math.nan if value is None else float(value)


def _interval(row: Mapping[str, Any], column: str, of: str) -> str:
    low, high = _number(row, f"{of}_ci_low"), _number(row, f"{of}_ci_high")
    return f"{_number(row, column):+.2f} [{low:+.2f}, {high:+.2f}]"


def _p(p: float) -> str:
    return "not computed" if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _escaped(text: str) -> str:
    """A user's name as plain text in Markdown."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", str(text)) if re.search(r"[\\`*\[\]<>|#]", str(text)) else str(text)


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')
