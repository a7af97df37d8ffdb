"""How a direction is found in the states of texts: one function a method, from `States` to a direction per block.

A direction points from the negative to the positive texts. Its length, which a raw coefficient multiplies, is in the activations'
own units: `mean_difference`, `grand_mean` and `neutral_projected` are differences of means and keep their lengths; what the others
find is a line, and along it the direction is as long as the mean difference reaches (`_along`). So with each of them a raw
coefficient of 1 moves a text as far along the direction as the positive texts are from what they are compared with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from emosteer.config import VectorConfig
from emosteer.errors import EmosteerError

LOGISTIC_STRENGTH = 1.0
"""Of the likelihood against the penalty: scikit-learn's C."""
MOST_NEWTON_STEPS = 100
CONVERGED = 1e-6
"""Largest entry of the gradient, in units where a coordinate's variance is 1 on average, at which a probe is done."""


@dataclass(frozen=True)
class States:
    """What a model makes of the texts that tell two emotions apart: a state per text and block, read as `vector.reading` says."""

    positive: Tensor
    """[pair, block, width] float32, of the texts that express the target emotion."""
    negative: Tensor
    """[pair, block, width] float32, of those that express its counterpart."""
    others: Tensor | None = None
    """[emotion, block, width], for `grand_mean`: the mean state of each further emotion's texts."""
    neutral: Tensor | None = None
    """[text, block, width], for `neutral_projected`: of texts without emotion."""
    components: int = VectorConfig.components
    """How many principal components `neutral_projected` takes out."""
    plus: tuple[tuple[float, States], ...] = ()
    """Of a composed vector: the states behind each vector that is added, and its weight."""
    without: tuple[States, ...] = ()
    """Of a composed vector: the states behind each vector that is taken out."""

    def of(self, pairs: Tensor) -> States:
        """The states of some pairs alone, by their indices, and as large a share of the pairs of `plus` and `without`.

        The shares of pairs that have none in common have none in common either. The other texts stay.
        """
        return replace(
            self,
            positive=self.positive[pairs],
            negative=self.negative[pairs],
            plus=tuple((weight, part._share(pairs, len(self))) for weight, part in self.plus),
            without=tuple(part._share(pairs, len(self)) for part in self.without),
        )

    def _share(self, pairs: Tensor, n: int) -> States:
        """Of pairs that are dealt out to `n` others in order: those that go with some of these."""
        return self.of(torch.nonzero(torch.isin(torch.arange(len(self)) * n // len(self), pairs)).flatten())

    def __len__(self) -> int:
        return len(self.positive)


Method = Callable[[States], Tensor]
"""Makes directions [block, width], float32, of states."""


def mean_difference(states: States) -> Tensor:
    """The mean over positive texts minus the mean over negative texts [block, width], as long as these are apart.

    Source: *Conversations: Love Them, Hate Them, Steer Them* (Chebrolu, Yeo, Jaidka).
    """
    return states.positive.mean(0) - states.negative.mean(0)


def grand_mean(states: States) -> Tensor:
    """The mean over positive texts minus the mean over all emotions [block, width], as long as these are apart.

    All emotions: the target, its counterpart and `states.others`, each by the mean over its own texts, so that they count alike.
    What the emotions share, such as being about feelings, goes; the counterpart is one among many.
    Source: mean-centring (Jorgensen et al., *Improving Activation Steering in Language Models with Mean-Centring*, 2023).

    Raises:
        EmosteerError: no other emotion's texts.
    """
    if states.others is None or not len(states.others):
        raise EmosteerError("vector.method=grand_mean needs texts of other emotions")
    target, counterpart = states.positive.mean(0), states.negative.mean(0)
    return target - torch.cat([torch.stack([target, counterpart]), states.others]).mean(0)


def pca(states: States) -> Tensor:
    """The first principal component of the pairs' differences [block, width].

    Of the differences positive minus negative themselves, their mean included, which is the first component of all texts once
    each has its pair's middle taken out. Its sign, which a component has not, is that of the mean difference; its length is the
    mean difference's reach along it.
    Source: Zou et al., *Representation Engineering* (2023), section 3.1; `pca_center` of the package repeng.
    """
    differences = (states.positive - states.negative).double().transpose(0, 1)
    _, axes = _principal(differences)
    return _along(axes[:, 0], states)


def logistic(states: States) -> Tensor:
    """The direction of a logistic probe with an L2 penalty [block, width]: the weights that tell positive from negative texts.

    Minimises `w.w / 2 + C * sum(log(1 + exp(-y * (w.x + b))))` with C = 1, as scikit-learn's LogisticRegression does, over states
    that are centred and divided by one number a block, so that a coordinate's variance is 1 on average: the penalty then means
    the same at every block, and no coordinate is stretched against another. Its length is the mean difference's reach along it.
    Source: linear probes (Alain and Bengio, *Understanding intermediate layers using linear classifier probes*, 2016).
    """
    texts = torch.cat([states.positive, states.negative]).double().transpose(0, 1)
    labels = torch.cat([texts.new_ones(len(states)), -texts.new_ones(len(states))])
    centred = texts - texts.mean(1, keepdim=True)
    scaled = centred / centred.square().mean((1, 2), keepdim=True).sqrt().clamp(min=1e-30)
    # The weights lie in the span of the texts, which are far fewer than coordinates: fit them there.
    coordinates, axes = _principal(scaled)
    weights = _logistic_weights(coordinates, labels)
    return _along((weights[:, None] @ axes).squeeze(1), states)


def _logistic_weights(texts: Tensor, labels: Tensor) -> Tensor:
    """Newton's method for the probe, all blocks at once, each step halved until it helps.

    Args:
        texts: [block, text, coordinate].
        labels: [text], 1 or -1.

    Returns:
        Weights [block, coordinate], without the intercept, which bears no penalty.
    """
    texts = torch.cat([texts, texts.new_ones(*texts.shape[:2], 1)], dim=2)
    penalty = texts.new_ones(texts.shape[2])
    penalty[-1] = 0

    def loss(weights: Tensor) -> Tensor:
        margins = labels * (texts @ weights[..., None]).squeeze(2)
        return (penalty * weights**2).sum(1) / 2 - LOGISTIC_STRENGTH * logsigmoid(margins).sum(1)

    weights = texts.new_zeros(texts.shape[0], texts.shape[2])
    for _ in range(MOST_NEWTON_STEPS):
        margins = labels * (texts @ weights[..., None]).squeeze(2)
        doubt = torch.sigmoid(-margins)
        gradient = penalty * weights - LOGISTIC_STRENGTH * (texts.mT @ (labels * doubt)[..., None]).squeeze(2)
        if not gradient.abs().max() > CONVERGED:
            break
        curvature = texts.mT @ ((doubt * (1 - doubt))[..., None] * texts) * LOGISTIC_STRENGTH + torch.diag(penalty)
        # At the flat end of the logistic no curvature is left for the intercept.
        step = torch.linalg.solve(curvature + 1e-12 * torch.eye(len(penalty), dtype=texts.dtype), gradient)
        before, length = loss(weights), texts.new_ones(texts.shape[0], 1)
        while bool((too_far := loss(weights - length * step) > before + 1e-12 * before.abs()).any()) and length.min() > 1e-10:
            length = torch.where(too_far[:, None], length / 2, length)
        weights = weights - length * step
    return weights[:, :-1]


def lda(states: States) -> Tensor:
    """Fisher's linear discriminant with a shrunk covariance [block, width]: the mean difference, whitened within the emotions.

    The covariance of the texts about their emotion's mean is shrunk toward a multiple of the identity by the share of Ledoit and
    Wolf, which is estimated from the texts; there are fewer of them than coordinates, and the plain one has no inverse. Its
    length is the mean difference's reach along it.
    Source: Fisher 1936; Ledoit and Wolf, *A well-conditioned estimator for large-dimensional covariance matrices* (2004).

    Raises:
        EmosteerError: one pair alone, about whose means nothing varies.
    """
    if len(states) < 2:
        raise EmosteerError("vector.method=lda needs the scatter of at least 2 pairs: give more, or another method")
    parts = [texts.double().transpose(0, 1) for texts in (states.positive, states.negative)]
    residuals = torch.cat([part - part.mean(1, keepdim=True) for part in parts], dim=1)
    difference = (parts[0].mean(1) - parts[1].mean(1))[..., None]
    share, scale = (value[:, None, None] for value in ledoit_wolf(residuals))
    # (a I + b R'R)^-1 d by Woodbury: as many equations as texts, not as coordinates.
    # Where nothing varies within the emotions, what is left is the mean difference.
    a, b = (share * scale).clamp(min=1e-30), (1 - share) / residuals.shape[1]
    inner = a * torch.eye(residuals.shape[1], dtype=a.dtype) + b * residuals @ residuals.mT
    whitened = (difference - b * residuals.mT @ torch.linalg.solve(inner, residuals @ difference)) / a
    return _along(whitened.squeeze(2), states)


def ledoit_wolf(residuals: Tensor) -> tuple[Tensor, Tensor]:
    """How far to shrink a covariance, and toward what.

    Args:
        residuals: [block, text, width], of mean zero.

    Returns:
        The share [block] that the identity gets, from 0 to 1, and the mean variance [block] that it is multiplied with.
    """
    n, width = residuals.shape[1:]
    products = residuals @ residuals.mT
    scale = products.diagonal(dim1=1, dim2=2).sum(1) / (n * width)
    squared = products.square().sum((1, 2)) / n**2  # of the covariance's entries, summed
    noise = (products.diagonal(dim1=1, dim2=2).square().sum(1) / n - squared) / (n * width)
    distance = squared / width - scale**2
    return torch.where(distance > 0, (noise / distance).clamp(0, 1), 1.0), scale


def neutral_projected(states: States) -> Tensor:
    """The mean difference without its part along the leading principal components of neutral texts [block, width].

    What varies most between texts without emotion (topic, length, register) is no emotion. `states.components` components about the
    neutral texts' mean are taken out; the direction is as long as what is left.
    Source: Mu and Viswanath, *All-but-the-Top* (2018), for word vectors.

    Raises:
        EmosteerError: no more neutral texts than components.
    """
    if states.neutral is None or len(states.neutral) <= states.components:
        texts = 0 if states.neutral is None else len(states.neutral)
        raise EmosteerError(f"vector.components={states.components}: of {texts} neutral texts give at most {max(texts - 1, 0)}")
    neutral = states.neutral.double().transpose(0, 1)
    leading = _principal(neutral - neutral.mean(1, keepdim=True))[1][:, : states.components]
    difference = mean_difference(states).double()[..., None]
    return (difference - leading.mT @ (leading @ difference)).squeeze(2).float()


def _principal(texts: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates [block, text, axis] of texts on their principal axes [block, axis, width], the longest first.

    By the products between texts, which are fewer than coordinates. Axes along which they do not vary are zero.
    """
    products = torch.linalg.eigh(texts @ texts.mT)
    lengths, of_texts = products.eigenvalues.clamp(min=0).sqrt().flip(1), products.eigenvectors.flip(2)
    # Half of the digits are left of a square root: what is smaller is rounding.
    inverse = torch.where(lengths > 1e-7 * lengths[:, :1], 1 / lengths, 0.0)
    return of_texts * lengths[:, None], (of_texts * inverse[:, None]).mT @ texts


def _along(lines: Tensor, states: States) -> Tensor:
    """The mean difference projected on each block's line [block, width]: no sign of the line's own is left, nor a length."""
    unit = lines / lines.norm(dim=1, keepdim=True)
    return (unit * (unit * mean_difference(states)).sum(1, keepdim=True)).float()


def fewest_pairs(method: Method) -> int:
    """Pairs that a method needs."""
    return 2 if method is lda else 1


METHODS: dict[str, Method] = {
    "mean_difference": mean_difference,
    "grand_mean": grand_mean,
    "pca": pca,
    "logistic": logistic,
    "lda": lda,
    "neutral_projected": neutral_projected,
}
