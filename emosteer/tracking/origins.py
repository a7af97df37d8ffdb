"""What a cell comes from, as a tracker's runs and artifacts: texts make a vector or an attribution, and a vector makes cells."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from emosteer.records.cell import Cell, Part, VectorSpec
from emosteer.records.publish import read_json
from emosteer.records.store import Store
from emosteer.records.sweep import DONE, FAILED, Sweep
from emosteer.tracking.axes import attribution_config, vector_config
from emosteer.tracking.run import Artifact, Destination, File, Picture, Run, Scalar, Table, artifact_name, cut, picture, plain

BY_BLOCK = ("norm", "residual_norm", "split_half", "auc", "pairs_needed")
"""What a vector's facts say of each block."""

FACTS = ("vector_", "pair", "target", "model", "dtype", "site")
"""How the keys of a config begin that say what a vector is."""


class Origins:
    """The artifacts of a sweep's store, and the runs that make them.

    Args:
        sweep: whose cells use them.
        to: where the runs go.
    """

    def __init__(self, sweep: Sweep, to: Destination) -> None:
        self.sweep, self.store, self.to = sweep, sweep.store, to
        # A vector serves many cells, and is read once.
        self._file = cache(_file)

    def of(self, cell: Cell) -> list[Artifact]:
        """What a cell or control was made from: its vector, and the attribution that chose its blocks."""
        found = [self._vector(cell) if cell.vector else None]
        if cell.attribution and cell.layers is None:
            found.append(self._attribution(cell))
        return [artifact for artifact in found if artifact]

    def vector_run(self, cell: Cell) -> Run | None:
        """The run of the vector of a cell or control: made from texts, for cells to use; None where it is not there."""
        artifact = self._vector(cell)
        if artifact is None or cell.vector is None:
            return None
        vector, facts = cell.vector, self.store.vector_facts(cell.vector_id)
        own = vector.source if not vector.shuffled else "shuffled"
        texts = [(own, artifact_name(own, cell.pair.name if cell.pair else "texts"), vector.texts)] if vector.texts else []
        texts += [("pairs", artifact_name("pairs", other), other) for other in vector.others]
        texts += [(vector.source, artifact_name(vector.source, part.name or part.texts), part.texts) for part in _parts(vector)]
        texts += [("neutral", "neutral", cell.neutral)]
        summary = {key: facts.get(key) for key in ("n_pairs", "seconds")} | {"status": DONE}
        blocks = _by_block(facts)
        limited, _, told = cut({"blocks": blocks} if blocks.rows else {}, {})
        return Run(
            key=f"vector {cell.vector_id}",
            name=cell.vector_id,
            job_type="vector",
            to=self.to,
            config=vector_config(cell, self.sweep.name),
            summary={key: value for key, value in summary.items() if value is not None},
            tables=limited,
            uses=self._texts(texts),
            makes=[artifact],
            notes="\n".join(told),
        )

    def attribution_run(self, cell: Cell) -> Run | None:
        """The run of an attribution: scores by block, as a table and a heatmap; None where it is not settled."""
        state = self.sweep.state(cell, self.sweep.scorers())
        artifact = self._attribution(cell)
        if state not in (DONE, FAILED) or (state == DONE and artifact is None) or cell.attribution is None:
            return None
        key = cell.attribution_id
        facts = self.store.attribution_summary(key) or {}
        shown = {"attribution_scores": attribution_scores(self.store, {key: cell.pair.name if cell.pair else ""})} if artifact else {}
        heatmap = self.store.paths.attribution_heatmap(key)
        drawn: dict[str, list[Picture]] = {"attribution_heatmap": [picture(heatmap, key)]} if heatmap.exists() else {}
        tables, pictures, told = cut({name: table for name, table in shown.items() if table.rows}, drawn)
        failure = self.sweep.failure(cell) or {}
        return Run(
            key=f"attribution {key}",
            name=cell.id,
            job_type=cell.kind,
            to=self.to,
            config=attribution_config(cell, self.sweep.name),
            summary={**_headline(facts), "status": state},
            tables=tables,
            images=pictures,
            uses=self._texts(
                [("diagnostics", artifact_name("diagnostics", cell.pair.name if cell.pair else ""), cell.attribution.diagnostics)]
            ),
            makes=[artifact] if artifact else [],
            notes="\n".join([*([f"Failed: {failure.get('message')}"] if state == FAILED else []), *told]),
            exit_code=1 if state == FAILED else 0,
        )

    def _vector(self, cell: Cell) -> Artifact | None:
        key = cell.vector_id
        files = [self.store.paths.vector(key), self.store.paths.vector_facts(key)]
        config = vector_config(cell, self.sweep.name)
        facts: dict[str, Scalar] = {k: v for k, v in config.items() if v is not None and k.startswith(FACTS)}
        return self._artifact(artifact_name("vector", key), "vector", files, facts, "A direction per block: positive minus negative.")

    def _attribution(self, cell: Cell) -> Artifact | None:
        key, paths = cell.attribution_id, self.store.paths
        files = [paths.attribution_scores(key), paths.attribution_summary(key), paths.attribution_heatmap(key)]
        return self._artifact(
            artifact_name("attribution", key), "attribution", files, {}, "Attribution patching: scores by component."
        )

    def _texts(self, wanted: list[tuple[str, str, str]]) -> list[Artifact]:
        """Artifacts of texts, from their types, names and digests; those that are gone are left out."""
        found = [self._artifact(name, kind, [self.store.paths.texts(key)], {"texts": key}, "") for kind, name, key in wanted]
        return [artifact for artifact in found if artifact]

    def _artifact(self, name: str, kind: str, paths: list[Path], facts: dict[str, Scalar], description: str) -> Artifact | None:
        """None where the first of the files is not there."""
        files = [self._file(path) for path in paths if path.exists()]
        return Artifact(name, kind, files, facts, description) if paths[0].exists() else None


def attribution_scores(store: Store, attributions: dict[str, str]) -> Table:
    """A row per pair, model and block: mean scores [nats] at the last prompt position, summed over all positions, and the rank.

    Args:
        store: where the attributions are.
        attributions: attribution id -> pair.
    """
    # Reading scores takes torch, which a finaliser of tables alone does without.
    from emosteer.resources import read_attribution

    columns = ["attribution_id", "pair", "model", "block", "attention", "mlp", "residual"]
    columns += ["attention_all", "mlp_all", "block_score", "rank"]
    rows: list[list[Scalar]] = []
    for key, pair in sorted(attributions.items()):
        found = read_attribution(store, key)
        if found is None:
            continue
        model = (read_json(store.paths.attribution_summary(key)) or {}).get("model")
        last = [found.last[site].mean(0).tolist() for site in ("attention", "mlp", "residual")]
        everywhere = [found.everywhere[site].mean(0).tolist() for site in ("attention", "mlp")]
        ranks = {block: rank for rank, block in enumerate(found.ranking(), start=1)}
        scores = zip(*last, *everywhere, found.block_scores().tolist(), strict=True)
        rows += [[key, pair, model, block, *map(plain, values), ranks[block]] for block, values in enumerate(scores)]
    return Table(columns, rows)


def _parts(vector: VectorSpec) -> list[Part]:
    """The other pairs of a vector that is put together of several."""
    return [part for part in (*vector.plus, *vector.without) if part.texts]


def _file(path: Path) -> File:
    return File(str(path.resolve()), path.name, hashlib.sha256(path.read_bytes()).hexdigest())


def _by_block(facts: dict[str, Any]) -> Table:
    """A row per block, with what the facts say of it."""
    known = {key: facts[key] for key in BY_BLOCK if isinstance(facts.get(key), list)}
    n_blocks = max(map(len, known.values()), default=0)
    known = {key: values for key, values in known.items() if len(values) == n_blocks}
    return Table(["block", *known], [[block, *(plain(values[block]) for values in known.values())] for block in range(n_blocks)])


def _headline(facts: dict[str, Any]) -> dict[str, Scalar]:
    """The numbers of an attribution that are shown in a list of runs."""
    ranking = facts.get("ranking") or [None]
    counts = {"n_pairs": len(facts.get("pair_ids", [])), "n_aligned": len(facts.get("aligned_ids", []))} if facts else {}
    values = {
        "first_block": ranking[0],
        **{key: facts.get(key) for key in ("n_dropped", "metric_clean", "metric_corrupted", "seconds")},
    }
    return {**counts, **{key: value for key, value in values.items() if isinstance(value, int | float)}}
