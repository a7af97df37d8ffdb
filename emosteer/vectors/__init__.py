"""Emotion vectors: directions in a model's activations, one per decoder block, and how long a push along them is.

`vector` is what they are, `reading` how a model reads the texts behind them, `methods` how a direction is found in what was
read, `composition` how several are put together, `making` the way from texts to a vector, and `quality` how sure a direction
is. A new method is one function in `methods`, named in `METHODS`.
"""

from emosteer.vectors.composition import combine_vectors, compose
from emosteer.vectors.making import emotion_vector, find_method, read_states
from emosteer.vectors.methods import (
    METHODS,
    States,
    grand_mean,
    lda,
    logistic,
    mean_difference,
    neutral_projected,
    pca,
)
from emosteer.vectors.quality import Quality, quality
from emosteer.vectors.reading import Reader, residual_norms, token_means
from emosteer.vectors.vector import EmotionVector, checked, random_direction

__all__ = [
    "METHODS",
    "EmotionVector",
    "Quality",
    "Reader",
    "States",
    "checked",
    "combine_vectors",
    "compose",
    "emotion_vector",
    "find_method",
    "grand_mean",
    "lda",
    "logistic",
    "mean_difference",
    "neutral_projected",
    "pca",
    "quality",
    "random_direction",
    "read_states",
    "residual_norms",
    "token_means",
]
