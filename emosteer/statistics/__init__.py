"""Paired statistics of steered against unsteered replies to the same prompts: numbers in, numbers out.

The unit of analysis is the prompt: samples are averaged before they come here. All randomness comes from `seed` arguments.
"""

from emosteer.statistics.confirmation import FEWEST_TO_CONFIRM, Confirmation, confirm
from emosteer.statistics.equivalence import equivalence_p
from emosteer.statistics.families import false_discovery_rate, holm
from emosteer.statistics.paired import DEFAULT_RESAMPLES, PairedEffect, Trend, dose_response, paired_effects, smallest_p
from emosteer.statistics.power import power, prompts_needed, smallest_effect, upper_deviation
from emosteer.statistics.prediction import FEWEST_BLOCKS, Prediction, rank_prediction
from emosteer.statistics.primary import PrimaryEffect, primary_effect
from emosteer.statistics.unpaired import UnpairedEffect, unpaired_effect

__all__ = [
    "DEFAULT_RESAMPLES",
    "FEWEST_BLOCKS",
    "FEWEST_TO_CONFIRM",
    "Confirmation",
    "PairedEffect",
    "Prediction",
    "PrimaryEffect",
    "Trend",
    "UnpairedEffect",
    "confirm",
    "dose_response",
    "equivalence_p",
    "false_discovery_rate",
    "holm",
    "paired_effects",
    "power",
    "primary_effect",
    "prompts_needed",
    "rank_prediction",
    "smallest_effect",
    "smallest_p",
    "unpaired_effect",
    "upper_deviation",
]
