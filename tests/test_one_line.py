"""What Hydra and OmegaConf say in several lines is one for the user: the key, the value, the way out."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hydra import compose, initialize_config_module

from emosteer.config import register
from emosteer.errors import EmosteerError
from emosteer.hydra_messages import known_keys
from emosteer.one_line import LONGEST, one_line
from emosteer.planning import typed

SAID = {
    "pair=joy": "pair=joy: no such option; choose one of anger_fear, anticipation_surprise, custom, joy_sadness, love_hate, trust",
    "pair=joy_sadnes": "pair=joy_sadnes: no such option (did you mean joy_sadness?); choose one of",
    "hydra/launcher=submitit": "hydra/launcher=submitit: no such option",
    "layr=3": "layr: no such key (did you mean layer?); emosteer --help lists all (+layr=... adds one of your own)",
    "generation.max_tokens=3": "generation.max_tokens: no such key (did you mean generation.max_new_tokens?)",
    "pairs=joy_sadness": "pairs: no such key (did you mean pair?)",
    "seed=abc": "seed=abc: give a whole number",
    "decay=strong": "decay=strong: give a number",
    "generation.do_sample=perhaps": "generation.do_sample=perhaps: give true or false",
    "layer=1,2": "layer=1,2: several values are a sweep: add -m; or give one list: 'layer=[1,2]'",
    "layer=range(0,4)": "layer=range(0,4): several values are a sweep: add -m",
    "layer=[1,": "layer=[1,: cannot be read (",
    "demo": "demo: no override; give key=value (emosteer --help lists keys and options)",
    "name=a:b:c{": "name=a:b:c{: cannot be read; quote what holds special characters: 'key=\"value\"'",
    "~nothing": "~nothing: no such key; emosteer --help lists all",
    "~layer": "layer: missing; give layer=...",
    "model=custom": "model.path: missing; give model.path=...",
    "pair=custom": "pair.target, pair.counterpart: missing; give pair.target=... pair.counterpart=...",
    "layer=${nothing}": "layer: ${nothing} refers to no key; emosteer --cfg all shows every key",
    "seed=${oc.env:NOT_SET_ANYWHERE}": "seed: the environment variable NOT_SET_ANYWHERE is not set; export it, or",
    "seed=${unheard:of}": "seed: ${unheard:...} is no resolver; give a value",
    "hydra.job.env_set.API_KEY=abc123": "hydra.job.env_set.API_KEY: a secret does not belong on a command line",
}


@pytest.fixture(autouse=True)
def _hydra() -> Iterator[None]:
    register()
    with initialize_config_module("emosteer.conf", version_base="1.3"):
        yield


@pytest.mark.parametrize("override", SAID)
def test_a_mistake_is_one_line_that_names_it(override: str) -> None:
    with pytest.raises(Exception) as raised:  # noqa: PT011 - of many classes
        typed(compose("config", [override]))

    line = one_line(raised.value)

    assert line is not None
    assert line.startswith(SAID[override])
    assert "\n" not in line
    assert "abc123" not in line


def test_a_missing_package_is_named() -> None:
    with pytest.raises(Exception) as raised:  # noqa: PT011 - Hydra's
        compose("config", ["hydra/sweeper=optun"])
    raised.value.missing_cfg_file = "hydra/sweeper/optuna"  # type: ignore[attr-defined]

    assert one_line(raised.value) == "hydra/sweeper=optuna: its package is missing; run: pip install 'emosteer[optuna]'"


def test_the_users_own_errors_pass_and_bugs_are_none() -> None:
    assert one_line(EmosteerError("layer 40 is out of range")) == "layer 40 is out of range"
    assert one_line(PermissionError(13, "Permission denied", "/outputs")) == "/outputs: Permission denied"
    assert one_line(ZeroDivisionError("division by zero")) is None
    assert one_line(KeyError("layer")) is None


def test_every_key_of_the_schema_is_known() -> None:
    keys = known_keys()

    assert {"layer", "model.path", "generation.max_new_tokens", "objective.at_most"} <= set(keys)
    assert len(keys) == len(set(keys))


def test_what_a_terminal_would_act_on_is_escaped_and_the_middle_of_much_left_out() -> None:
    line = one_line(EmosteerError("name=\x1b[2Jgone\r\n" + "x" * 1000 + ": give a shorter one"))

    assert line is not None
    assert line.startswith(r"name=\x1b[2Jgone\r\n")
    assert line.isprintable()
    assert line.endswith(": give a shorter one")
    assert len(line) <= LONGEST
