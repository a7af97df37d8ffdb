"""Dialogues held turn by turn: the model replies, the user or a partner answers, and the model replies again.

A round gives every dialogue that is not over its next reply, all of them in common batches. Each reply is steered as any other is;
what the model said before is read as text, as it is by whoever sends a model its dialogue anew with every turn. A partner is the
same model, never steered, with a system message of its own and the dialogue seen from its side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from emosteer.config import GenerationConfig
from emosteer.datasets import Message, Prompt
from emosteer.engine import Engine, Reply, Request, RowSeed, requests_for
from emosteer.errors import EmosteerError
from emosteer.model.dialogue import Dialogue
from emosteer.model.language_model import LanguageModel
from emosteer.records.store import StoredReply
from emosteer.scoring.scorer import Answers, Context
from emosteer.steering import Steering

BEGIN = "Please begin."
"""What a partner, which opened the dialogue, is told first: many templates want a user's message before an assistant's."""
SILENCE = "..."
"""In place of a partner's answer that is empty."""


@dataclass(frozen=True)
class Turn:
    """One reply of the model."""

    said: str
    """What it answers; empty for the first, which answers the prompt."""
    reply: Reply
    text: str


@dataclass
class Talk:
    """One dialogue, as far as it has come."""

    prompt: Prompt
    opening: Request
    """For the first reply."""
    instruction: str = ""
    turns: list[Turn] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    """To each reply but the last, by the user or the partner."""
    request: Request = field(init=False)
    """For the next reply."""

    def __post_init__(self) -> None:
        self.request = self.opening

    @property
    def is_over(self) -> bool:
        return len(self.turns) == self.prompt.n_replies

    def anew(self) -> Talk:
        """The same before its first reply."""
        return Talk(self.prompt, self.opening, self.instruction)

    @property
    def n_tokens(self) -> int:
        """Of the model's replies."""
        return sum(len(turn.reply.tokens) for turn in self.turns)


def talks_for(
    model: LanguageModel,
    prompts: Sequence[Prompt],
    generation: GenerationConfig,
    seed: int,
    steering: Steering | None = None,
    where: str = "prompts",
    instruction: str = "",
) -> list[Talk]:
    """The dialogues that a cell holds, in the order of the prompts, then samples.

    Raises:
        EmosteerError: one that may not fit into the model's context; `where` says whose prompt it is.
    """
    requests = requests_for(model, prompts, generation, seed, steering, where, instruction)
    for prompt in prompts:
        _check_fits(model, prompt, generation, where, instruction)
    owners = [prompt for prompt in prompts for _ in range(generation.n_samples)]
    return [Talk(prompt, request, instruction) for prompt, request in zip(owners, requests, strict=True)]


def hold(engine: Engine, talks: Sequence[Talk], on_tokens: Callable[[int], None] = lambda n: None) -> Iterator[int]:
    """Hold all dialogues to their ends; yield the number of each as it is over.

    Args:
        engine: of the model.
        talks: none of them begun.
        on_tokens: told of tokens as they come, a partner's among them.
    """
    going = list(range(len(talks)))
    while going:
        unfinished = []
        for row, reply in engine.generate([talks[number].request for number in going], on_tokens):
            talk = talks[going[row]]
            said = talk.answers[-1] if talk.answers else ""
            talk.turns.append(Turn(said, reply, engine.model.dialogue.reply(reply.tokens)))
            if talk.is_over:
                yield going[row]
            else:
                unfinished.append(going[row])
        going = sorted(unfinished)
        _go_on(engine, [talks[number] for number in going], on_tokens)


def stored(talks: Iterable[Talk]) -> list[StoredReply]:
    """The replies of dialogues that are over, as they are kept."""
    return [
        StoredReply(
            talk.prompt.id, talk.opening.row_seed.sample, turn.text, turn.reply.tokens, turn.reply.finished, number, turn.said
        )
        for talk in talks
        for number, turn in enumerate(talk.turns)
    ]


def context_of(
    engine: Engine, prompts: Iterable[Prompt], replies: Sequence[StoredReply], answers: Callable[[str], Answers] | None = None
) -> Context:
    """What scorers may ask about the replies of one cell; their prompts are those of before, without an instruction.

    Args:
        engine: of the model that replied.
        prompts: that began the dialogues.
        replies: all of the cell's, in the order in which they are kept.
        answers: what scorers were told of texts before, under a key; None where nothing is kept.
    """
    by_id = {prompt.id: prompt for prompt in prompts}
    tokens = prompts_of(engine.model.dialogue, by_id.values(), replies)
    said = [reply.said or by_id[reply.prompt_id].text for reply in replies]
    context = Context(engine, tokens, [reply.tokens for reply in replies], [reply.turn for reply in replies], said)
    return context if answers is None else replace(context, answers=answers)


def prompts_of(
    dialogue: Dialogue, prompts: Iterable[Prompt], replies: Sequence[StoredReply], instruction: str = ""
) -> list[tuple[int, ...]]:
    """The tokens before each of a cell's replies, as the model read them under an instruction, or as it would have without.

    Args:
        dialogue: of the model that replied.
        prompts: that began the dialogues.
        replies: all of the cell's, in the order in which they are kept.
        instruction: a system message; none where it is empty.
    """
    by_id = {prompt.id: prompt.messages for prompt in prompts}
    tokens: list[tuple[int, ...]] = []
    for number, reply in enumerate(replies):
        first: Sequence[Message] = by_id[reply.prompt_id]
        if instruction:
            first = dialogue.instructed(first, instruction)
        if not reply.turn:
            tokens.append(dialogue.prompt(first))
            continue
        held = replies[number - reply.turn : number + 1]
        tokens.append(dialogue.continued(_messages(first, [one.reply for one in held[:-1]], [one.said for one in held[1:]])))
    return tokens


def _go_on(engine: Engine, talks: Sequence[Talk], on_tokens: Callable[[int], None]) -> None:
    """Let everyone be answered, and ask for the next replies."""
    dialogue = engine.model.dialogue
    asking = [talk for talk in talks if talk.prompt.partner]
    answers = dict(engine.generate([_to_partner(dialogue, talk) for talk in asking], on_tokens)) if asking else {}
    for row, talk in enumerate(asking):
        talk.answers.append(dialogue.reply(answers[row].tokens) or SILENCE)
    for talk in talks:
        if not talk.prompt.partner:
            talk.answers.append(talk.prompt.turns[len(talk.answers)])
        own = talk.prompt.messages
        messages = dialogue.instructed(own, talk.instruction) if talk.instruction else own
        tokens = dialogue.continued(_messages(messages, [turn.text for turn in talk.turns], talk.answers))
        talk.request = replace(talk.request, prompt=tokens, row_seed=replace(talk.request.row_seed, turn=len(talk.turns)))


def _messages(first: Sequence[Message], replies: Sequence[str], answers: Sequence[str]) -> tuple[Message, ...]:
    """A dialogue: what it began with, then the model's replies and the answers to them in turn."""
    messages = list(first)
    for reply, answer in zip(replies, answers, strict=True):
        messages += [{"role": "assistant", "content": reply}, {"role": "user", "content": answer}]
    return tuple(messages)


def _to_partner(dialogue: Dialogue, talk: Talk) -> Request:
    """What the partner is asked: the dialogue from its side, unsteered, with the cell's way of decoding."""
    assert talk.prompt.partner is not None
    spoken = [message for message in talk.prompt.messages if message["role"] != "system"]
    replies, last = [turn.text for turn in talk.turns[:-1]], talk.turns[-1].text
    held = [*_messages(spoken, replies, talk.answers), {"role": "assistant", "content": last}]
    other = {"user": "assistant", "assistant": "user"}
    mirrored = [{"role": other[message["role"]], "content": message["content"]} for message in held]
    if mirrored[0]["role"] == "assistant":
        mirrored.insert(0, {"role": "user", "content": BEGIN})
    asked = dialogue.instructed(mirrored, talk.prompt.partner.system)
    own = talk.request.row_seed
    seed = RowSeed(own.seed, f"{own.prompt_id}\0partner", own.sample, len(talk.turns) - 1)
    return Request(dialogue.continued(asked), seed, None, talk.request.decoding)


def _check_fits(model: LanguageModel, prompt: Prompt, generation: GenerationConfig, where: str, instruction: str) -> None:
    """Raise EmosteerError where a dialogue of longest replies does not fit: it would break off in its middle."""
    if model.context is None or prompt.n_replies == 1:
        return
    most, n = generation.max_new_tokens, prompt.n_replies
    messages = model.dialogue.instructed(prompt.messages, instruction) if instruction else prompt.messages
    nothing = [""] * (n - 1)
    frame = model.dialogue.continued(_messages(messages, nothing, prompt.turns or nothing))
    longest = len(frame) + most * (n + (n - 1 if prompt.partner else 0))
    if prompt.partner:
        longest += len(model.dialogue.continued([{"role": "user", "content": prompt.partner.system}]))
    if longest > model.context:
        raise EmosteerError(
            f"{where}: the dialogue of prompt {prompt.id!r} may come to {longest:,} tokens with {n} replies of up to {most:,}, but "
            f"the context of {model.name} is {model.context:,}: give it fewer turns, or lower generation.max_new_tokens"
        )
