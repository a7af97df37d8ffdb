"""Fluency as the unsteered model sees it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from emosteer.scoring.scorer import Context, Scores, versioned

SIGNIFICANT_DIGITS = 4
"""Padding alone moves a perplexity by 2e-6 of its value, which a rank test would take for a difference."""


@versioned(1, per_reply=True)
def perplexity(replies: Sequence[str], *, context: Context) -> Scores:
    """exp(-mean log-probability per token) of each reply, given its prompt, under the unsteered model.

    Rounded to four significant digits, the last of which may be another one in another batch; NaN for a reply without tokens.

    Args:
        replies: not read; the reply's own tokens are.
        context: the model, and the tokens of prompts and replies.
    """
    # Here, so that naming the scorer does not import torch.
    from emosteer.engine.likelihood import mean_log_probabilities

    texts = list(zip(context.prompts, context.replies, strict=True))
    return {"perplexity": [rounded(math.exp(-mean)) for mean in mean_log_probabilities(context.engine, texts)]}


def rounded(value: float) -> float:
    """A number that a model gave, to so many digits as do not hang on the batch."""
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}")
