"""How a reply is split into words: the one place that decides it, so that all rates have the same denominator."""

from __future__ import annotations

import re
import unicodedata
from typing import Final

# Left and right single quotation mark, modifier letter apostrophe, fullwidth apostrophe.
_APOSTROPHES: Final = str.maketrans(dict.fromkeys("\u2018\u2019\u02bc\uff07", "'"))
# Soft hyphen, word joiner and byte order mark are invisible inside a word and no part of it.
_INVISIBLE: Final = str.maketrans(dict.fromkeys("\u00ad\u2060\ufeff"))


def _combining_marks() -> str:
    """Every character that continues a word although `re` does not count it as one of a word: marks and joiners."""
    # Beyond U+1FFFF there are no marks but the variation selectors of ideographs, U+E0100 to U+E01EF.
    marks = (chr(code) for code in range(0x300, 0x20000) if unicodedata.category(chr(code)).startswith("M"))
    zero_width_joiners = "\u200c\u200d"
    return "".join(marks) + zero_width_joiners + "\U000e0100-\U000e01ef"


_LETTER: Final = r"[^\W\d_]"
_LETTERS_OR_DIGITS: Final = r"[^\W_]"
_RUN: Final = rf"{_LETTERS_OR_DIGITS}+(?:[{_combining_marks()}]+{_LETTERS_OR_DIGITS}*)*"
_URL: Final = r"(?i:https?://|www\.)[^\s<>()\[\]\"]*[\w/]"
_ABBREVIATION: Final = rf"{_LETTER}(?:\.{_LETTER})+(?!\w)"
_NUMBER: Final = rf"\d+(?:[.,:/]\d+)+(?:{_RUN})?"
_WORD: Final = re.compile(rf"{_URL}|{_ABBREVIATION}|{_NUMBER}|{_RUN}(?:'{_RUN})*")

_CLITICS: Final = re.compile(r"(?:'(?:s|d|ll|m|re|ve))+\Z", re.IGNORECASE)


def straighten_apostrophes(text: str) -> str:
    """`text` with every typographic apostrophe (and single quotation mark) as the ASCII one."""
    return text.translate(_APOSTROPHES)


def split_words(reply: str) -> list[str]:
    """The words of `reply`, in order, in the case that they were written in.

    A word is a run of letters, digits and the marks that combine with them, in any script, in Unicode's composed form
    (NFC). Hence a run of Chinese or Thai, which are written without spaces, is one word. Further:

    - apostrophes within a word belong to it (`don't`, `mother's`, `rock'n'roll`), curly ones as straight ones; at its
      edges they are quotation marks or elisions and do not (`'happy'`, `dogs'`, `singin'`);
    - hyphens, dashes, slashes and underscores separate words: `well-being` is two, `_happy_` in Markdown one;
    - a number is one word, its separators and unit included (`3`, `1,000`, `10:30`, `2nd`, `3.5kg`), the number of a
      list item too; so is an abbreviation with full stops (`i.e`, `U.S`, without its last stop);
    - an address that starts with `http://`, `https://` or `www.` is one word;
    - emoji, punctuation and other symbols are no words: a reply of nothing else has none.
    """
    return _WORD.findall(straighten_apostrophes(unicodedata.normalize("NFC", reply)).translate(_INVISIBLE))


def place_words(text: str) -> list[tuple[int, int, str]]:
    """The words of `text` (`split_words`), which is in Unicode's composed form (NFC), each as (start, end, word), in characters."""
    whole = straighten_apostrophes(text)
    seen = whole.translate(_INVISIBLE)
    found = [(*word.span(), word[0]) for word in _WORD.finditer(seen)]
    if len(seen) == len(whole):
        return found
    places = [at for at, character in enumerate(whole) if ord(character) not in _INVISIBLE]
    return [(places[begins], places[ends - 1] + 1, word) for begins, ends, word in found]


NEGATIONS: Final = frozenset(
    [
        "not",
        "no",
        "never",
        "none",
        "nobody",
        "nothing",
        "nowhere",
        "neither",
        "nor",
        "without",
        "hardly",
        "scarcely",
        "barely",
        "cannot",
    ]
)
"""Words that negate, besides those in n't."""
NEGATION_REACH: Final = 3
"""So many words after a negation are under it, inside its clause."""
_CLAUSE_END: Final = re.compile(r"(?<=[.,;:!?…)\]])\s+|\s+(?=[(\[])|\n+")


def are_negated(reply: str) -> list[bool]:
    """Of each of the words of `reply` (`split_words`): whether a negation stands among the three words before it in its clause.

    A clause ends at a punctuation mark before a space, before a bracket, or at a line's end. The reach of three words is that of
    VADER (Hutto and Gilbert 2014).
    """
    negated: list[bool] = []
    for clause in _CLAUSE_END.split(straighten_apostrophes(reply)):
        negates = [word.casefold() in NEGATIONS or word.casefold().endswith("n't") for word in split_words(clause)]
        negated += [any(negates[max(0, at - NEGATION_REACH) : at]) for at in range(len(negates))]
    return negated


def without_clitics(word: str) -> str:
    """`word`, one of `split_words`, without the contracted 's, 'd, 'll, 'm, 're, 've at its end, possessives included.

    `mother's` -> `mother`, `I'd've` -> `I`. Words in n't keep it: `won't` is not `won`.
    """
    return _CLITICS.sub("", word)


def per_hundred_words(count: int, n_words: int) -> float:
    """`count` per 100 words; 0.0 for a reply without words."""
    return 100.0 * count / n_words if n_words else 0.0
