"""Running parts of a model by its own forward: without its head, its head alone, and its blocks from the middle on.

No block is copied. What must not run gets, for the length of a call, a forward that returns what is known already.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import Cache

from emosteer.engine.head import sliced
from emosteer.model.anatomy import hidden
from emosteer.model.capture import replace_output, with_hidden
from emosteer.model.language_model import LanguageModel
from emosteer.model.past import PAST_NAMES, past_name

LOGITS_BYTES = {"cpu": 1 << 27}
"""Most memory for the logits that are made at a time; elsewhere half a gigabyte."""


class Body:
    """A causal model without its head: token ids to the last hidden states, and those to logits."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        decoder = model.model.get_decoder()
        self.decoder: nn.Module | None = None if decoder is None or decoder is model.model else decoder
        self._output: Any = None
        self._head: nn.Module = model.model.get_output_embeddings()
        self._sliced = sliced(self._head)
        most = LOGITS_BYTES.get(model.device.type, 1 << 29)
        self.logit_rows = max(1, most // (4 * model.model.config.get_text_config().vocab_size))
        """Rows whose logits are made at a time."""

    def run(self, past: Cache | None = None, **inputs: Any) -> Tensor:
        """The last hidden states [row, position, width]; of a model whose body cannot be had apart, logits in their place.

        Args:
            past: what stands before them, to which they are added; without it nothing is kept.
            inputs: what a model's forward takes besides.
        """
        inputs["use_cache"] = past is not None
        if past is not None:
            inputs[past_name(self.decoder or self.model.model)] = past
        if self.decoder is None:
            logits: Tensor = self.model.model(**inputs).logits
            return logits
        output = self.decoder(**inputs)
        states: Tensor = output[0]
        self._output = copy.copy(output)
        for name in PAST_NAMES:
            if name in self._output:
                self._output[name] = None  # not kept alive beyond its batch
        return states

    def logits(self, states: Tensor) -> Tensor:
        """Logits [row, vocabulary] of what `run` gave for one position [row, width]: with the model's own scale, bias and cap.

        They may be overwritten by the next ones.
        """
        if self.decoder is None:
            return states
        output = copy.copy(self._output)
        output["last_hidden_state"] = states[:, None]
        # What the head reads of its inputs is nothing: they only have to be there.
        with ExitStack() as stack:
            stack.enter_context(_instead(self.decoder, lambda *_, **__: output))
            if self._sliced:
                stack.enter_context(_instead(self._head, self._sliced))
            logits: Tensor = self.model.model(inputs_embeds=states[:, None], use_cache=False, logits_to_keep=1).logits
        return logits[:, -1]

    def in_chunks(self, states: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Logits of one position [row, width] some rows at a time: (rows, [those rows, vocabulary]), to be used before the next."""
        for start in range(0, len(states), self.logit_rows):
            rows = slice(start, start + self.logit_rows)
            yield rows, self.logits(states[rows])


@contextmanager
def from_block(blocks: Sequence[nn.Module], first: int, states: Tensor, as_tuple: bool) -> Iterator[None]:
    """Let the model run from block `first` on, as the model is called inside: the block before it puts out `states`.

    Hooks on that block run, and see them.

    Args:
        states: [row, position, width], the output of block `first - 1`.
        as_tuple: whether the blocks put out tuples.
    """
    with ExitStack() as stack:
        for block in blocks[: first - 1]:
            stack.enter_context(_instead(block, _passing(as_tuple)))
        stack.enter_context(_instead(blocks[first - 1], lambda *_, **__: (states,) if as_tuple else states))
        yield


def _passing(as_tuple: bool) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        states = args[0] if args else kwargs["hidden_states"]
        return (states,) if as_tuple else states

    return forward


@dataclass(frozen=True)
class Narrowing:
    """Blocks that run some rows of a batch only."""

    start: int
    stop: int
    n_rows: int
    """Of the batch, more than one."""
    rows: Tensor
    """[row that runs]: its number in the batch."""
    onward: Tensor
    """[row that runs after them]: which of those that run here it is."""


class NotByRowError(Exception):
    """A model's blocks take or give something that is not by row."""


@contextmanager
def narrowed(blocks: Sequence[nn.Module], narrowings: Sequence[Narrowing]) -> Iterator[None]:
    """Let the first blocks run some rows only, as the model is called with all of them inside, one position each.

    What a block is given besides the states is the model's for all rows: of that, it gets its rows' part.

    Args:
        blocks: the model's.
        narrowings: one after the other, from the first block on; hooks on a last block see what goes on from it.

    Raises:
        NotByRowError: the states between blocks are not [row, position, width].
    """
    with ExitStack() as stack:
        for narrowing in narrowings:
            chosen: dict[int, tuple[Tensor, Tensor]] = {}
            for number in range(narrowing.start, narrowing.stop):
                block = blocks[number]
                stack.enter_context(_instead(block, _narrow(block.forward, narrowing, number, chosen)))
        yield


def _narrow(
    forward: Callable[..., Any], narrowing: Narrowing, number: int, chosen: dict[int, tuple[Tensor, Tensor]]
) -> Callable[..., Any]:
    """A block's forward for a narrowing's rows. `chosen`: by id, what was given for all rows, and its part."""

    def part(given: Any) -> Any:
        if isinstance(given, tuple | list):
            return tuple(part(one) for one in given)
        if isinstance(given, dict):
            return {name: part(one) for name, one in given.items()}
        # By row are positions [row, 1], masks [row, 1, 1, column], rotations [row, 1, width].
        if not isinstance(given, Tensor) or given.shape[:2] != (narrowing.n_rows, 1):
            return given
        if id(given) not in chosen:
            chosen[id(given)] = given, given[narrowing.rows]
        return chosen[id(given)][1]

    def run(*args: Any, **kwargs: Any) -> Any:
        states = args[0] if args else kwargs.pop("hidden_states")
        if number == 0:
            states = states[narrowing.rows]
        if states.ndim != 3 or len(states) != len(narrowing.rows):
            raise NotByRowError(f"block {number} is given states {list(states.shape)}")
        output = forward(states, *map(part, args[1:]), **part(kwargs))
        return with_hidden(output, hidden(output)[narrowing.onward]) if number == narrowing.stop - 1 else output

    return run


@contextmanager
def noting(blocks: Sequence[nn.Module], wanted: Sequence[int], seen: dict[int, Tensor]) -> Iterator[None]:
    """Put the outputs [row, position, width] of the wanted blocks into `seen`, as the model runs inside."""

    def keep(block: int) -> Callable[[Tensor], Tensor]:
        def note(states: Tensor) -> Tensor:
            seen[block] = states.clone()  # later blocks may write into it
            return states

        return note

    with ExitStack() as stack:
        for block in wanted:
            stack.enter_context(replace_output(blocks[block], keep(block)))
        yield


def puts_out_tuples(block: nn.Module) -> tuple[list[bool], Any]:
    """A list that gets, at each forward of a block, whether it put out a tuple; and the hook's handle."""
    seen: list[bool] = []

    def note(_module: nn.Module, _args: Any, output: Any) -> None:
        seen.append(hidden(output) is not output)

    return seen, block.register_forward_hook(note)


@contextmanager
def _instead(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Another forward for a module, as it is called inside."""
    # accelerate, which spreads a model over devices, has put one there itself.
    own = vars(module).get("forward")
    vars(module)["forward"] = forward
    try:
        yield
    finally:
        if own is None:
            vars(module).pop("forward")
        else:
            vars(module)["forward"] = own
