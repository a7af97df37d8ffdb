"""Which way through a model the engine goes: decided by comparing with the model's own forward, on the machine that runs it."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from emosteer.config import ENGINE_PATHS
from emosteer.engine.account import Account
from emosteer.engine.attention import Expanding, Unsuitable
from emosteer.engine.body import Body, NotByRowError
from emosteer.engine.cache import holds_states
from emosteer.engine.prefixes import Prefixes
from emosteer.engine.recording import CudaRecorder, Recorder
from emosteer.engine.request import Decoding, Request, RowSeed
from emosteer.engine.rows import Extent, Rows, prefix_key
from emosteer.engine.shared import SharedRows
from emosteer.engine.stock import StockRows
from emosteer.engine.whole import logits_of_whole
from emosteer.errors import EmosteerError
from emosteer.model.language_model import LanguageModel
from emosteer.model.past import is_keyed
from emosteer.steering import Push, Steering

log = logging.getLogger(__name__)

SHARED, STOCK, REREAD = PATHS = ENGINE_PATHS

TRIED_STEPS = 4
"""Tokens that each row of the trial generates."""
BEYOND = 8
"""Tokens by which the trial's longest row is longer than a window."""
WINDOWS = ("sliding_window", "attention_chunk_size", "sliding_window_size", "local_attention", "attention_window")
"""Keys of configurations that say how far back a layer looks."""
SHORT = 24
"""Tokens of the trial's longest row where no window is in reach."""
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2}
"""Largest difference of logits, relative to the largest: a hundred times rounding in float32, a tenth of what a wrong mask does."""

TRIED_TOGETHER = 2
"""Tokens that two rows of the trial begin with."""
FAILURES = (RuntimeError, ValueError, TypeError, AttributeError, KeyError, IndexError, AssertionError, NotImplementedError)
"""What a model raises that cannot be run in a way."""


class Chooser:
    """Finds the fastest path that gives the model's own logits.

    Args:
        model: the model.
        body: the same.
        path: to be taken; None for the fastest.

    Raises:
        EmosteerError: no such path.
    """

    def __init__(self, model: LanguageModel, body: Body, path: str | None = None) -> None:
        if path is not None and path not in PATHS:
            raise EmosteerError(f"engine.path={path}: choose one of {', '.join(PATHS)}, or none to take the fastest")
        self.model, self.body, self.asked = model, body, path
        self.path = path or SHARED
        self.reason = ""
        self.branches = True
        """Whether steered prompts may branch off the unsteered one (see `body.from_block`)."""
        self.expands = False
        """Whether the model makes keys and values of what its cache keeps (see `attention.Expanding`)."""
        self.recorder: Recorder | None = CudaRecorder() if _can_record(model) else None
        """Makes recordings of the shared path's steps; None where nothing is gained."""
        self.narrows = model.device.type == "cpu"
        """Whether rows with one history may run as one below the steered blocks (see `stages`). On a GPU rows are nearly free,
        and recordings have fixed shapes."""
        self._tried = 0
        """Length of the longest row of the trials so far."""
        self._windows = sorted(_windows(model))

    def choose(self, longest: int) -> None:
        """Settle the path for rows of up to `longest` tokens: `path`, `reason` and `branches`.

        Raises:
            EmosteerError: the path that was asked for does not give the model's own logits.
        """
        length = self._trial_length(longest)
        if self._tried >= length:
            return
        self._tried = length
        refused: list[str] = []
        for path in [self.asked] if self.asked else PATHS[PATHS.index(self.path) :]:
            reason = self._why_not(path, length)
            if not reason:
                self._take(path, refused)
                return
            refused.append(f"not {path}: {reason}")
        raise EmosteerError(f"{self.model.name} cannot be run as asked, engine.path={self.asked}: {refused[-1]}")

    def _take(self, path: str, refused: list[str]) -> None:
        self.path = path
        equal = "read anew at every step" if path == REREAD else "gives the logits of the model's own forward"
        self.reason = "; ".join([*refused, equal if self.branches else f"{equal}, but for branching off in the middle"])
        (log.warning if path == REREAD else log.info)("%s goes the way %s: %s", self.model.name, path, self.reason)

    def _trial_length(self, longest: int) -> int:
        """Of the trial's longest row: beyond every window that rows of `longest` tokens can reach."""
        reached = [window + BEYOND + TRIED_STEPS for window in self._windows if window < longest]
        return max(SHORT, *reached) if reached else SHORT

    def _why_not(self, path: str, length: int) -> str:
        """Why a path cannot be taken; empty where it can."""
        config = self.model.model.config
        if path == REREAD:
            return ""
        if not is_keyed(config) and (path == STOCK or not holds_states(config)):
            return "its memory is not keys and values alone"
        off = 0.0
        try:
            for self.branches in (True, False):
                off = self._narrowing_error(path, length)
                if off <= self._tolerance:
                    return ""
        except Unsuitable as unsuitable:
            return str(unsuitable)
        except FAILURES as error:
            return f"{type(error).__name__}: {error}"
        return f"its logits differ by {off:.1e} of the largest"

    @property
    def _tolerance(self) -> float:
        return TOLERANCE.get(self.model.dtype, 5e-2)

    def _narrowing_error(self, path: str, length: int) -> float:
        if self.narrows and path == SHARED:
            try:
                off = self._recording_error(path, length)
                why = f"its logits then differ by {off:.1e} of the largest"
            except (NotByRowError, *FAILURES) as error:
                off, why = math.inf, f"{type(error).__name__}: {error}"
            if off <= self._tolerance:
                return off
            log.info("%s: rows with one history do not run as one: %s", self.model.name, why)
            self.narrows = False
        return self._recording_error(path, length)

    def _recording_error(self, path: str, length: int) -> float:
        off = self._expanding_error(path, length)
        if off <= self._tolerance or self.recorder is None:
            return off
        log.warning("recorded steps of %s give logits that differ by %.1e of the largest: none are recorded", self.model.name, off)
        self.recorder = None
        return self._expanding_error(path, length)

    def _expanding_error(self, path: str, length: int) -> float:
        try:
            return self._error(path, length)
        except Expanding:
            if self.expands:
                raise
            self.expands = True
            return self._error(path, length)

    def _error(self, path: str, length: int) -> float:
        """The largest difference of a path's logits from the model's own, relative to the largest, over the trial."""
        requests = self._trial(length)
        prefixes = Prefixes(self.model, self.body, Account(), self.branches)
        found = prefixes.of([prefix_key(request) for request in requests])
        extent, first = Extent.of(requests), requests[:-1]
        rows: Rows = (
            SharedRows(self.model, self.body, len(first), extent, found[0], self.expands, self.recorder, self.narrows)
            if path == SHARED
            else StockRows(self.model, self.body, len(first), extent)
        )
        rows.put(list(range(len(first))), first, found[:-1])
        texts = [_Text(request) for request in first]
        told = list(texts)
        for step in range(2 * TRIED_STEPS):
            if step == TRIED_STEPS:  # the last request takes the place of the first
                rows.put([0], requests[-1:], found[-1:])
                texts[0] = _Text(requests[-1])
                told.append(texts[0])
            logits = torch.cat([chunk.float().clone() for _, chunk in rows.step()])
            for row, text in enumerate(texts):
                text.logits.append(logits[row])
                # The first two begin with the same tokens, so that they are one for a while.
                text.reply.append(self._token(0 if row == 1 and step < TRIED_TOGETHER else row, step))
            rows.append(torch.tensor([text.reply[-1] for text in texts], device=self.model.device))
        return max(_difference(torch.stack(text.logits), self._own(text)) for text in told)

    def _trial(self, length: int) -> list[Request]:
        """Rows of every kind; the last one comes later, in the place of the first."""
        model = self.model
        whole = tuple(self._token(99, position) for position in range(length))
        middle = model.n_blocks // 2
        last = model.n_blocks - 1
        generated = Steering((self._push(middle, 1),))
        everywhere = Steering((self._push(middle, 2), self._push(last, 3)), "all")
        prompt = Steering((self._push(0, 4),), "prompt")
        rows: list[tuple[tuple[int, ...], Steering | None]] = [
            (whole, None),
            (whole, generated),
            (whole[: length // 2], None),
            (whole[: length // 2] + whole[:3], everywhere),
            (whole[:1], None),
            (whole[: length // 3], prompt),
            (whole[:-2], everywhere),
        ]
        decoding = Decoding(2 * TRIED_STEPS)
        return [Request(text, RowSeed(0, str(number), 0), steering, decoding) for number, (text, steering) in enumerate(rows)]

    def _push(self, layer: int, seed: int) -> Push:
        generator = torch.Generator().manual_seed(seed)
        direction = torch.randn(self.model.width, generator=generator)
        return Push("residual", layer, direction * self._scale)

    @property
    def _scale(self) -> float:
        """Of a push that is felt and breaks nothing: about an embedding's."""
        weight: Tensor = self.model.model.get_input_embeddings().weight
        return float(weight[: min(1000, len(weight))].float().std())

    def _token(self, row: int, position: int) -> int:
        """A token for the trial: any will do, but a model's first ones, which are often special."""
        vocabulary = self.model.model.config.get_text_config().vocab_size
        generator = torch.Generator().manual_seed(1000 * row + position)
        return int(torch.randint(min(10, vocabulary - 1), vocabulary, (1,), generator=generator))

    def _own(self, text: _Text) -> Tensor:
        """Logits at a text's steps by the model's own forward, alone and without a cache [step, vocabulary]."""
        return logits_of_whole(self.model, [text.request], [text.reply[:-1]], len(text.logits))[0].float()


@dataclass
class _Text:
    """A row of the trial: what it was asked, what it was made to say, and the logits on the way."""

    request: Request
    reply: list[int] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)


def _difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


def _can_record(model: LanguageModel) -> bool:
    # Of a model that is spread over devices each would need a recording of its own.
    return model.device.type == "cuda" and not hasattr(model.model, "hf_device_map")


def _windows(model: LanguageModel) -> set[int]:
    config = model.model.config.get_text_config()
    found = (getattr(config, name, None) for name in WINDOWS)
    return {int(window) for window in found if isinstance(window, int) and window > 0}
