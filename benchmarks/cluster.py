"""Sweeps on a real SLURM of two nodes on this machine (launch/dev_cluster): where the time goes, and the stock launcher beside ours.

    python benchmarks/cluster.py [--tiny 200] [--real 24] [--repeats 1] [--json FILE]

- tiny: so many cells of a tiny random model with `hydra/launcher=slurm`, two workers, and what the wall clock went to;
- real: so many cells of SmolLM2-135M with `hydra/launcher=slurm` and with the stock `hydra/launcher=submitit_slurm` (one cell a job,
  two jobs at once as there are two fake GPUs), alternated, from the command until its results lie there; the replies are compared.

0 leaves a part out. Both nodes are this machine: its cores are shared by all workers, and by whatever else runs here.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import stub_model

sys.path.append(str(Path(__file__).parent.parent / "launch"))

from dev_cluster import Cluster

from emosteer.launcher import open_sweep
from emosteer.records.workers import workers
from emosteer.slurm.submission import submissions

COMMON = ("attribution=none", "tracking=none", "model.device=cpu", "engine.threads=1", "name=sweep")
OURS = ("hydra/launcher=slurm", "hydra.launcher.workers=2", "hydra.launcher.cpus_per_task=1")
STOCK = (
    "hydra/launcher=submitit_slurm",
    "hydra.launcher.gpus_per_node=1",
    "hydra.launcher.cpus_per_task=1",
    "hydra.launcher.mem_gb=1",
)
REAL = ("controls=none", "prompts.limit=4", "generation.max_new_tokens=16")
LONGEST = 3600.0
"""Seconds that a sweep may take."""


def main() -> None:
    """Bring the cluster up, measure, take it down, print the tables."""
    options = _options()
    result: dict[str, Any] = {"cores": os.cpu_count(), "load before": os.getloadavg()}
    # Its directory is short: sockets lie in it.
    with tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True) as directory, Cluster(directory) as cluster:
        if options.tiny:
            result["tiny"] = [_tiny(cluster, options.tiny) for _ in range(options.repeats)]
        if options.real:
            result["real"] = [_real(cluster, options.real) for _ in range(options.repeats)]
    result["load after"] = os.getloadavg()
    _print(result, options)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    sys.exit(any(run["replies that differ"] for run in result.get("real", [])))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", default=200, type=int, help="cells of a tiny model")
    parser.add_argument("--real", default=24, type=int, help="cells of SmolLM2")
    parser.add_argument("--repeats", default=1, type=int)
    parser.add_argument("--json", type=Path, help="write the figures there too")
    return parser.parse_args()


def _tiny(cluster: Cluster, number: int) -> dict[str, float]:
    """Seconds of each stretch of one sweep, in order; they add up to the wall clock."""
    with tempfile.TemporaryDirectory() as home:
        model = stub_model.save(Path(home) / "model")
        small = (*COMMON, "model=custom", f"model.path={model}", f"prompts.limit={stub_model.PROMPTS}", "generation.max_new_tokens=8")
        axes = _axes(number, range(stub_model.BLOCKS))
        started, whole = _sweep(cluster, Path(home), (*OURS, *small, *axes))
        return _stretches(Path(home), started, whole)


def _real(cluster: Cluster, number: int) -> dict[str, Any]:
    """Seconds with either launcher, and how many cells' replies differ."""
    seconds: dict[str, float] = {}
    replies: dict[str, dict[str, str]] = {}
    for name, launcher in (("ours", OURS), ("stock", STOCK)):
        with tempfile.TemporaryDirectory() as home:
            _, seconds[name] = _sweep(cluster, Path(home), (*launcher, *COMMON, *REAL, *_axes(number, (10,))))
            records = Path(home).glob("outputs/store/*/*/replies.jsonl")
            replies[name] = {path.parent.name: path.read_text(encoding="utf-8") for path in records}
    ids = set(replies["ours"]) | set(replies["stock"])
    different = sum(replies["ours"].get(cell_id) != replies["stock"].get(cell_id) for cell_id in ids)
    return {"seconds": seconds, "records": len(ids), "replies that differ": different}


def _axes(number: int, layers: Sequence[int]) -> tuple[str, str]:
    """A grid of so many cells over blocks and coefficients."""
    coefficients = ",".join(f"{0.01 * step:g}" for step in range(1, 1 + number // len(layers)))
    return f"layer={','.join(map(str, layers))}", f"coefficient={coefficients}"


def _sweep(cluster: Cluster, home: Path, arguments: Sequence[str]) -> tuple[float, float]:
    """Run a sweep until no job of it is left: when it began, and seconds."""
    environment = {**os.environ, **cluster.environment, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "emosteer.main", "-m", *arguments]
    started = time.time()
    done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=LONGEST)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    while cluster.jobs():
        if time.time() - started > LONGEST:
            raise SystemExit(f"not done after {LONGEST:.0f} s: {cluster.jobs()}")
        time.sleep(0.2)
    if not (results := home / "outputs" / "sweep" / "results.parquet").exists():
        logs = "\n".join(path.read_text() for path in home.glob("outputs/sweep/slurm/output/*"))
        raise SystemExit(f"{results} is not there:\n{logs}")
    return started, time.time() - started


def _stretches(home: Path, started: float, whole: float) -> dict[str, float]:
    sweep = open_sweep(str(home / "outputs" / "store"), home / "outputs" / "sweep")
    if left := sweep.unsettled(sweep.tasks(), sweep.scorers()):
        raise SystemExit(f"{len(left)} cells were not run")
    shares = workers(sweep.paths.slurm)
    records = [path.stat().st_mtime for path in home.glob("outputs/store/*/*/record.json")]
    scores = [path.stat().st_mtime for path in home.glob("outputs/store/*/*/scores/*.json")]
    moments = {
        "composing, writing down, submitting": submissions(sweep)[0].time,
        "until a worker runs": min(worker.started for worker in shares),
        "loading torch and model": min(records),
        "claiming, generating, publishing, scoring": max(*records, *scores),
        "until the results lie there": sweep.paths.results_csv.stat().st_mtime,
        "until no job is left": started + whole,
    }
    ends = [started, *moments.values()]
    stretches = {name: end - begin for name, begin, end in zip(moments, ends, ends[1:], strict=False)}
    return {**stretches, "whole": whole, "records": len(records), "of the less busy worker": min(w.published for w in shares)}


def _print(result: dict[str, Any], options: argparse.Namespace) -> None:
    loads = " and ".join(f"{result[key][0]:.1f}" for key in ("load before", "load after"))
    print(f"load {loads} on {result['cores']} cores, before and after; medians of {options.repeats}")
    if runs := result.get("tiny"):
        print(f"\n{options.tiny} cells of a tiny model over two nodes\n\n| | seconds |\n|---|---|")
        for name in runs[0]:
            value = statistics.median(run[name] for run in runs)
            print(f"| {name} | {value:.1f} |" if isinstance(runs[0][name], float) else f"| {name} | {value:.0f} |")
    if runs := result.get("real"):
        print(
            f"\n{options.real} cells of SmolLM2-135M over two nodes\n\n| launcher | seconds | against the stock one |\n|---|---|---|"
        )
        stock = statistics.median(run["seconds"]["stock"] for run in runs)
        for name, label in (("ours", "slurm"), ("stock", "submitit_slurm")):
            seconds = statistics.median(run["seconds"][name] for run in runs)
            print(f"| {label} | {seconds:.1f} | {stock / seconds:.1f} x |")
        print(f"\n{runs[0]['records']} records; replies that differ: {sum(run['replies that differ'] for run in runs)}")


if __name__ == "__main__":
    main()
