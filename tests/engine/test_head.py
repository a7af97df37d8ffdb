"""The head by slices gives what the head gives."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from emosteer.engine.head import SLICE, sliced


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("vocabulary", [7, SLICE, 2 * SLICE + 5])
def test_a_sliced_head_gives_the_heads_logits(vocabulary: int, bias: bool) -> None:
    torch.manual_seed(0)
    head = nn.Linear(16, vocabulary, bias=bias)
    by_slices = sliced(head)
    assert by_slices is not None
    for shape in ((3, 1, 16), (5, 1, 16), (2, 1, 16), (1, 4, 16)):  # more rows than before, and fewer
        states = torch.randn(shape)
        torch.testing.assert_close(by_slices(states), head(states), atol=1e-5, rtol=1e-5)


def test_other_heads_keep_their_forward() -> None:
    class Own(nn.Linear):
        """A model's own kind of head."""

    given_by_accelerate = nn.Linear(4, 4)
    vars(given_by_accelerate)["forward"] = given_by_accelerate.forward
    for head in (None, nn.Identity(), Own(4, 4), nn.Linear(4, 4, dtype=torch.bfloat16), given_by_accelerate):
        assert sliced(head) is None
