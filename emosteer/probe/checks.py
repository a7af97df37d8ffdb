"""What a researcher wants to know of a new model before she gives it a sweep.

Every statement is checked against something else than our own code where there is such a thing: hooks against the hidden states
that transformers itself reports, the engine against the model's own `generate`, attribution against exact patching.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import GenerationConfig as OwnGeneration

from emosteer import api, attribution, datasets
from emosteer.attribution.check import check
from emosteer.config import GenerationConfig, PairConfig
from emosteer.datasets import SHIPPED, Prompt
from emosteer.engine import Engine, requests_for
from emosteer.errors import EmosteerError
from emosteer.model.capture import capture
from emosteer.model.dialogue import OPENING
from emosteer.model.heads import with_heads
from emosteer.model.language_model import LanguageModel
from emosteer.scoring.fluency import duplication
from emosteer.scoring.perplexity import perplexity
from emosteer.scoring.scorer import Context
from emosteer.steering import SteeringPlan, steering_along
from emosteer.tables import READABLE_DUPLICATION, READABLE_PERPLEXITY_RATIO
from emosteer.vectors import EmotionVector, random_direction

RIGHT, LOW, WRONG, UNKNOWN = VERDICTS = ("ok", "low", "WRONG", "not computed")
"""Of a check: it holds; it holds less well than it should; numbers of this model can't be trusted; it could not be made."""

EXACT = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}
"""Largest error of a hook, relative to what it should read."""
N_REPLIES, N_TOKENS = 4, 20
"""Compared with the model's own decoding."""
N_PAIRS, N_CHECKED = 8, 5
"""Diagnostic pairs, and components of either kind that are patched exactly."""
N_PROMPTS, REPLY = 8, 24
"""Steered at each block and coefficient, and tokens of a reply."""
DEPTHS = (0.2, 0.35, 0.5)
"""Where steering is tried, besides where attribution points."""
COEFFICIENTS = (0.025, 0.05, 0.1, 0.2, 0.4)

Stage = Callable[[str], None]


@dataclass(frozen=True)
class Finding:
    """What one check says."""

    name: str
    verdict: str
    """One of `VERDICTS`."""
    text: str
    """For a person; several lines where it is a table."""
    numbers: dict[str, Any] = field(default_factory=dict)
    """The same for a program."""


def probe(model: LanguageModel, pair: PairConfig, stage: Stage = lambda text: None) -> Iterator[Finding]:
    """Check a model part by part; findings come as they are made, `strength` last with a sweep's axes in its numbers.

    Args:
        model: the language model.
        pair: whose diagnostic pairs are attributed, and along whose vector the model is steered.
        stage: told what goes on now.
    """
    stage("taking the model apart")
    yield _parts(model)
    yield _template(model)
    stage("comparing hooks with the model's own hidden states")
    yield _hooks(model)
    stage("comparing the engine with the model's own decoding")
    engine = Engine(model)
    yield _decoding(model, engine)
    stage("attribution patching, and exact patching of some components")
    found = _attribution(model, pair)
    yield found
    stage("steering at several blocks and strengths")
    first = [found.numbers["block"]] if "block" in found.numbers else []
    yield _strength(model, engine, pair, first)


def _parts(model: LanguageModel) -> Finding:
    paths = {id(module): path for path, module in model.model.named_modules()}
    where = paths[id(model.anatomy.blocks[0])].rpartition(".")[0]
    lines = [f"{model.n_blocks} blocks of width {model.width} in {where}"]
    missing = [site for site in ("attention", "mlp") if not model.anatomy.has(site)]
    for site in ("attention", "mlp"):
        module = getattr(model.anatomy, site)[0]
        lines.append(
            f"site={site}: {paths[id(module)].rpartition('.')[2] if site not in missing else 'not found, set model.' + site}"
        )
    try:
        heads = with_heads(model).anatomy.n_heads
        lines.append(f"{heads} attention heads a block")
    except EmosteerError as error:
        heads = 0
        lines.append(str(error))
    return Finding("blocks", LOW if missing or not heads else RIGHT, "\n".join(lines), {"missing": missing, "heads": heads})


def _template(model: LanguageModel) -> Finding:
    prompt = model.dialogue.prompt([OPENING])
    text = f"{OPENING['content']!r} is read as {model.dialogue.tokenizer.decode(list(prompt))!r}"
    if not model.dialogue.has_template:
        return Finding("template", LOW, f"no chat template: the plain User:/Assistant: format stands in\n{text}")
    mark = "emosteer-probe"
    shows = any(message["role"] == "system" for message in model.dialogue.instructed([OPENING], mark))
    return Finding("template", RIGHT, f"{text}\nan instruction goes into {'the system message' if shows else 'the user turn'}")


def _hooks(model: LanguageModel) -> Finding:
    """What our hooks read against the states that transformers reports, and what they write against what the next block gets."""
    ids = torch.tensor([model.dialogue.prompt([OPENING])], device=model.device)
    block = max(0, model.n_blocks // 2 - 1)
    with torch.no_grad():
        with capture(model.anatomy) as own:
            reported = model.model(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states
        # The last of them is past the final norm.
        read = max(_error(own["residual", layer], reported[layer + 1]) for layer in range(max(1, model.n_blocks - 1)))
        if model.n_blocks == 1:
            return Finding("hooks", UNKNOWN, "a single block: none behind it shows what steering does", {"read": read})
        before = _entering(model, block + 1, ids)
        length = float(before.float().norm(dim=-1).median())
        vector = EmotionVector(random_direction(0, 0, model.n_blocks, model.width), torch.full((model.n_blocks,), length))
        steering = steering_along(vector, [block], 0.2)
        with SteeringPlan([steering], model.device, model.dtype).applied(model.anatomy):
            after = _entering(model, block + 1, ids)
    written = _error(after, before + steering.pushes[0].vector.to(before))
    verdict = RIGHT if max(read, written) <= EXACT.get(model.dtype, max(EXACT.values())) else WRONG
    text = (
        f"states of all blocks read as transformers reports them (error {read:.0e}); a vector added at block {block} reaches the next"
    )
    return Finding("hooks", verdict, f"{text} (error {written:.0e})", {"read": read, "written": written})


def _entering(model: LanguageModel, block: int, ids: Tensor) -> Tensor:
    """What a block is given, by a hook of torch's own."""
    got: list[Tensor] = []

    def note(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        got.append(args[0] if args else kwargs["hidden_states"])

    handle = model.anatomy.blocks[block].register_forward_pre_hook(note, with_kwargs=True)
    try:
        model.model(input_ids=ids, use_cache=False)
    finally:
        handle.remove()
    return got[0]


def _error(a: Tensor, b: Tensor) -> float:
    """The largest distance over positions, relative to the state there."""
    a, b = a.to(b.device).float(), b.float()
    return float(((a - b).norm(dim=-1) / b.norm(dim=-1)).max())


def _decoding(model: LanguageModel, engine: Engine) -> Finding:
    asked = _prompts(N_REPLIES)
    requests = requests_for(model, asked, GenerationConfig(max_new_tokens=N_TOKENS), 0)
    ours = dict(engine.generate(requests))
    greedy = OwnGeneration(
        max_new_tokens=N_TOKENS, do_sample=False, eos_token_id=sorted(model.stop_tokens) or None, pad_token_id=model.pad_token_id
    )
    same = 0
    for number, request in enumerate(requests):
        ids = torch.tensor([request.prompt], device=model.device)
        with torch.no_grad():
            theirs = model.model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=greedy)[
                0, ids.shape[1] :
            ].tolist()
        kept = next((at for at, token in enumerate(theirs) if token in model.stop_tokens), len(theirs))
        same += tuple(theirs[:kept]) == ours[number].tokens
    reason = f" ({engine.account.reason})" if engine.account.reason else ""
    text = f"path {engine.path}{reason}; {same} of {len(requests)} greedy replies are those of the model's own generate"
    # Two likeliest tokens may be as good as equal in half precision; most replies must be the same all the same.
    verdict = RIGHT if same == len(requests) else LOW if same > len(requests) // 2 else WRONG
    return Finding("engine", verdict, text, {"path": engine.path, "same": same, "of": len(requests)})


def _attribution(model: LanguageModel, pair: PairConfig) -> Finding:
    """Where attribution points, over a few pairs, and whether exact patching agrees."""
    path = Path(pair.diagnostics) if pair.diagnostics else SHIPPED / "diagnostics" / f"{pair.name}.jsonl"
    try:
        cases = attribution.prepare(model, datasets.load_diagnostic_pairs(path))
        aligned = [case for case in cases if case.is_aligned][:N_PAIRS]
        found = attribution.attribute(model, aligned)
    except EmosteerError as error:
        return Finding("attribution", UNKNOWN, str(error))
    agreements = check(model, aligned, found, N_CHECKED)
    block, certainty = found.ranking()[0], found.certainty()
    lines = [f"{pair.name}, {len(aligned)} pairs: block {block} first, in {certainty.first_share[block]:.0%} of resamples"]
    lines += [f"{one}{'  LOW' if one.is_low else ''}" for one in agreements]
    low = any(one.is_low for one in agreements)
    numbers = {"block": block, "first_share": float(certainty.first_share[block]), "check": [one.to_json() for one in agreements]}
    return Finding("attribution", LOW if low else RIGHT, "\n".join(lines), numbers)


def _strength(model: LanguageModel, engine: Engine, pair: PairConfig, first: list[int]) -> Finding:
    """How hard this model can be steered before its replies fall apart: coefficients do not carry over between models."""
    try:
        vector = api.build_vector(model, pair.path or pair.name)
    except EmosteerError as error:
        return Finding("strength", UNKNOWN, str(error))
    blocks = sorted({*(round(depth * (model.n_blocks - 1)) for depth in DEPTHS), *first})
    grid: list[tuple[int, float]] = list(product(blocks, COEFFICIENTS))
    steerings = [None, *(steering_along(vector, [block], coefficient) for block, coefficient in grid)]
    generation = GenerationConfig(max_new_tokens=REPLY)
    requests = [request for one in steerings for request in requests_for(model, _prompts(N_PROMPTS), generation, 0, one)]
    replies = dict(engine.generate(requests))
    context = Context(engine, [request.prompt for request in requests], [replies[row].tokens for row in range(len(requests))])
    texts = [model.dialogue.reply(tokens) for tokens in context.replies]
    scores = np.array(perplexity(texts, context=context)["perplexity"]).reshape(len(steerings), -1)
    alike = np.array([np.mean(duplication(texts[at : at + N_PROMPTS])["duplication"]) for at in range(0, len(texts), N_PROMPTS)])
    means = np.array([np.nan if np.isnan(row).all() else np.exp(np.nanmean(np.log(row))) for row in scores])
    ratios = means[1:] / means[0]
    # Some models begin half of their replies alike before anything is done to them.
    readable = (ratios <= READABLE_PERPLEXITY_RATIO) & (alike[1:] <= alike[0] + READABLE_DUPLICATION)
    return Finding("strength", RIGHT if readable.any() else LOW, *_told(grid, ratios, readable, first))


def _told(grid: Sequence[tuple[int, float]], ratios: Any, readable: Any, first: list[int]) -> tuple[str, dict[str, Any]]:
    """The table of a strength's finding, and its numbers."""
    cells = [
        {"layer": block, "coefficient": coefficient, "perplexity_ratio": float(ratio), "readable": bool(is_readable)}
        for (block, coefficient), ratio, is_readable in zip(grid, ratios, readable, strict=True)
    ]
    lines = [
        "perplexity of replies against the unsteered ones' (geometric means); * where they fall apart or begin alike",
        "block" + "".join(f"{coefficient:>8g}" for coefficient in COEFFICIENTS),
    ]
    for block, row in groupby(cells, key=lambda cell: cell["layer"]):
        lines.append(f"{block:5}" + "".join(f"{cell['perplexity_ratio']:7.2f}{' ' if cell['readable'] else '*'}" for cell in row))
    bearable = [
        c
        for c in COEFFICIENTS
        if 2 * sum(cell["readable"] for cell in cells if cell["coefficient"] == c) >= len(cells) / len(COEFFICIENTS)
    ]
    if not bearable:
        lines.append(f"too hard everywhere: try coefficients below {COEFFICIENTS[0]:g}")
    layers: list[Any] = [*(["auto"] if first else []), *sorted({cell["layer"] for cell in cells} - set(first))]
    return "\n".join(lines), {"cells": cells, "layers": layers, "coefficients": bearable[-3:]}


def _prompts(limit: int) -> list[Prompt]:
    return api.load_prompts("conversation", limit)
