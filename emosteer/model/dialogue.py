"""How a model reads a dialogue: its chat template, or a plain format for a base model that has none."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from emosteer.datasets import Message
from emosteer.errors import EmosteerError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPEAKERS = {"system": "System", "user": "User", "assistant": "Assistant"}
OPENING: Message = {"role": "user", "content": "How are things?"}
"""What the user says before a text that is read as a reply; many templates refuse a dialogue without it."""

MARK = "\ue000"
"""A character of private use, which no template writes: shows where a template puts the content."""


@dataclass(frozen=True)
class Reading:
    """A text inside its template: token ids, and which of them [start, stop) are read, the text's own as a rule."""

    tokens: tuple[int, ...]
    start: int
    stop: int


class Dialogue:
    """Turns messages into the tokens that one model expects, and its tokens back into a reply.

    Args:
        tokenizer: the model's own; its `chat_template` decides the format.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.has_template = bool(tokenizer.chat_template)
        self._prompts: dict[Hashable, tuple[int, ...]] = {}
        """Those that were asked for: every cell of a sweep asks for the same, and a template takes a millisecond."""

    def prompt(self, messages: Sequence[Message], reply_prefix: str = "") -> tuple[int, ...]:
        """The tokens after which the model's reply begins; `reply_prefix` is a beginning put into its mouth."""
        key = (reply_prefix, tuple(tuple(message.items()) for message in messages))
        if key not in self._prompts:
            self._prompts[key] = self.continued(messages, reply_prefix)
        return self._prompts[key]

    def continued(self, messages: Sequence[Message], reply_prefix: str = "") -> tuple[int, ...]:
        """The same of messages that nobody will ask for again, such as a dialogue that hangs on what the model has said."""
        return self._tokens(self._render(messages, opens_reply=True) + reply_prefix)

    def instructed(self, messages: Sequence[Message], instruction: str) -> tuple[Message, ...]:
        """The messages under an instruction: in the system message, or where the template has none, before the user's first words.

        It follows a system message of the messages' own; it replaces one that a template puts where there is none.
        """
        own = messages[0]["content"] if messages and messages[0]["role"] == "system" else ""
        rest = messages[1:] if own else messages
        system: Message = {"role": "system", "content": f"{own}\n\n{instruction}" if own else instruction}
        if self._shows([system, *rest], instruction):
            return (system, *rest)
        first: Message = {"role": rest[0]["role"], "content": f"{instruction}\n\n{rest[0]['content']}"}
        return (*messages[: len(messages) - len(rest)], first, *rest[1:])

    def _shows(self, messages: Sequence[Message], text: str) -> bool:
        """Whether a template takes messages, and writes a text of theirs."""
        try:
            return text in self._render(messages)
        except TemplateError:
            return False

    def reading(self, text: str, at: str = "token_mean") -> Reading:
        """The text in the template, with the span of tokens whose mean state stands for it.

        Args:
            text: what is read.
            at: `token_mean`: all of the text's own tokens, where it is the assistant's reply to a neutral opening.
                `last_token`: the last of those.
                `assistant_prefix`: the text is the user's only message, and the span is the one token after which the assistant's
                reply would begin: the last of what the template writes there (the colon of `Assistant:` without a template). By
                then the model has read the text and prepares to answer it. Source: the last of the post-instruction tokens of
                Arditi et al., *Refusal in Language Models Is Mediated by a Single Direction* (2024).

        Raises:
            EmosteerError: a template that changes the text, or no token of its own.
        """
        if at == "assistant_prefix":
            return self.asking([{"role": "user", "content": text}], at)
        rendered, marked = (self._render([OPENING, {"role": "assistant", "content": content}]) for content in (text, MARK))
        own = self._locate(rendered, text, after=max(marked.find(MARK), 0))
        return replace(own, start=own.stop - 1) if at == "last_token" else own

    def asking(self, messages: Sequence[Message], at: str = "token_mean") -> Reading:
        """A dialogue that ends with a question of the user's, with the span of tokens whose mean state stands for it.

        Args:
            messages: the last is the user's.
            at: `token_mean`: the last message's own tokens, which follow what the system and others said before.
                `last_token`: the last of those. `assistant_prefix`: the one after which the reply would begin, as for `reading`.

        Raises:
            EmosteerError: a template that takes no such messages, or changes the last one.
        """
        try:
            rendered = self._render(messages, opens_reply=True)
            marked = self._render([*messages[:-1], {**messages[-1], "content": MARK}], opens_reply=True)
        except Exception as error:
            # A template raises what it likes, for example of a system message.
            raise EmosteerError(f"the chat template refuses {[m['role'] for m in messages]}: {error}") from error
        if at == "assistant_prefix":
            tokens = self._tokens(rendered)
            return Reading(tokens, len(tokens) - 1, len(tokens))
        own = self._locate(rendered, messages[-1]["content"], after=max(marked.find(MARK), 0))
        return replace(own, start=own.stop - 1) if at == "last_token" else own

    def roles(self, messages: Sequence[Message], reply_prefix: str = "") -> tuple[str, ...]:
        """Whose each token of `prompt` is: `system`, `user` or `assistant` for what is said, `template` for what stands around.

        A system text that the template adds by itself is the system's, and the reply's prefix the assistant's. Empty where the
        tokenizer does not tell which characters its tokens are.
        """
        if not getattr(self.tokenizer, "is_fast", False):
            return ()
        rendered = self._render(messages, opens_reply=True)
        said = [self._said(rendered, messages, number) for number in range(len(messages))]
        if all(message["role"] != "system" for message in messages):
            said.append(self._said(rendered, [{"role": "system", "content": ""}, *messages], 0))
        spans = [span for span in said if span and span[0] < span[1]] + [(len(rendered), len(rendered + reply_prefix), "assistant")]
        encoding = self.tokenizer(rendered + reply_prefix, add_special_tokens=not self.has_template, return_offsets_mapping=True)

        def role(begin: int, end: int) -> str:
            own = (name for first, last, name in spans if begin < end and end > first and begin < last)
            return next(own, "template")

        return tuple(role(begin, end) for begin, end in encoding["offset_mapping"])

    def _said(self, rendered: str, messages: Sequence[Message], number: int) -> tuple[int, int, str] | None:
        """Where a message's text stands, and its role: what the template puts around a mark in its place tells."""
        changed = [dict(message) for message in messages]
        changed[number]["content"] = MARK
        try:
            before, _, after = self._render(changed, opens_reply=True).partition(MARK)
        except Exception:  # templates refuse roles by errors of their own
            return None
        if len(before) + len(after) > len(rendered) or not rendered.startswith(before) or not rendered.endswith(after):
            return None
        return len(before), len(rendered) - len(after), messages[number]["role"]

    def reply(self, tokens: Sequence[int]) -> str:
        """What the user reads: decoded without special tokens; a base model's next turn is cut off."""
        text = str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))
        if not self.has_template:
            for speaker in ("User:", "System:", "Assistant:"):
                text = text.split(f"\n{speaker}")[0]
        return text.strip()

    def _render(self, messages: Sequence[Message], opens_reply: bool = False) -> str:
        if not self.has_template:
            turns = [f"{SPEAKERS[m['role']]}: {m['content']}" for m in messages]
            return "\n".join([*turns, "Assistant:"] if opens_reply else turns)
        # A template that thinks aloud first (Qwen 3) has this switch; others ignore it.
        return str(
            self.tokenizer.apply_chat_template(
                [dict(m) for m in messages], tokenize=False, add_generation_prompt=opens_reply, enable_thinking=False
            )
        )

    def _tokens(self, rendered: str) -> tuple[int, ...]:
        # A template writes its own beginning-of-sequence token; the plain format takes the tokenizer's.
        return tuple(self.tokenizer(rendered, add_special_tokens=not self.has_template).input_ids)

    def _locate(self, rendered: str, text: str, after: int) -> Reading:
        text = text.strip()
        # Not before the place of the content: a short text may stand in the template's own words as well.
        begin = rendered.find(text, after)
        if begin < 0:
            raise EmosteerError(f"the chat template changes the text, so that its tokens cannot be told: {text[:60]!r}")
        end = begin + len(text)
        encoding = self.tokenizer(rendered, add_special_tokens=not self.has_template, return_offsets_mapping=True)
        # Offsets of zero width are special tokens of the tokenizer; a token that begins with the space before counts.
        own = [i for i, (a, b) in enumerate(encoding["offset_mapping"]) if b > a and b > begin and a < end]
        if not own:
            raise EmosteerError(f"no token of its own: {text[:60]!r}")
        return Reading(tuple(encoding["input_ids"]), own[0], own[-1] + 1)
