"""The benchmark's own modules, and works of a tiny model for them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tiny_models import bare_model, random_tokens, random_vector, tokenizer_of

sys.path.append(str(Path(__file__).parent.parent.parent / "benchmarks"))

if TYPE_CHECKING:
    from engine.variants.serving import Run
    from engine.work import Order, Work


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny model's directory."""
    directory = tmp_path_factory.mktemp("benchmark") / "tiny"
    bare_model("llama", 0).save_pretrained(directory)
    tokenizer_of().save_pretrained(directory)
    return str(directory)


@pytest.fixture(scope="session")
def work(weights: str) -> Work:
    """The baseline and three cells, of either scope, over prompts of unequal length."""
    from engine.work import Cell, Work

    cells = (Cell(), *(Cell(random_vector(i, 6.0), i, scope) for i, scope in enumerate(("generated", "all", "generated"))))
    return Work(weights, cells, tuple(random_tokens(9, 5, 7)), new_tokens=10, stop_tokens=(2,), pad_token_id=2)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let variants run here instead of in processes of their own, and change what one of them answers."""
    from engine import measuring, studies
    from engine.variants import emosteer_engine, loop, machine

    monkeypatch.setattr(machine, "BUFFER_BYTES", 1 << 16)
    runners: dict[str, Callable[[str], Run]] = {
        "emosteer_engine": emosteer_engine.runner,
        "loop": lambda weights: loop.runner(weights, loop.hooked),
        "machine": machine.runner,
    }
    changes: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {}

    class Here:
        about = {"versions": {"transformers": "5"}, "memory_mib": 1.0}  # noqa: RUF012

        def __init__(self, module: str, weights: str, environment: str | None = None, threads: int = 1) -> None:
            assert environment is None
            self.module, self._run = module, runners[module](weights)

        def run(self, order: Order) -> dict[str, Any]:
            return changes.get(self.module, dict)(self._run(order) | {"memory_mib": 2.0})

        def __enter__(self) -> Here:
            return self

        def __exit__(self, *_error: object) -> None: ...

    monkeypatch.setattr(measuring, "Player", Here)
    monkeypatch.setattr(studies, "Player", Here)
    return changes.update
