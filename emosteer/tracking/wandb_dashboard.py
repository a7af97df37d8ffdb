"""A saved workspace view and a report in Weights & Biases for a sweep, as plain objects of `wandb-workspaces`; saved only on request.

Everything that needs no server is checked by that library while they are built: panels, filters, the keys that they name.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import wandb
import wandb_workspaces.expr as expr
import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws

if TYPE_CHECKING:
    from emosteer.tracking.run import Destination

MOST_RUNS = 1000
"""A panel of W&B draws no more runs."""
COLD_TO_WARM = [wr.GradientPoint(color="#2166ac", offset=0), wr.GradientPoint(color="#f7f7f7", offset=50)]
COLD_TO_WARM += [wr.GradientPoint(color="#b2182b", offset=100)]
WIDE, HALF = 24, 12
"""Of the 24 columns of a grid."""
PINNED = ("config:pair.value", "config:layers.value", "config:coefficient.value", "summary:primary_delta", "summary:perplexity_ratio")


@dataclass(frozen=True)
class Dashboard:
    """What is saved for a sweep."""

    workspace: ws.Workspace
    report: wr.Report

    def specification(self) -> dict[str, Any]:
        """As it is sent: what the panels, filters and texts are."""
        view, report = self.workspace._to_model(), self.report._to_model()
        specs = {"workspace": view.spec, "report": report.spec}
        return {name: json.loads(spec.model_dump_json(by_alias=True, exclude_none=True)) for name, spec in specs.items()}

    def save(self) -> dict[str, str]:
        """Save both; their addresses."""
        return {"workspace": str(self.workspace.save().url), "report": str(self.report.save().url)}


def dashboard(to: Destination, entity: str | None, pairs: list[str], n_cells: int) -> Dashboard:
    """The view and the report of a sweep.

    Args:
        to: where its runs are.
        entity: user or team; None for the server's default, which it is asked for.
        pairs: the emotion pairs of its cells.
        n_cells: how many cells it has.
    """
    entity = entity or str(wandb.Api().default_entity)
    cells = [expr.Metric("Group") == to.group, expr.Config("kind") == "cell"]
    workspace = ws.Workspace(
        entity=entity,
        project=to.project,
        name=f"emosteer {to.group}"[:128],
        sections=[
            ws.Section(name="Effect", is_open=True, panels=[heatmap("all pairs"), dose_response(), trade_off(), coordinates()]),
            ws.Section(name="Replies", is_open=True, panels=[replies()]),
        ],
        settings=ws.WorkspaceSettings(x_axis="Step", max_runs=MOST_RUNS),
        runset_settings=ws.RunsetSettings(filters=cells, pinned_columns=list(PINNED)),
    )
    return Dashboard(workspace, _report(to, entity, pairs, n_cells))


def heatmap(pair: str) -> wr.ScatterPlot:
    """Layer against coefficient, coloured by the primary effect: W&B has no heatmap over runs."""
    return wr.ScatterPlot(
        title=f"Primary effect by layer and coefficient, {pair}",
        x=wr.Config("coefficient"),
        y=wr.Config("layer"),
        z=wr.SummaryMetric("primary_delta"),
        gradient=COLD_TO_WARM,
        layout=wr.Layout(w=HALF, h=8),
    )


def dose_response() -> wr.LinePlot:
    """The primary effect along the coefficient, a curve per layer."""
    return wr.LinePlot(
        title="Dose-response by layer",
        x="coefficient",
        y=["primary_delta"],
        groupby=wr.Config("layers"),
        groupby_aggfunc="mean",
        groupby_rangefunc="minmax",
        max_runs_to_show=MOST_RUNS,
        layout=wr.Layout(x=HALF, w=HALF, h=8),
    )


def trade_off() -> wr.ScatterPlot:
    """What the emotion costs in fluency."""
    return wr.ScatterPlot(
        title="Emotion against perplexity",
        x=wr.SummaryMetric("perplexity_ratio"),
        y=wr.SummaryMetric("primary_delta"),
        log_x=True,
        layout=wr.Layout(w=HALF, h=8),
    )


def coordinates() -> wr.ParallelCoordinatesPlot:
    """Every axis against effect and cost."""
    axes = [wr.Config(key) for key in ("pair", "layer", "coefficient", "vector_method", "site")]
    effects = [wr.SummaryMetric(key) for key in ("primary_delta", "primary_beyond_random", "perplexity_ratio")]
    columns = [wr.ParallelCoordinatesPlotColumn(metric) for metric in (*axes, *effects)]
    return wr.ParallelCoordinatesPlot(title="Axes, effect and cost", columns=columns, layout=wr.Layout(x=HALF, w=HALF, h=8))


def replies() -> wr.WeavePanelSummaryTable:
    """Steered replies beside the baseline's."""
    return wr.WeavePanelSummaryTable(table_name="replies", layout=wr.Layout(w=WIDE, h=14))


def _report(to: Destination, entity: str, pairs: list[str], n_cells: int) -> wr.Report:
    def runs(name: str, *filters: Any) -> Any:
        # Of the report's own project: a run set that names one is looked up on the server while it is built.
        return wr.Runset(name=name, filters=[expr.Metric("Group") == to.group, *filters])

    cut = f" W&B draws {MOST_RUNS:,} of a sweep's {n_cells:,} cells; the grid below has all." if n_cells > MOST_RUNS else ""
    is_cell = expr.Config("kind") == "cell"
    blocks: list[Any] = [
        wr.TableOfContents(),
        wr.P("Primary effect: steered minus baseline of the emotion that each pair declared." + cut),
    ]
    for pair in pairs:
        chosen = runs(pair, is_cell, expr.Config("pair") == pair)
        blocks += [wr.H2(pair), wr.PanelGrid([chosen], panels=[heatmap(pair), dose_response(), trade_off(), coordinates()])]
    summary = runs("summary", expr.Config("kind") == "summary")
    attributions = runs("attribution", expr.Config("kind") == "attribution")
    pictures = wr.MediaBrowser(media_keys=["attribution_heatmap"], layout=wr.Layout(w=WIDE, h=10))
    blocks += [
        wr.H2("Attribution"),
        wr.PanelGrid([attributions], panels=[pictures]),
        wr.H2("Grid with q"),
        wr.PanelGrid([summary], panels=[wr.WeavePanelSummaryTable(table_name="grid", layout=wr.Layout(w=WIDE, h=12))]),
        wr.H2("Replies"),
        wr.PanelGrid([runs("cells", is_cell)], panels=[replies()]),
    ]
    about = "Made by `emosteer-sweep dashboard`, from the runs of the sweep."
    return wr.Report(to.project, entity, f"emosteer {to.group}"[:128], about, blocks, width="fluid")
