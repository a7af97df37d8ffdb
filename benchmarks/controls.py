"""The control table: what joy's vector does beside what any push does, and what simply asking does, with what each costs.

    python benchmarks/controls.py [--layers 9,13] [--coefficients 0.1,0.2] [--prompts 16] [--tokens 32] [--random 5] [--shuffled 3]

One sweep of the real model, in a directory of its own (`--directory`, kept, so that a second call goes on where the first one ended).
Differences are from the unsteered replies to the same prompts; p is Wilcoxon's, over prompts. Of several random directions or vectors
from exchanged labels the table has the mean over them, and from which to which they go.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

KINDS = {"mean_difference": "joy's vector", "random": "random direction", "shuffled": "exchanged labels", "negative": "other sign"}
COLUMNS = {
    "joy_delta": "joy, per 100 words",
    "first_person_delta": "first person, per 100 words",
    "perplexity_ratio": "perplexity, times",
    "kl_steered": "KL, nats per token",
}
HEADINGS = ("block", "coefficient", "what", *COLUMNS.values())


def main() -> None:
    """Run the sweep and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", default="9,13")
    parser.add_argument("--coefficients", default="0.1,0.2")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=32, help="most of a reply")
    parser.add_argument("--random", type=int, default=5)
    parser.add_argument("--shuffled", type=int, default=3)
    parser.add_argument("--directory", type=Path, default=Path("outputs/benchmark-controls"))
    options = parser.parse_args()
    options.directory.mkdir(parents=True, exist_ok=True)
    run_sweep(options)
    results = pd.read_parquet(options.directory / "outputs" / "controls" / "results.parquet")
    print(f"{int(results['n_prompts'].max())} prompts, replies of up to {options.tokens} tokens\n")
    print("\n".join(table(results)))


def run_sweep(options: argparse.Namespace) -> None:
    """Run all cells and their controls."""
    overrides = [
        *("name=controls", "pair=joy_sadness", "attribution=none", "tracking=none", "scorers=kl", "controls.prompting=true"),
        *("controls.negative=true", f"controls.random={options.random}", f"controls.shuffled={options.shuffled}"),
        *(f"layer={options.layers}", f"coefficient={options.coefficients}", f"prompts.limit={options.prompts}"),
        f"generation.max_new_tokens={options.tokens}",
    ]
    subprocess.run([sys.executable, "-m", "emosteer", "-m", *overrides], cwd=options.directory, check=True, stdout=subprocess.DEVNULL)


def table(results: pd.DataFrame) -> Iterator[str]:
    """The table in Markdown: block by block and coefficient by coefficient, what asking does last."""
    yield f"| {' | '.join(HEADINGS)} |"
    yield "|---" * len(HEADINGS) + "|"
    steered = results[results["vector_method"].isin(KINDS)].assign(size=results["coefficient"].abs())
    groups = sorted(steered.groupby(["layers", "size"]), key=lambda group: (int(str(group[0][0])), float(str(group[0][1]))))
    for (layers, size), rows in groups:
        for kind, name in KINDS.items():
            if len(own := rows[rows["vector_method"] == kind]):
                label = f"{name}, {len(own)}" if len(own) > 1 else name
                yield f"| {' | '.join([str(layers), f'{size:g}', label, *(value(own, column) for column in COLUMNS)])} |"
    asked = results[results["vector_method"] == "prompting"]
    yield f"| {' | '.join(['', '', 'asked to feel joy', *(value(asked, column) for column in COLUMNS)])} |"


def value(rows: pd.DataFrame, column: str) -> str:
    """A number with its p; of several rows their mean and from which to which they go."""
    numbers = rows[column].astype(float)
    shown = f"{numbers.mean():+.1f}" if column.endswith("_delta") else f"{numbers.mean():.2f}"
    if len(rows) > 1:
        ends = (f"{end:+.1f}" if column.endswith("_delta") else f"{end:.2f}" for end in (numbers.min(), numbers.max()))
        return f"{shown} ({' to '.join(ends)})"
    p = f"{column.removesuffix('_delta')}_p"
    return f"{shown} (p {float(rows[p].iloc[0]):.3f})" if column.endswith("_delta") else shown


if __name__ == "__main__":
    main()
