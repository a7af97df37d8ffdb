"""What it means that two sweeps came to the same, however they ran."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from desk import Desk

ROW = ["cell_id", "prompt_id", "sample"]
"""What tells the rows of replies.parquet apart."""


def metrics_of(desk: Desk) -> pd.DataFrame:
    """What a sweep came to, less what tells how and when it ran; of cells that are done."""
    results = desk.results().set_index("cell_id").sort_index()
    done = results[results["status"] == "done"].drop(columns=["sweep", "attempt", "seconds"])
    return done.dropna(axis="columns", how="all")


def assert_same_results(desk: Desk, reference: Desk) -> None:
    """The replies to the letter, the metrics but for their last digits, each row once."""
    assert desk.replies() == reference.replies()
    ours, theirs = metrics_of(desk), metrics_of(reference)
    assert not ours.index.duplicated().any()
    # Ranks of rounded perplexities may change with the batch: what they settle is compared loosely.
    loose = [column for column in ours if column.startswith("perplexity") and column.split("_")[-1] in ("p", "q", "perm")]
    # A column of counts is one of floats where rows of failed cells stand beside.
    # Padding may move one over the edge to another fourth digit.
    rounded = [column for column in ours if column.startswith("perplexity") and column not in loose]
    exact = [column for column in ours if column not in (*loose, *rounded)]
    pd.testing.assert_frame_equal(ours[exact], theirs[exact], rtol=1e-6, check_dtype=False)
    pd.testing.assert_frame_equal(ours[rounded], theirs[rounded], rtol=1e-3, atol=0.02, check_dtype=False)
    pd.testing.assert_frame_equal(ours[loose], theirs[loose], atol=0.05)
    rows, expected = (
        pd.read_parquet(one.sweep / "replies.parquet").sort_values(ROW).reset_index(drop=True) for one in (desk, reference)
    )
    assert not rows.duplicated(ROW).any()
    pd.testing.assert_frame_equal(rows[[*ROW, "reply"]], expected[[*ROW, "reply"]])
