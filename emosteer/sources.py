"""What tells two emotions apart where nobody wrote contrastive pairs: the NRC lexicon's words for them, how a model takes a
question while it is told to feel the one or the other, or what it is asked to write stories about.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import sha256

from emosteer.datasets import ContrastivePair, Prompt
from emosteer.errors import EmosteerError
from emosteer.scoring.nrc import CATEGORIES, words_of

MOST_WORDS = 128
"""Of each emotion: words agree less than sentences do (on SmolLM2 two halves of 64 have a cosine of 0.44 at block 10)."""
INSTRUCTIONS = (
    "You are full of {emotion}. Everything that you say comes from it.",
    "Right now you feel nothing but {emotion}, and it shows in each of your answers.",
    "Answer as somebody whose day has been one of {emotion}, from morning to night.",
    "Stay in your role: a person who is overcome by {emotion}.",
)
"""What the system says; `{emotion}` is a noun such as joy."""
QUESTIONS = (
    "What does a week usually look like for you?",
    "How would you describe the place where you live?",
    "What should I know about the weather today?",
    "Which way would you take to the station?",
    "What did you notice on your last walk?",
    "Could you tell me about the house next door?",
    "What is on the table in front of you?",
    "How was the meeting on Tuesday?",
    "What do you think of the new timetable?",
    "Who else works in your office?",
    "What would you do with a free afternoon?",
    "How do you like your coffee?",
)
"""What the user asks under each instruction, without an emotion of its own."""
STORY = "Write a very short story about {scene}, told by somebody who feels deep {emotion}. Let the {emotion} show in every sentence."
"""What the user asks for; `{emotion}` is a noun such as joy."""
SCENES = (
    "a walk to the market",
    "an evening at home",
    "a letter in the post",
    "the last day at a job",
    "a journey by train",
    "a garden after the rain",
    "a visit from an old friend",
    "the first snow",
    "a phone call at night",
    "a birthday",
    "a new house",
    "a dog at the door",
    "a school play",
    "a meal with the family",
    "a morning by the sea",
    "a bicycle that was lent to a neighbour",
    "the results of an exam",
    "a song on the radio",
    "a wedding next door",
    "an hour in a waiting room",
    "a photograph in a drawer",
    "a football match",
    "the way back from work",
    "a child who learns to swim",
)
"""What the stories are about, without an emotion of its own."""


@lru_cache(maxsize=64)
def persona_prompts(target: str, counterpart: str) -> tuple[Prompt, ...]:
    """Every question under every instruction, for the target emotion and its counterpart in turn: [pair, 2] in a row.

    The two of a pair differ in the emotion's name alone.
    Source: persona instructions as contrast (Chen et al., *Persona Vectors*, 2025), without the replies that they generate.

    Args:
        target: a noun, such as joy.
        counterpart: another.
    """
    prompts = []
    for i, instruction in enumerate(INSTRUCTIONS, 1):
        for j, question in enumerate(QUESTIONS, 1):
            for side, emotion in (("target", target), ("counterpart", counterpart)):
                system = {"role": "system", "content": instruction.format(emotion=emotion)}
                messages = (system, {"role": "user", "content": question})
                prompts.append(Prompt(f"persona-{i}-{j:02}-{side}", question, "", messages))
    return tuple(prompts)


@lru_cache(maxsize=64)
def lexicon_pairs(target: str, counterpart: str) -> tuple[ContrastivePair, ...]:
    """Words of the target emotion against words of its counterpart, one a text, that are in the NRC lexicon for one of them alone.

    At most `MOST_WORDS` of each, as many of the one as of the other, in the order of a hash: a fair choice among all, the same
    everywhere. Which word stands against which means nothing.

    Args:
        target: a category of the lexicon, such as joy.
        counterpart: another.

    Raises:
        EmosteerError: the lexicon has no such emotion, or no word that is of one of them alone.
    """
    for key, emotion in (("pair.target", target), ("pair.counterpart", counterpart)):
        if emotion not in CATEGORIES:
            raise EmosteerError(
                f"{key}={emotion}: vector.source=lexicon needs words of it, and the NRC lexicon has {', '.join(CATEGORIES)}; "
                "choose a pair of these, or vector.source=pairs"
            )
    words, others = set(words_of(target)), set(words_of(counterpart))
    sides = [sorted(own, key=lambda word: sha256(word.encode()).digest())[:MOST_WORDS] for own in (words - others, others - words)]
    if not all(sides):
        raise EmosteerError(f"vector.source=lexicon: no word is of {target} or {counterpart} alone; choose another pair")
    return tuple(ContrastivePair(f"word-{i:03}", *both) for i, both in enumerate(zip(*sides, strict=False), 1))


@lru_cache(maxsize=64)
def story_prompts(target: str, counterpart: str) -> tuple[Prompt, ...]:
    """What the model is asked to write: a story about each scene, of the target emotion and of its counterpart in turn.

    The two of a scene differ in the emotion's name alone, which is also their `category`.

    Args:
        target: a noun, such as joy.
        counterpart: another.
    """
    prompts = []
    for number, scene in enumerate(SCENES, 1):
        for emotion in (target, counterpart):
            text = STORY.format(scene=scene, emotion=emotion)
            prompts.append(Prompt(f"story-{number:02}-{emotion}", text, emotion, ({"role": "user", "content": text},)))
    return tuple(prompts)
