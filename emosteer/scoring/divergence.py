"""How far steering moved what the model expects next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from emosteer.scoring.perplexity import rounded
from emosteer.scoring.scorer import Context, Scores, versioned

if TYPE_CHECKING:
    from emosteer.engine import Origin

NOTHING = 1e-6
"""Nats below which a divergence is float32's rounding error, and shown as 0."""


@versioned(1, per_reply=True)
def kl(replies: Sequence[str], *, context: Context, origins: Sequence[Origin]) -> Scores:
    """Kullback-Leibler divergence KL(steered || unsteered) of the next token, in nats, mean over the reply's tokens.

    At each position both models have read the same reply so far; the sum goes over the whole vocabulary. 0 for unsteered replies. Of
    a reply under an instruction (prompting), the instructed model stands for the steered one, and the unsteered one reads the prompt
    without. What sampling does to the probabilities (temperature, top_p) is left out on both sides. Rounded to four significant
    digits, and below 1e-6 to 0; NaN for a reply without tokens.

    Args:
        replies: not read; the reply's own tokens are.
        context: the model, and the tokens of prompts and replies.
        origins: the prompt that each reply came from as it was read, and its steering.
    """
    # Here, so that naming the scorer does not import torch.
    from emosteer.engine.likelihood import mean_divergences

    texts = list(zip(context.prompts, context.replies, strict=True))
    means = mean_divergences(context.engine, texts, origins)
    return {"kl": [0.0 if mean < NOTHING else rounded(mean) for mean in means]}
