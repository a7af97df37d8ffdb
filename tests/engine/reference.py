"""What replies should be, computed slowly and plainly, and how far two replies may be apart.

`Reference` reads the whole text of one row again for each token, by the model's own forward without a cache, does what each push says
in a hook at the steered positions, and chooses the token by the definitions. `hooked_generate` is what people do today: transformers'
`generate` and a hook.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from tiny_models import hook_output
from torch import Tensor, nn

from emosteer.engine import Engine, Reply, Request, RowSeed
from emosteer.model.capture import Place
from emosteer.model.language_model import LanguageModel
from emosteer.steering import Push

TOLERANCE = 1e-5
"""Two float32 logits that are no further apart than this, relative to the row's largest, are tied: another order of the same sums
may swap them. `test_the_tolerance_is_that_of_rounding` measures it."""


class TieWarning(UserWarning):
    """A reply that is another one than the reference's because two numbers were tied."""


@dataclass(frozen=True)
class Reference:
    """A model and the modules at which it is steered, found without emosteer."""

    model: LanguageModel
    places: Mapping[Place, nn.Module]

    def reply(self, request: Request) -> Reply:
        """A request's reply, alone."""
        tokens: list[int] = []
        while len(tokens) < request.decoding.max_new_tokens:
            token = int(self.scores(request, tokens).argmax())
            if token in self.model.stop_tokens:
                return Reply(tuple(tokens), finished=True)
            tokens.append(token)
        return Reply(tuple(tokens), finished=False)

    @torch.no_grad()
    def logits(self, request: Request, reply: Sequence[int]) -> np.ndarray:
        """Logits [vocabulary] of the token after a prompt and the beginning of its reply."""
        assert self.model.model.config._attn_implementation in ("sdpa", "eager")
        ids = torch.tensor([[*request.prompt, *reply]], device=self.model.device)
        with self._steered(request):
            logits = self.model.model(input_ids=ids, use_cache=False).logits[0, -1]
        return logits.float().cpu().numpy()

    @contextmanager
    def _steered(self, request: Request) -> Iterator[None]:
        """Do what the request's pushes say while the model reads its text from the beginning."""
        n_prompt = len(request.prompt)

        def at(push: Push, scope: str, decay: float) -> Any:
            def steer(states: Tensor) -> Tensor:
                start, stop = {
                    "generated": (n_prompt - 1, states.shape[1]),
                    "prompt": (0, n_prompt),
                    "all": (0, states.shape[1]),
                }[scope]
                states = states.clone()
                for position in range(start, stop):
                    change = push.vector.to(states)
                    if push.cleared is not None:
                        u = push.cleared.to(states)
                        change = change - (states[0, position] @ u) * u
                    # The prompt's last token has the full strength; every later one has less, or with a growing factor more.
                    for _ in range(n_prompt, position + 1):
                        change = change * decay
                    states[0, position] += change
                return states

            return steer

        steering = request.steering
        with ExitStack() as stack:
            for push in steering.pushes if steering else ():
                handle = hook_output(self.places[push.site, push.layer], at(push, steering.scope, steering.decay))
                stack.callback(handle.remove)
            yield

    def scores(self, request: Request, reply: Sequence[int], slack: float = 0.0) -> np.ndarray:
        """What the next token has the largest of [vocabulary]: the logit, or where it is sampled `logit / temperature + noise`.

        Minus infinity for what may not be chosen. `slack` widens the nucleus, a sum of probabilities.
        """
        logits, decoding = self.logits(request, reply), request.decoding
        if len(reply) < decoding.min_new_tokens:
            logits[sorted(self.model.stop_tokens)] = -np.inf
        if not decoding.do_sample:
            return logits
        logits = logits / np.float32(decoding.temperature)
        if decoding.top_p < 1:
            logits[_outside_nucleus(logits, decoding.top_p + slack)] = -np.inf
        return logits + gumbel(request.row_seed, len(reply), len(logits))

    def scale(self, request: Request, reply: Sequence[int]) -> float:
        """The largest logit, as the scores count it: what rounding is relative to."""
        temperature = request.decoding.temperature if request.decoding.do_sample else 1.0
        return float(np.abs(self.logits(request, reply)).max()) / temperature

    @torch.no_grad()
    def router_gap(self, request: Request, reply: Sequence[int]) -> float:
        """The smallest distance between the last expert that was chosen and the first that was not, over positions and blocks.

        Relative to the largest of what the router chooses by; infinite without experts.
        """
        gaps = [math.inf]

        def note(router: nn.Module, _args: Any, output: Any) -> None:
            for scores, k in _choices(router, output):
                ordered = scores.sort(descending=True).values
                gaps.append(float((ordered[:, k - 1] - ordered[:, k]).min() / ordered[ordered.isfinite()].abs().max()))

        with ExitStack() as stack:
            for module in self.model.model.modules():
                if type(module).__name__.lower().endswith("router"):
                    stack.callback(module.register_forward_hook(note).remove)
            self.logits(request, reply)
        return min(gaps)


def _choices(router: Any, output: Any) -> Iterator[tuple[Tensor, int]]:
    """By what a router chooses [position, one of them], and how many."""
    # Llama 4's router gives its logits last, the others first.
    logits = output[1] if type(router).__name__ == "Llama4Router" else output[0]
    if not hasattr(router, "e_score_correction_bias"):
        yield logits, router.top_k
        return
    # DeepSeek: first groups, by their two best experts; then experts of those groups.
    scores = logits.sigmoid() + router.e_score_correction_bias
    in_groups = scores.unflatten(-1, (router.num_group, -1))
    of_groups = in_groups.topk(2).values.sum(-1)
    if router.topk_group < router.num_group:
        yield of_groups, router.topk_group
    allowed = torch.zeros_like(of_groups).scatter(1, of_groups.topk(router.topk_group).indices, 1.0).bool()
    yield in_groups.masked_fill(~allowed[:, :, None], -torch.inf).flatten(1), router.top_k


def _outside_nucleus(logits: np.ndarray, top_p: float) -> list[int]:
    """The tokens before which more probable ones reach `top_p` already."""
    wide = logits.astype(np.float64)
    probabilities = np.exp(wide - wide.max())
    probabilities /= probabilities.sum()
    outside, before = [], 0.0
    for token in np.argsort(-logits, kind="stable").tolist():
        if before >= top_p:
            outside.append(token)
        before += float(probabilities[token])
    return outside


@lru_cache(maxsize=4096)
def gumbel(seed: RowSeed, step: int, vocabulary: int) -> np.ndarray:
    """A row's noise at a step [vocabulary]: the raw numbers of Philox, whose key is the row's digest and the step."""
    digest = hashlib.sha256("\0".join([str(seed.seed), seed.prompt_id, str(seed.sample)]).encode()).digest()
    key = int.from_bytes(digest[:8], "little") + (step << 64)
    raw = np.random.Philox(key=key).random_raw(vocabulary)
    return np.array([-math.log(-math.log(((int(bits) >> 11) + 0.5) / 2**53)) for bits in raw], dtype=np.float32)


def replies(engine: Engine, requests: Sequence[Request]) -> list[Reply]:
    """Replies in the requests' order; each must come once."""
    found: dict[int, Reply] = {}
    for index, reply in engine.generate(requests):
        assert index not in found
        found[index] = reply
    assert sorted(found) == list(range(len(requests)))
    return [found[index] for index in range(len(requests))]


def hooked_generate(
    model: LanguageModel, request: Request, places: Mapping[Place, nn.Module], stop: Iterable[int] = ()
) -> tuple[int, ...]:
    """A row alone by transformers' own `generate`, greedily, with a hook for each push; the stop token cut off.

    The first forward reads the prompt, each later one a token of the reply.
    """
    scope = request.steering.scope if request.steering else ""

    def adder(vector: Tensor) -> Any:
        forwards = 0

        def add(states: Tensor) -> Tensor:
            nonlocal forwards
            forwards += 1
            if forwards > 1 and scope == "prompt":
                return states
            states = states.clone()
            if forwards == 1 and scope == "generated":
                states[:, -1] += vector
            else:
                states += vector
            return states

        return add

    pushes = request.steering.pushes if request.steering else ()
    handles = [hook_output(places[push.site, push.layer], adder(push.vector)) for push in pushes]
    ids = torch.tensor([request.prompt])
    decoding = request.decoding
    try:
        out = model.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            use_cache=True,
            max_new_tokens=decoding.max_new_tokens,
            min_new_tokens=decoding.min_new_tokens or None,
            eos_token_id=sorted(stop) or sorted(model.stop_tokens),
            pad_token_id=model.pad_token_id,
        )
    finally:
        for handle in handles:
            handle.remove()
    reply = out[0, len(request.prompt) :].tolist()
    return tuple(reply[:-1] if reply[-1] in (set(stop) or model.stop_tokens) else reply)


@dataclass
class Ties:
    """What was tied in a comparison, each told in a line."""

    lines: list[str] = field(default_factory=list)

    def tell(self, line: str) -> None:
        self.lines.append(line)
        warnings.warn(line, TieWarning, stacklevel=3)


def assert_same_replies(
    reference: Reference, requests: Sequence[Request], got: Sequence[Reply], expected: Sequence[Reply] | None = None, how: str = ""
) -> Ties:
    """Assert that replies are the reference's, but for ties within rounding, which are told as warnings and returned.

    A reply that differs is read along: at each step the reference must rank its token first, or tied with the first. Where experts
    were tied before the difference, the rest of that reply can't be told. `how` names the path for people.
    """
    expected = expected or [reference.reply(request) for request in requests]
    assert len(got) == len(expected) == len(requests)
    ties = Ties()
    for row, (request, reply, right) in enumerate(zip(requests, got, expected, strict=True)):
        if reply != right:
            _read_along(reference, request, reply, f"{reference.model.name} {how} row {row}", ties)
    return ties


def _read_along(reference: Reference, request: Request, reply: Reply, where: str, ties: Ties) -> None:
    stop = reference.model.stop_tokens
    assert not stop & set(reply.tokens), f"{where}: a stop token in {reply}"
    if not reply.finished:
        assert len(reply.tokens) == request.decoding.max_new_tokens, f"{where}: ended by itself, yet not finished: {reply}"
    n_steps = len(reply.tokens) + reply.finished
    assert n_steps <= request.decoding.max_new_tokens, f"{where}: longer than max_new_tokens: {reply}"
    for step in range(n_steps):
        before = reply.tokens[:step]
        scores = reference.scores(request, before)
        token = reply.tokens[step] if step < len(reply.tokens) else max(stop, key=lambda t: scores[t])
        best = int(scores.argmax())
        if token == best:
            continue
        allowed = TOLERANCE * reference.scale(request, before)
        gap, of = _gap(reference, request, before, token, allowed)
        line = f"{where} step {step}: token {token} instead of {best}, {of} {gap:.2e} apart (rounding: {allowed:.2e})"
        if gap <= allowed:
            ties.tell(line)
            continue
        router = reference.router_gap(request, before)
        assert router <= TOLERANCE, f"{line}; experts {router:.2e} apart (rounding: {TOLERANCE:.0e})"
        ties.tell(f"{line}; but experts were tied, {router:.2e} apart")
        return


def _gap(reference: Reference, request: Request, before: Sequence[int], token: int, allowed: float) -> tuple[float, str]:
    """How far a token's score is below the largest, and of what; where the nucleus may end a little later or earlier, too."""
    slacks = (0.0, TOLERANCE, -TOLERANCE) if request.decoding.do_sample and request.decoding.top_p < 1 else (0.0,)
    gaps = []
    for slack in slacks:
        scores = reference.scores(request, before, slack)
        gaps.append(float(scores.max() - scores[token]))
    if gaps[0] > allowed >= min(gaps):
        return min(gaps), f"the nucleus' end {TOLERANCE:.0e} away or nearer, scores then"
    return gaps[0], "scores"
