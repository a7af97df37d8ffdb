from __future__ import annotations

import pytest

from emosteer.scoring.pronouns import pronouns


def counts(reply: str, n_words: int) -> tuple[float, float]:
    """Singular and plural pronouns of a reply that a human says has `n_words` words."""
    scores = pronouns([reply])
    (both,), (singular,), (plural,) = (scores["first_person" + part] for part in ("", "_singular", "_plural"))
    assert both == pytest.approx(singular + plural)
    return singular * n_words / 100, plural * n_words / 100


@pytest.mark.parametrize(
    ("reply", "n_words", "singular", "plural"),
    [
        ("I told me that my dog is mine, by myself.", 10, 5, 0),  # I me my mine myself
        ("We gave us our dog; it is ours, by ourselves.", 10, 0, 5),  # we us our ours ourselves
        ("I'm glad I've come, I'd say I'll stay.", 8, 4, 0),
        ("I’m glad I’ve come, I’d’ve said I’ll stay.", 8, 4, 0),
        ("We're here, we've won, we'd say we’ll stay.", 8, 0, 4),
        ("Let's go, let’s, LET'S! He lets go.", 7, 0, 3),
        ("i think, MY dog, Us two", 6, 2, 1),
        ("You and he saw them, it, her and yours.", 9, 0, 0),
        ("The US told us, and the US's army", 8, 0, 1),
        ("PLEASE HELP US!", 3, 0, 1),
        ("In the U.S. people smile, i.e. they grin.", 8, 0, 0),
        ("Mines, imam, mystery, weather, hours, bus, wed, ill, Im", 9, 0, 0),
        ("'I' \"me\" (my) **mine** _myself_", 5, 5, 0),
        ("1. I\n2. we", 4, 1, 1),
        ("https://me.com/my/i", 1, 0, 0),
    ],
)
def test_hand_counted(reply: str, n_words: int, singular: int, plural: int) -> None:
    assert counts(reply, n_words) == pytest.approx((singular, plural))


def test_rates_are_per_hundred_words() -> None:
    # 1 of 1, 1 of 4, 2 of 8.
    assert pronouns(["I", "I see a dog", "We see a dog and a cat's ours"])["first_person"] == [100.0, 25.0, 25.0]


def test_other_scripts_have_none() -> None:
    assert pronouns(["Я и мы", "我们", "І"])["first_person"] == [0.0, 0.0, 0.0]  # the last is a Cyrillic I
