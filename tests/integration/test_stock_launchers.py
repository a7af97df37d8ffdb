"""The launchers and sweepers that Hydra's users bring along: the same records and results as with ours."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import yaml
from desk import Desk, Done

from emosteer.config import EFFECTS, METRICS, NUMBERS, StatisticsConfig

GRID = ("-m", "layer=1", "coefficient=0.1,0.3,1e39", "+scorers.noted._target_=noting.noted")
"""Two cells that are done, one that fails, as many controls, and the baseline."""
NOTING = """
import os

def noted(replies):
    with open(os.environ["NOTED"], "a") as notes:
        notes.write("scored\\n")
    return {"noted": [1.0] * len(replies)}
"""
LAUNCHERS = {
    "basic": (),
    "joblib": ("hydra.launcher.n_jobs=2",),
    "submitit_local": (),
}
OF_THE_RUN = ["attempt", "seconds"]
"""Columns that say how a cell was run, and not what came of it."""

SEARCH = ("experiment=search", "name=tiny", "controls.random=1", "statistics.n_resamples=99")


@pytest.fixture(scope="module")
def noting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library with a scorer that notes every call, from whatever process."""
    directory = tmp_path_factory.mktemp("noting")
    (directory / "noting.py").write_text(NOTING)
    return directory


def launched(home: Path, model: Path, noting: Path, *arguments: str) -> tuple[Desk, Done]:
    desk = Desk(home, model, noting, environment={"NOTED": str(home / "noted")})
    return desk, desk.run_warm(*GRID, *arguments)


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory, tiny_directory: Path, noting: Path) -> tuple[Desk, Done]:
    """The sweep with our launcher."""
    return launched(tmp_path_factory.mktemp("ours"), tiny_directory, noting)


@pytest.fixture(
    scope="module", params=["basic", *(pytest.param(name, marks=pytest.mark.slow) for name in ("joblib", "submitit_local"))]
)
def theirs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_directory: Path, noting: Path
) -> tuple[Desk, Done]:
    """The same sweep with a launcher of Hydra's, or of a plugin."""
    launcher = str(request.param)
    home = tmp_path_factory.mktemp(launcher)
    return launched(home, tiny_directory, noting, f"hydra/launcher={launcher}", *LAUNCHERS[launcher])


def told(done: Done) -> set[str]:
    """The summary's headline, table and failures. Of cells that do equally much, as here, the one in the examples is the first."""
    table = done.out.partition("Mean difference from")[0].splitlines()
    return {line for line in (*table, *done.out.splitlines()) if line.strip() and (line in table or line.startswith("failed:"))}


def test_the_same_replies_and_results(ours: tuple[Desk, Done], theirs: tuple[Desk, Done]) -> None:
    assert theirs[0].replies() == ours[0].replies()
    here, there = (desk.results().drop(columns=OF_THE_RUN).sort_values("cell_id", ignore_index=True) for desk, _ in (ours, theirs))
    pd.testing.assert_frame_equal(there, here, check_like=True, rtol=1e-6)


def test_one_failing_cell_fails_the_command_in_a_line_and_no_other_cell(theirs: tuple[Desk, Done]) -> None:
    desk, done = theirs

    assert done.code == 1
    assert "Traceback" not in done.text, done.text
    assert done.err.splitlines()[-1] == f"2 cells failed; see {desk.sweep / 'failures'}", "the cell and its control"
    status = desk.results().groupby("coefficient")["status"].agg(set)
    assert status.to_dict() == {0.1: {"done"}, 0.3: {"done"}, 1e39: {"failed"}}


def test_the_summary_stands_at_the_end(ours: tuple[Desk, Done], theirs: tuple[Desk, Done]) -> None:
    assert told(ours[1]) == told(theirs[1])
    assert any(line.startswith("tiny: 3 cells (2 done") for line in told(ours[1]))


def test_jobs_share_the_work(theirs: tuple[Desk, Done]) -> None:
    """Every record was scored once, in whatever process: the baseline that all need too."""
    desk, _ = theirs
    records = desk.records()

    assert len(records) == 5
    assert Path(desk.environment["NOTED"]).read_text().splitlines() == ["scored"] * len(records)
    assert {json.loads(record.read_text())["provenance"]["attempt"] for record in records.values()} == {1}


def test_each_job_has_a_directory_of_its_own(theirs: tuple[Desk, Done]) -> None:
    desk, _ = theirs
    jobs = sorted((desk.sweep / "jobs").iterdir())

    assert [job.name for job in jobs] == ["0", "1", "2"]
    assert not any(job.is_symlink() for job in jobs)
    given = [yaml.safe_load((job / ".hydra" / "overrides.yaml").read_text()) for job in jobs]
    assert ["coefficient=0.1" in given[0], "coefficient=0.3" in given[1], "coefficient=1e+39" in given[2]] == [True] * 3


def test_a_launcher_of_hydras_own_never_writes_through_an_earlier_sweeps_links(desk: Desk) -> None:
    """Our launcher's jobs/0 is a link into the store, to a cell of other values."""
    first = desk.run_warm("-m", "layer=1", "controls=none", "prompts.limit=2")
    assert first.code == 0, first.text
    (cell,) = (desk.store / "cells").iterdir()
    before = {path.name: path.read_text() for path in (cell / ".hydra").iterdir()}

    second = desk.run_warm("-m", "layer=2", "controls=none", "prompts.limit=2", "hydra/launcher=basic")

    assert second.code == 0, second.text
    assert {path.name: path.read_text() for path in (cell / ".hydra").iterdir()} == before
    assert "- layer=2" in (desk.sweep / "jobs" / "0" / ".hydra" / "overrides.yaml").read_text()


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory, tiny_directory: Path, library: Path) -> tuple[Desk, Done]:
    """The experiment `search`, small: Optuna looks for what raises perplexity most, below a limit that some trials pass."""
    desk = Desk(tmp_path_factory.mktemp("searched"), tiny_directory, library)
    return desk, desk.run_warm(
        *SEARCH,
        "objective.column=perplexity_delta",
        "objective.at_most={perplexity_ratio:1.3}",
        "layer=range(1,3)",
        "coefficient=interval(0.05,0.8)",
        "hydra.sweeper.n_trials=6",
        "hydra.sweeper.n_jobs=3",
    )


def test_a_search_shares_the_model_between_its_batches(searched: tuple[Desk, Done]) -> None:
    desk, done = searched

    assert done.code == 0, done.text
    assert done.err.splitlines().count("loading tiny-llama") == 1
    assert len(desk.results().query("not is_control")) == 6
    assert sorted(path.name for path in (desk.sweep / "jobs").iterdir()) == list("012345")


def test_the_best_trial_is_the_best_cell_within_the_limit(searched: tuple[Desk, Done]) -> None:
    desk, _ = searched
    found = yaml.safe_load((desk.sweep / "optimization_results.yaml").read_text())
    cells = desk.results().query("not is_control")
    within = cells.query("perplexity_ratio <= 1.3")
    best = within.loc[within["perplexity_delta"].idxmax()]

    assert 0 < len(within) < len(cells), "the limit divides the trials"
    assert cells["perplexity_delta"].max() > best["perplexity_delta"], "without the limit another would be the best"
    assert found["best_value"] == pytest.approx(best["perplexity_delta"])
    assert found["best_params"]["layer"] == best["layer"]
    assert found["best_params"]["coefficient"] == pytest.approx(best["coefficient"])


def test_a_search_may_minimise_and_outlives_a_failed_trial(desk: Desk) -> None:
    done = desk.run_warm(
        *SEARCH,
        *("objective=none", "objective.column=perplexity_ratio", "objective.direction=minimize", "controls.random=0"),
        *("layer=1", "coefficient=choice(0.1,0.4,1e39)", "prompts.limit=2"),
        *("hydra.sweeper.n_trials=12", "hydra.sweeper.n_jobs=12", "hydra.sweeper.max_failure_rate=0.9"),
    )

    assert done.code == 1, "a sweep with a failed cell fails"
    assert "Traceback" not in done.text, done.text
    found = yaml.safe_load((desk.sweep / "optimization_results.yaml").read_text())
    results = desk.results().query("not is_control").set_index("coefficient")
    assert results["status"].to_dict() == {0.1: "done", 0.4: "done", 1e39: "failed"}
    assert found["best_params"] == {"coefficient": 0.1}, "of what is swept"
    assert found["best_value"] == pytest.approx(results["perplexity_ratio"].min())


def test_an_unknown_column_is_refused_before_anything_runs(desk: Desk) -> None:
    done = desk.run(*SEARCH, "objective.column=joy_delt", "layer=range(1,3)", "coefficient=interval(0.1,0.2)")

    assert done.code == 1
    assert "objective.column=joy_delt: results have no such column (did you mean joy_delta?)" in done.err.splitlines()[-1]
    assert "Traceback" not in done.err
    assert not done.imported_torch
    assert not desk.store.exists()


def test_the_ends_of_columns_are_those_of_the_results(ours: tuple[Desk, Done]) -> None:
    """What an objective may name is known before there are results."""
    columns = set(ours[0].results())
    named = {f"{metric}_{effect}" for metric in METRICS for effect in EFFECTS} | set(NUMBERS)
    of_metrics = {column for column in columns if any(column.startswith(f"{metric}_") for metric in METRICS)}

    equivalence = {f"{metric.removesuffix('_ratio')}_p_equivalence" for metric in StatisticsConfig().equivalence}
    assert of_metrics <= named | equivalence
    assert equivalence <= of_metrics
    asked_for = ("joy_beyond_shuffled", "joy_beyond_negative", "joy_beyond_prompting")
    always = {column for column in named - set(NUMBERS) if column.startswith("joy_") and not column.startswith(asked_for)}
    assert always <= columns
    assert set(NUMBERS) <= columns
