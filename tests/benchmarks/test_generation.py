"""The benchmark's own logic: the same work for all, differences found before times are kept, and the arithmetic of its tables."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tiny_models import bare_model, tokenizer_of
from transformers import AutoConfig

ROOT = Path(__file__).parent.parent.parent

if TYPE_CHECKING:
    from engine.work import Work


def replies_of(work: Work, tmp_path: Path, module: str) -> list[tuple[int, ...]]:
    from engine.variants import emosteer_engine, loop
    from engine.work import Order

    run = loop.runner(work.weights, loop.hooked) if module == "loop" else emosteer_engine.runner(work.weights)
    return [tuple(reply) for reply in run(Order(str(work.write(tmp_path, module))))["tokens"]]


def test_a_work_is_read_as_it_was_written(work: Work, tmp_path: Path) -> None:
    from engine.work import read

    again = read(work.write(tmp_path))
    for name in ("weights", "prompts", "new_tokens", "stop_tokens", "pad_token_id", "min_new_tokens"):
        assert getattr(again, name) == getattr(work, name)
    for cell, same in zip(work.cells, again.cells, strict=True):
        assert (same.layer, same.scope) == (cell.layer, cell.scope)
        assert same.vector is None if cell.vector is None else torch.equal(same.vector, cell.vector)


def test_an_order_is_read_as_it_was_sent() -> None:
    from engine.work import Order

    order = Order("w", (0, 2), ((1, 0),), 8)
    assert vars(Order.from_json(order.to_json())) == {"work": "w", "cells": [0, 2], "rows": [[1, 0]], "batch_rows": 8}


def test_variants_do_the_same_work(work: Work, tmp_path: Path) -> None:
    ours, theirs = (replies_of(work, tmp_path, module) for module in ("emosteer", "loop"))
    assert ours == theirs
    cells = [tuple(ours[i : i + len(work.prompts)]) for i in range(0, len(ours), len(work.prompts))]
    assert len(set(cells)) == len(work.cells)  # each steering did something, and not the same thing


def test_the_judge_reads_what_the_loop_generates(work: Work, tmp_path: Path) -> None:
    """Its logits, of a whole reply read at once in float64, have their maximum at the token that the loop chose step by step."""
    from engine.comparison import Judge

    judge = Judge(work)
    for (cell, prompt), reply in zip(work.rows(), replies_of(work, tmp_path, "loop"), strict=True):
        for position in range(0, len(reply), 3):
            logits = judge.logits(work.cells[cell], work.prompts[prompt], reply[:position])
            assert logits.dtype == torch.float64
            assert int(logits.argmax()) == reply[position]


@pytest.mark.parametrize(
    ("one", "other", "position"),
    [((1, 2, 3), (1, 2, 3), None), ((1, 2, 3), (1, 4, 3), 1), ((1, 2), (1, 2, 3), 2), ((1,), (), 0), ((), (), None)],
)
def test_first_difference(one: tuple[int, ...], other: tuple[int, ...], position: int | None) -> None:
    from engine.comparison import first_difference

    assert first_difference(one, other) == first_difference(other, one) == position


def test_a_gap_is_between_the_two_tokens(work: Work, tmp_path: Path) -> None:
    from engine.comparison import Judge

    judge = Judge(work)
    row, ours = (2, 1), replies_of(work, tmp_path, "loop")[2 * len(work.prompts) + 1]
    theirs = (*ours[:3], (ours[3] + 1) % 300 + 5)
    (found,) = judge.differences([row], [ours], [theirs])
    logits = judge.logits(work.cells[2], work.prompts[1], ours[:3])
    assert (found.cell, found.prompt, found.position) == (2, 1, 3)
    assert found.gap == pytest.approx(float(logits[ours[3]] - logits[theirs[3]]))
    assert not found.is_tie
    (ended,) = judge.differences([row], [ours], [ours[:3]])  # by a stop token
    assert ended.gap == pytest.approx(float(logits[ours[3]] - logits[2]))


def options(weights: str, **changed: Any) -> Any:
    from engine.studies import Options

    size = {"layers": (1,), "coefficients": (0.2, 0.3), "prompts": 3, "new_tokens": 6, "rounds": 2, "model": weights}
    return Options(**{**size, **changed})


def test_the_table_of_a_run(weights: str, in_process: Callable[..., None]) -> None:
    from engine import studies, tables

    in_process(loop=lambda answer: answer | {"seconds": 8.0}, emosteer_engine=lambda answer: answer | {"seconds": 2.0})
    found = studies.table(options(weights, loop_cells=1))
    assert found["work"]["cells"] == 2
    ours, loop = found["variants"]["emosteer"], found["variants"]["loop"]
    assert (ours["rows"], loop["rows"]) == (9, 3)
    assert (ours["seconds"], loop["seconds"]) == ([2.0, 2.0], [24.0, 24.0])  # one of three cells, scaled
    assert loop["tokens_per_second"] == pytest.approx(loop["n_tokens"] / 8)
    assert len(found["roofline"]["passes"]) == 2
    told = "\n".join(tables.table(found))
    assert "24.0 (33% of the cells, scaled)" in told
    assert "| 12.00 |" in told


def test_other_replies_end_it_before_a_time_is_kept(weights: str, in_process: Callable[..., None]) -> None:
    from engine import studies
    from engine.comparison import DifferentWorkError

    def spoilt(answer: dict[str, Any]) -> dict[str, Any]:
        reply = list(answer["tokens"][1])
        reply[2] = (reply[2] + 1) % 300
        return answer | {"tokens": [answer["tokens"][0], reply, *answer["tokens"][2:]]}

    in_process(loop=spoilt)
    with pytest.raises(DifferentWorkError, match=r"a loop over cells.*1 of 6 replies are others.*prompt=1, position=2"):
        studies.table(options(weights))


def test_a_tie_is_told_and_no_fault(weights: str, tmp_path: Path, in_process: Callable[..., None]) -> None:
    """A model that cannot tell one token from another: the loop takes the other one at the end of a reply."""
    from engine import studies, tables

    plain: list[list[int]] = []

    def note(answer: dict[str, Any]) -> dict[str, Any]:
        plain[:] = answer["tokens"]
        return answer

    in_process(loop=note)
    studies.table(options(weights, rounds=1))
    first, token = next((i, reply[-1]) for i, reply in enumerate(plain) if len(reply) == 6)
    other = next(t for t in range(10, 300) if all(t not in reply for reply in plain))
    model = type(bare_model("llama", 0)).from_pretrained(weights)
    model.lm_head.weight.data[other] = model.lm_head.weight.data[token]
    model.save_pretrained(tmp_path / "twins")
    tokenizer_of().save_pretrained(tmp_path / "twins")

    def confused(answer: dict[str, Any]) -> dict[str, Any]:
        if len(answer["tokens"]) < 9:  # the rehearsal
            return answer
        replies = [list(reply) for reply in answer["tokens"]]
        replies[first][-1] = {token: other, other: token}[replies[first][-1]]
        return answer | {"tokens": replies}

    in_process(loop=confused)
    found = studies.table(options(str(tmp_path / "twins"), rounds=1))
    (difference,) = found["variants"]["loop"]["differences"]
    assert difference["position"] == 5
    assert difference["gap"] < 1e-9
    assert "Replies that differ do so from a tie on" in "\n".join(tables.table(found))


def test_curves_measure_each_point(weights: str, in_process: Callable[..., None]) -> None:
    from engine import studies, tables

    found = studies.cells(options(weights, points=(1, 4), rounds=1, loop_cells=2))
    assert [one["work"]["cells"] for one in found["points"].values()] == [1, 4]
    assert [one["variants"]["emosteer"]["rows"] for one in found["points"].values()] == [6, 15]
    assert [one["variants"]["loop"]["rows"] for one in found["points"].values()] == [6, 6]
    long = studies.lengths(options(weights, points=(180,), rounds=1, loop_cells=1))
    assert long["points"][180]["work"]["prompt_tokens"] == 180
    assert "| 180 | " in "\n".join(tables.TABLES["lengths"](long))


@pytest.mark.parametrize("study", ["table", "long", "scope", "cells", "lengths", "rows", "mixture"])
def test_every_study_prints_a_table(
    study: str, weights: str, in_process: Callable[..., None], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    import generation

    words = [study, "--quick", "--model", weights, "--prompts", "2", "--new-tokens", "4", "--json", str(tmp_path / "figures.json")]
    generation.main([*words, *(["--variants", "loop"] if study == "table" else [])])
    lines = capsys.readouterr().out.splitlines()
    rows = [line.count("|") for line in lines if line.startswith("|")]
    assert len(rows) >= 3
    assert len(set(rows)) == 1  # as many columns in each
    found = json.loads((tmp_path / "figures.json").read_text())
    assert found["study"] == study
    assert found["machine"]["torch"] == torch.__version__


def test_rows_are_those_of_a_batch(weights: str, in_process: Callable[..., None]) -> None:
    from engine import studies, tables

    seen: list[int] = []

    def note(answer: dict[str, Any]) -> dict[str, Any]:
        seen.append(len(answer["tokens"]))
        return answer

    in_process(emosteer_engine=note)
    found = studies.rows(options(weights, points=(2, 6), rounds=1))
    assert set(seen) == {6}
    assert list(found["points"]) == [2, 6]
    assert "| 6 | " in "\n".join(tables.rows(found))


def test_a_mixture_is_against_one_cell_of_the_same_length(weights: str, tmp_path: Path, in_process: Callable[..., None]) -> None:
    """Also where half of all tokens would end a reply."""
    from engine import studies, tables

    model = type(bare_model("llama", 0)).from_pretrained(weights)
    model.generation_config.eos_token_id = list(range(5, 180))
    model.save_pretrained(tmp_path / "brief")
    tokenizer_of().save_pretrained(tmp_path / "brief")
    turns = iter([9.0, 2.0, 2.5, 5.0, 4.0])  # unmeasured; repeated, distinct; distinct, repeated
    batches: list[list[tuple[int, ...]]] = []

    def note(answer: dict[str, Any]) -> dict[str, Any]:
        batches.append(answer["tokens"])
        return answer | {"seconds": next(turns)}

    in_process(emosteer_engine=note)
    found = studies.mixture(options(str(tmp_path / "brief"), points=(6,)))
    assert found["ratios"] == [1.25, 1.25]
    assert {run["tokens"] for runs in found["runs"].values() for run in runs["runs"]} == {36}
    repeated, distinct = batches[1:3]
    assert repeated[:3] == repeated[3:]  # three prompts, of one cell
    assert distinct[:3] != distinct[3:]
    assert "+25.0 %" in "\n".join(tables.mixture(found))


def test_the_machine_multiplies_with_every_linear_weight(weights: str) -> None:
    from engine.variants import machine

    model = bare_model("llama", 0)
    expected = sum(weight.numel() for name, weight in model.named_parameters() if weight.dim() == 2 and "embed" not in name)
    found = machine.linear_weights(model)
    assert sum(weight.numel() for weight in found) == expected
    assert torch.equal(found[-1], model.lm_head.weight)
    matrices = [weight.t() for weight in found]
    assert len(machine.products(matrices, 3, passes=2)) == 2


def test_the_roofline_is_the_slower_of_products_and_memory() -> None:
    from engine.roofline import Step, share, summary

    told = {"rows": 4, "passes": {"as stored": [0.3, 0.2], "transposed": [0.25]}, "flop": 1e9, "bytes": 1e9, "bandwidth": 1e10}
    assert Step.of(told).seconds == 0.2
    assert Step.of(told).flops == pytest.approx(5e9)
    assert Step.of({**told, "bandwidth": 2e9}).seconds == 0.5
    account = {"steps": 10, "row_steps": 40, "decode_seconds": 2.5, "prefill_seconds": 1.0, "share_spared": 0.125}
    assert share(account, told) == pytest.approx(0.8)
    assert math.isnan(share({**account, "decode_seconds": 0.0}, told))
    found = summary([account, {**account, "decode_seconds": 4.0}, {**account, "decode_seconds": 2.0}], [told] * 3)
    assert found["share"] == pytest.approx(0.8)
    assert found["share_spared"] == 0.125


def test_prompts_are_lengthened_behind_what_they_share() -> None:
    from engine.making import lengthened

    prompts = [(1, 2, 3, 9), (1, 2, 4, 4, 9), (1, 2, 5, 9)]
    longer = lengthened(prompts, 9, [(10, 11), (20, 21), (30, 31)])
    assert [len(prompt) for prompt in longer] == [9, 9, 9]
    assert longer[0] == (1, 2, 10, 11, 20, 21, 30, 3, 9)
    assert longer[1] == (1, 2, 20, 21, 30, 31, 4, 4, 9)
    assert len({prompt[2] for prompt in longer}) == 3
    with pytest.raises(ValueError, match="5 tokens"):
        lengthened(prompts, 4, [(10,)])


@pytest.mark.parametrize("rope", [{"rope_type": "default"}, {"rope_type": "linear", "factor": 2.0}])
def test_transformers_4_reads_the_rope_too(tmp_path: Path, rope: dict[str, Any]) -> None:
    from engine.making import share_weights

    model = tmp_path / "model"
    model.mkdir()
    config = AutoConfig.for_model("llama", hidden_size=32, rope_parameters={"rope_theta": 5e4, **rope})
    config.save_pretrained(model)
    (model / "tokenizer.json").write_text("{}")
    shared = share_weights(model, tmp_path / "shared")
    told = json.loads((shared / "config.json").read_text())
    assert told["rope_theta"] == 5e4
    assert told.get("rope_scaling") == (None if rope["rope_type"] == "default" else rope)
    assert AutoConfig.from_pretrained(shared).rope_parameters == config.rope_parameters
    assert (shared / "tokenizer.json").read_text() == "{}"


def test_spread() -> None:
    from engine.measuring import spread

    assert spread(0, 3) == spread(5, 3) == (0, 1, 2)
    assert spread(2, 28) == (0, 14)
    assert len(set(spread(7, 28))) == 7


def test_until_stop() -> None:
    from engine.variants.loop import until_stop

    assert until_stop([5, 6, 2, 7, 3], (2, 3)) == (5, 6)
    assert until_stop([5, 6], (2,)) == (5, 6)


def test_a_call_inside_a_counted_one_is_not_counted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from engine import counted_command

    moments = iter([0.0, 1.0, 11.0, 13.0, 20.0, 25.0])
    monkeypatch.setattr(counted_command.time, "perf_counter", lambda: next(moments))
    monkeypatch.setattr(counted_command, "SECONDS", {"prefill": 0.0, "other forwards": 0.0})
    counter = counted_command.Counter()
    forward = counter.counted(lambda: None, "other forwards")
    with counter.counting("prefill"):
        forward()
    forward()
    assert counted_command.SECONDS == {"prefill": 11.0, "other forwards": 7.0}


def test_overhead_is_what_is_left() -> None:
    from engine.command import summary

    runs = [
        {"seconds": s, "arithmetic": {"prefill": 2.0, "decode": d}, "took": []} for s, d in ((10.0, 6.0), (20.0, 8.0), (10.0, 5.0))
    ]
    found = summary(runs)
    assert found["overhead"] == pytest.approx(0.3)
    assert found["arithmetic"] == {"prefill": 2.0, "decode": 6.0}


def test_the_gpu_study_on_a_tiny_model() -> None:
    from engine import gpu, tables

    found = gpu.gpu(tiny=True)
    assert list(found["cells"]) == list(gpu.TINY_SIZE.cells)
    for n, one in found["cells"].items():
        assert one["tokens"] == n * gpu.TINY_SIZE.prompts * gpu.TINY_SIZE.new_tokens
        assert one["agreement"]["equal"] > 0.8  # bfloat16 may tip a tie
    assert found["mixture"]["slowdown"][1] == 1.0
    assert "distinct cells in a batch of 8 rows" in "\n".join(tables.gpu(found))


def test_agreement_is_the_share_before_a_difference() -> None:
    from engine.gpu import agreement

    pairs = [((1, 2, 3, 4), (1, 2, 3, 4)), ((1, 2, 3, 4), (1, 2, 9, 4)), ((1, 2, 3, 4), (9, 2, 3, 4)), ((1, 2, 3, 4), (1, 2, 3, 9))]
    assert agreement(pairs, 4) == {"equal": 0.25, "tokens_before_a_difference": (4 + 2 + 0 + 3) / 16}


def test_a_variant_in_a_process_of_its_own(work: Work, tmp_path: Path) -> None:
    """Answers with the replies of the cells that it is told, and where it breaks, says why."""
    from engine.player import Player, PlayerFailedError
    from engine.work import Order

    expected = replies_of(work, tmp_path, "loop")
    path = str(work.write(tmp_path))
    with Player("loop", work.weights) as player:
        assert player.about["versions"]["torch"] == torch.__version__
        for cells in ((0, 1, 2, 3), (2,)):
            answer = player.run(Order(path, cells))
            rows = [3 * cell + prompt for cell in cells for prompt in range(3)]
            assert [tuple(reply) for reply in answer["tokens"]] == [expected[row] for row in rows]
            assert answer["memory_mib"] >= player.about["memory_mib"] > 50
        with pytest.raises(PlayerFailedError, match=r"(?s)loop ended with 1.*nowhere"):
            player.run(Order(str(tmp_path / "nowhere.safetensors")))


def test_an_environment_that_cannot_be_built_is_a_failure(tmp_path: Path, weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is measured, the exit code is 1 with what pip says, and the next run tries again."""
    import generation
    from engine import environments, studies

    calls: list[list[str]] = []

    def call(command: list[str], **_options: Any) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        if "venv" in command:
            (Path(command[-1]) / "lib" / "python3" / "site-packages").mkdir(parents=True)
        return subprocess.CompletedProcess(command, int("install" in command), "", "no such package")

    monkeypatch.setenv("EMOSTEER_CACHE", str(tmp_path))
    monkeypatch.setattr(environments.subprocess, "run", call)
    monkeypatch.setattr(studies, "kitchen", lambda *_arguments: pytest.fail("something is measured"))
    for attempt in (1, 2):
        with pytest.raises(SystemExit, match=r"(?s)EnvironmentNotBuiltError: .*no such package"):
            generation.main(["--quick", "--model", weights, "--variants", "repeng"])
        assert sum("install" in command for command in calls) == attempt


def test_an_environment_is_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the packages of its file and a check of them all; a torch is linked and none installed."""
    from engine import environments

    calls: list[list[str]] = []

    def call(command: list[str]) -> None:
        calls.append(command)
        if "venv" in command:
            (Path(command[-1]) / "lib" / "python3" / "site-packages").mkdir(parents=True)

    monkeypatch.setenv("EMOSTEER_CACHE", str(tmp_path))
    monkeypatch.setattr(environments, "_call", call)
    python = environments.interpreter("repeng")
    assert environments.interpreter("repeng") == python
    assert [command[-1] for command in calls[1:]] == [str(environments.REQUIREMENTS / "repeng.txt"), "check"]
    (site,) = tmp_path.glob("benchmark/repeng-*/lib/python3/site-packages")
    assert (site / "torch").resolve() == Path(torch.__file__).parent.resolve()
    assert not {entry.name for entry in site.iterdir()} & {"transformers", "numpy", "emosteer"}
    assert "torch" not in environments.pinned(environments.REQUIREMENTS / "repeng.txt")


@pytest.mark.slow
def test_without_an_index_no_environment_is_built(tmp_path: Path, weights: str) -> None:
    """As above, with the real pip."""
    nowhere = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "EMOSTEER_CACHE": str(tmp_path), "HOME": str(tmp_path)}
    command = [sys.executable, ROOT / "benchmarks" / "generation.py", "--quick", "--model", weights, "--variants", "repeng"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, **nowhere})
    assert done.returncode == 1
    assert "No matching distribution found" in done.stderr
    assert not done.stdout


@pytest.mark.slow
def test_all_variants_in_environments_of_their_own(weights: str, tmp_path: Path) -> None:
    """steering-vectors, repeng and a process per cell give the same replies; the whole command runs beside them."""
    from engine.environments import REQUIREMENTS, pinned

    told = tmp_path / "figures.json"
    command = [sys.executable, ROOT / "benchmarks" / "generation.py", "--quick", "--model", weights, "--commands", "--json", told]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "| steering-vectors in that loop (transformers 4." in done.stdout
    found = json.loads(told.read_text())
    assert len(found["variants"]) == 5
    for name in ("steering-vectors", "repeng"):
        versions, pins = found["variants"][name]["versions"], pinned(REQUIREMENTS / f"{name}.txt")
        assert {library: pins[library] for library in (name, "transformers")} == {
            key: versions[key] for key in (name, "transformers")
        }
        assert versions["torch"] == found["machine"]["torch"]
        assert found["variants"][name]["differences"] == []
    arithmetic = found["command"]["arithmetic"]
    assert 0 < sum(arithmetic.values()) < found["command"]["seconds"]
    assert arithmetic["other forwards"] > 0
