"""The library from a notebook: its defaults are the command's, its checks too, and importing it is light."""

from __future__ import annotations

import ast
import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf
from tiny_models import BLOCKS, WIDTH, bare_model, tiny_model, tokenizer_of

import emosteer
from emosteer import EmosteerError
from emosteer.api import CONF, Replies
from emosteer.arguments import Generation
from emosteer.config import AttributionConfig, GenerationConfig, StatisticsConfig, VectorConfig
from emosteer.datasets import SHIPPED, Prompt, load_contrastive_pairs, load_neutral_texts, load_prompts, to_json_lines
from emosteer.model.language_model import LanguageModel
from emosteer.vectors import EmotionVector, emotion_vector, residual_norms

HEAVY = ("torch", "pandas", "numpy", "scipy", "transformers", "hydra", "omegaconf", "matplotlib", "wandb", "rich", "typer")
TEXTS = ["How was your day?", "What shall I cook?", "Tell me of the sea."]


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return tiny_model()


@pytest.fixture(scope="module")
def vector(model: LanguageModel) -> EmotionVector:
    return emosteer.build_vector(model, load_contrastive_pairs(SHIPPED / "pairs" / "joy_sadness.jsonl")[:4])


def python(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_importing_the_package_imports_nothing_heavy_and_using_it_does_not_start_hydra() -> None:
    loaded = "print(json.dumps([name for name in heavy if name in sys.modules]))"
    begin = f"import json, sys; heavy = {HEAVY}; import emosteer; emosteer.__version__, dir(emosteer), emosteer.Prompt; "

    assert python(begin + loaded) == []
    used = python(begin + "[getattr(emosteer, name) for name in emosteer.__all__]; " + loaded)
    assert "torch" in used
    assert not {"matplotlib", "wandb", "rich", "typer"} & set(used)
    started = "from hydra.core.global_hydra import GlobalHydra; print(json.dumps([GlobalHydra.instance().is_initialized()]))"
    assert python(begin + "emosteer.load_prompts('conversation'); " + started) == [False]


def test_every_public_name_is_there_listed_and_known_to_type_checkers() -> None:
    assert emosteer.__all__ == sorted(emosteer.__all__, key=lambda name: (name.islower(), name))
    assert set(emosteer.__all__) <= set(dir(emosteer))
    for name in emosteer.__all__:
        assert getattr(emosteer, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'stear'"):
        emosteer.stear  # noqa: B018
    imports = [node for node in ast.walk(ast.parse(inspect.getsource(emosteer))) if isinstance(node, ast.ImportFrom)]
    known = {alias.name for node in imports if str(node.module).startswith("emosteer") for alias in node.names}
    assert known | {"__version__"} == set(emosteer.__all__)


def test_every_public_function_says_what_it_raises() -> None:
    for name in emosteer.__all__:
        if inspect.isfunction(thing := getattr(emosteer, name)):
            assert "Raises:\n" in (thing.__doc__ or ""), name
            assert "EmosteerError" in (thing.__doc__ or ""), name


def defaults(function: Callable[..., Any]) -> dict[str, Any]:
    empty = inspect.Parameter.empty
    return {name: one.default for name, one in inspect.signature(function).parameters.items() if one.default is not empty}


def test_the_defaults_are_the_commands() -> None:
    conf = OmegaConf.load(CONF / "config.yaml")
    steer = defaults(emosteer.steer)
    assert steer == {
        key: conf[key] for key in ("coefficient", "coefficient_unit", "across_blocks", "scope", "intervention", "decay", "seed")
    }
    assert defaults(emosteer.reply) == {"seed": conf["seed"]}
    vector = {**asdict(VectorConfig()), **OmegaConf.load(CONF / "vector" / "mean_difference.yaml"), "site": conf["site"]}
    elsewhere = ("source", "plus", "without")  # pairs are given, and vectors are put together by combine_vectors
    assert defaults(emosteer.build_vector) == {key: value for key, value in vector.items() if key not in elsewhere}
    statistics = OmegaConf.load(CONF / "statistics" / "default.yaml")
    assert defaults(emosteer.compare) == {"seed": 0, **{key: statistics[key] for key in ("n_resamples", "confidence")}}
    assert statistics == asdict(StatisticsConfig())
    patching = {**asdict(AttributionConfig()), **OmegaConf.load(CONF / "attribution" / "patching.yaml")}
    shared = {key: patching[key] for key in ("steps", "direction", "method", "neurons")}
    assert defaults(emosteer.attribute) == {**shared, "measure": None}, "None is the command's metric, too"
    assert patching["metric"] == "words"
    assert patching["steps"] is None


def test_the_options_of_generation_and_their_defaults_are_the_commands(model: LanguageModel) -> None:
    assert list(Generation.__annotations__) == [field.name for field in fields(GenerationConfig)]
    greedy = OmegaConf.merge(OmegaConf.structured(GenerationConfig), OmegaConf.load(CONF / "generation" / "greedy.yaml"))
    assert OmegaConf.to_object(greedy) == GenerationConfig()
    assert emosteer.reply(model, TEXTS, max_new_tokens=2).generation == GenerationConfig(max_new_tokens=2)
    for name in Generation.__annotations__:
        assert f"{name} ({getattr(GenerationConfig(), name)})" in " ".join((emosteer.reply.__doc__ or "").split())


def test_a_model_is_loaded_from_a_directory_with_changes(tmp_path: Path) -> None:
    directory = tmp_path / "mine"
    bare_model("llama", 0).save_pretrained(directory)
    tokenizer_of().save_pretrained(directory)

    loaded = emosteer.load_model(directory, dtype="float16", device="cpu")

    assert (loaded.name, loaded.n_blocks, loaded.width, loaded.dtype) == ("mine", BLOCKS, WIDTH, torch.float16)
    assert emosteer.load_model(str(directory), device="cpu").dtype == torch.float32


def test_shipped_models_are_named_as_in_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr("emosteer.api.load", lambda config: seen.append(config))

    emosteer.load_model("llama3_8b", device="cpu")

    assert [(one.name, one.path, one.dtype, one.device) for one in seen] == [
        ("Llama-3.1-8B", "meta-llama/Llama-3.1-8B", "bfloat16", "cpu")
    ]


def test_a_model_that_is_not_there_is_told_with_the_shipped_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(EmosteerError, match=r"shipped models: gemma3.* smollm2"):
        emosteer.load_model("smolm2")
    with pytest.raises(EmosteerError, match="does not exist"):
        emosteer.load_model(tmp_path / "nowhere")
    with pytest.raises(EmosteerError, match="model=smollm2: dtyp"):
        emosteer.load_model("smollm2", dtyp="float16")
    with pytest.raises(EmosteerError, match="dtype=int8"):
        emosteer.load_model("smollm2", dtype="int8")


def test_prompts_come_by_name_from_a_file_or_in_a_list(tmp_path: Path) -> None:
    shipped = load_prompts(SHIPPED / "prompts" / "conversation.jsonl")
    assert emosteer.load_prompts("conversation") == shipped
    assert emosteer.load_prompts("conversation", limit=5) == shipped[:5]
    mine = tmp_path / "mine.jsonl"
    mine.write_text(to_json_lines(shipped[3:6]))
    assert emosteer.load_prompts(mine) == emosteer.load_prompts(str(mine)) == shipped[3:6]
    assert emosteer.load_prompts(shipped[3:6], limit=2) == shipped[3:5]
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello?"}]
    several = emosteer.load_prompts(pd.Series(["Hello?", "Who is there?"], index=[4, 5]))
    assert [prompt.text for prompt in several] == ["Hello?", "Who is there?"]
    mixed = emosteer.load_prompts(["Hello?", shipped[0], {"id": "turns", "messages": turns}])
    assert [prompt.text for prompt in mixed] == ["Hello?", shipped[0].text, "Hello?"]
    assert mixed[2].messages == tuple(turns)


def test_a_plain_texts_id_and_so_its_sampled_reply_do_not_depend_on_its_neighbours(model: LanguageModel) -> None:
    options = {"max_new_tokens": 12, "do_sample": True}
    together = emosteer.reply(model, TEXTS, **options).table().set_index("prompt")
    alone = emosteer.reply(model, TEXTS[2:], **options).table().set_index("prompt")

    assert alone.loc[TEXTS[2]].equals(together.loc[TEXTS[2]])
    assert len(set(together["prompt_id"])) == 3
    other = emosteer.reply(model, TEXTS[2:], seed=1, **options).table().set_index("prompt")
    assert other.loc[TEXTS[2], "reply"] != alone.loc[TEXTS[2], "reply"]


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (
            "How are you?",
            r"prompts='How are you\?': no such file, and none of the shipped confirmation, conversation",
        ),
        ("x" * 5000, "no such file"),
        ("~nobody knows", "no such file"),
        ([], "prompts is empty"),
        (None, "prompts=None: give a list"),
        ({"id": "a", "text": "Hello?"}, "give a list"),
        (Prompt("a", "Hello?", "", ()), "give a list"),
        (["Hello?", " "], r"prompts\[1\]: 'text' must be a text that is not empty"),
        (["Hello?", "\ud800"], r"prompts\[1\]: 'text' holds a lone surrogate"),
        (["Hello?", "So?", "Hello?"], "'Hello\\?' stands there more than once"),
        (["Hello?", 3], r"prompts\[1\] is 3: give a Prompt"),
        ([{"id": "a", "text": "Hello?"}, {"id": "a", "text": "So?"}], r"prompts\[1\]: id 'a' stands already in prompts\[0\]"),
        ([{"text": "Hello?"}], r"prompts\[0\]: missing key 'id'"),
    ],
)
def test_unusable_prompts_are_refused(model: LanguageModel, vector: EmotionVector, prompts: Any, message: str) -> None:
    with pytest.raises(EmosteerError, match=message):
        emosteer.reply(model, prompts)
    with pytest.raises(EmosteerError, match=message):
        emosteer.steer(model, prompts, vector, layer=1)


def test_a_limit_is_checked_for_lists_and_files_alike() -> None:
    for prompts in ("conversation", TEXTS):
        with pytest.raises(EmosteerError, match="limit=0"):
            emosteer.load_prompts(prompts, limit=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": BLOCKS}, f"layer {BLOCKS} is out of range: tiny-llama has blocks 0 to {BLOCKS - 1}"),
        ({"layer": -1}, "layer -1 is out of range"),
        ({"layer": [1, 1]}, "each once"),
        ({"layer": []}, "at least one block"),
        ({"layer": "auto"}, r"give attribute\(model, pairs\)\.ranking\(\)\[0\]"),
        ({"layer": "one"}, "layer=one"),
        ({"coefficient": float("nan")}, "coefficient=nan: give a finite number"),
        ({"coefficient": float("inf")}, "coefficient=inf"),
        ({"coefficient": "much"}, "coefficient=much: give a finite number"),
        ({"coefficient_unit": "percent"}, "coefficient_unit=percent: choose one of fraction, raw"),
        ({"scope": "reply"}, "scope=reply: choose one of generated, prompt, all"),
        ({"seed": 0.5}, r"seed=0\.5: give a whole number"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"max_new_tokens": 2, "min_new_tokens": 3}, "min_new_tokens=3"),
        ({"temperature": 0.0}, "temperature=0"),
        ({"n_samples": 2}, "do_sample"),
        ({"max_tokens": 3}, "max_tokens is no option of generation: choose of max_new_tokens"),
    ],
)
def test_unusable_steering_is_refused(model: LanguageModel, vector: EmotionVector, options: dict[str, Any], message: str) -> None:
    with pytest.raises(EmosteerError, match=message):
        emosteer.steer(model, TEXTS, vector, **({"layer": 1} | options))


def test_a_vector_that_does_not_fit_is_refused(model: LanguageModel, vector: EmotionVector) -> None:
    wide = EmotionVector(torch.ones(BLOCKS, WIDTH + 1), torch.ones(BLOCKS))
    few = EmotionVector(vector.directions[1:], vector.residual_norm[1:])
    for other, message in ((wide, f"{BLOCKS} blocks of width {WIDTH + 1}, tiny-llama has"), (few, f"{BLOCKS - 1} blocks of")):
        with pytest.raises(EmosteerError, match=message):
            emosteer.steer(model, TEXTS, other, layer=1)
        with pytest.raises(EmosteerError, match=message):
            emosteer.random_vector(model, like=other)
    with pytest.raises(EmosteerError, match="not finite"):
        emosteer.steer(model, TEXTS, replace(vector, directions=vector.directions * torch.nan), layer=1)
    bloom = tiny_model("bloom")
    with pytest.raises(EmosteerError, match="site=mlp"):
        emosteer.steer(bloom, TEXTS, emosteer.random_vector(bloom, like=replace(vector, site="mlp")), layer=1)


def test_a_prompt_longer_than_the_models_context_is_refused(model: LanguageModel) -> None:
    with pytest.raises(EmosteerError, match=r"prompts: prompt '.*' has .* tokens and its reply up to 8, but the context .* is 256"):
        emosteer.reply(model, ["Hello?", "So? " * 300], max_new_tokens=8)


def test_numbers_of_numpy_and_torch_serve_as_pythons_own(model: LanguageModel, vector: EmotionVector) -> None:
    mine = emosteer.steer(model, TEXTS, vector, layer=2, coefficient=0.5, max_new_tokens=4)
    layers, coefficients = np.arange(BLOCKS), np.array([0.5], dtype=np.float32)
    theirs = emosteer.steer(model, TEXTS, vector, layer=layers[2], coefficient=coefficients[0], max_new_tokens=np.int64(4))
    assert theirs == mine
    several = emosteer.steer(model, TEXTS, vector, layer=[1, 2], coefficient=torch.tensor(0.5), max_new_tokens=4)
    assert several == emosteer.steer(model, TEXTS, vector, layer=range(1, 3), coefficient=0.5, max_new_tokens=4)
    assert several == emosteer.steer(model, TEXTS, vector, layer=layers[1:3], coefficient=0.5, max_new_tokens=4)
    assert several.texts != mine.texts


def test_no_push_is_no_change_and_a_push_is_one(model: LanguageModel, vector: EmotionVector) -> None:
    plain = emosteer.reply(model, TEXTS, max_new_tokens=12)
    assert emosteer.steer(model, TEXTS, vector, layer=1, coefficient=0.0, max_new_tokens=12) == plain
    pushed = {
        (scope, unit): emosteer.steer(
            model, TEXTS, vector, layer=1, coefficient=2.0, scope=scope, coefficient_unit=unit, max_new_tokens=12
        )
        for scope in ("generated", "prompt", "all")
        for unit in ("fraction", "raw")
    }
    texts = {key: tuple(replies.texts) for key, replies in pushed.items()}
    assert len({*texts.values(), tuple(plain.texts)}) == 7


def test_a_vector_from_a_name_a_file_and_a_list_is_one_vector(model: LanguageModel, tmp_path: Path) -> None:
    pairs = load_contrastive_pairs(SHIPPED / "pairs" / "joy_sadness.jsonl")
    by_name = emosteer.build_vector(model, "joy_sadness")
    assert by_name.site == "residual"
    norms = residual_norms(model, load_neutral_texts())
    assert by_name.directions.equal(emotion_vector(model, pairs, norms).directions)
    assert by_name.residual_norm.equal(norms)
    file = tmp_path / "pairs.jsonl"
    file.write_text(to_json_lines(pairs))
    for other in (emosteer.build_vector(model, file), emosteer.build_vector(model, pairs)):
        assert other.directions.equal(by_name.directions)


def test_unusable_pairs_and_methods_are_refused(model: LanguageModel, tmp_path: Path) -> None:
    pair = emosteer.ContrastivePair("a", "We are so happy!", "I am sad.")
    for arguments, message in (
        (("joy",), "pairs='joy': no such file, and none of the shipped anger_fear"),
        (([],), "pairs is empty"),
        (([pair, pair],), r"pairs\[1\]: id 'a' stands already"),
        (([replace(pair, negative=pair.positive)],), r"pairs\[0\]: positive and negative are the same text"),
        (([replace(pair, negative="")],), r"pairs\[0\]: 'negative' must be a text"),
        ((pair,), "give a list"),
    ):
        with pytest.raises(EmosteerError, match=message):
            emosteer.build_vector(model, *arguments)
    with pytest.raises(EmosteerError, match=r"vector\.method=ica: choose one of"):
        emosteer.build_vector(model, [pair], method="ica")
    with pytest.raises(EmosteerError, match="call random_vector"):
        emosteer.build_vector(model, [pair], method="random")
    with pytest.raises(EmosteerError, match="site=head: choose one of"):
        emosteer.build_vector(model, [pair], site="head")
    with pytest.raises(EmosteerError, match=r"diagnostics\[0\] is ContrastivePair"):
        emosteer.attribute(model, [pair])


def test_attribution_of_a_list_and_of_a_file_is_one_attribution(model: LanguageModel, tmp_path: Path) -> None:
    letters = "abcdefgh"
    pairs = [emosteer.DiagnosticPair(one, f"Say {one} 1", f"Say {one} 2", "I", ("h", "j"), ("s", "t")) for one in letters]
    file = tmp_path / "diagnostics.jsonl"
    file.write_text(to_json_lines(pairs))

    found, again = emosteer.attribute(model, pairs, steps=2), emosteer.attribute(model, str(file), steps=2)

    assert found.pair_ids == tuple(letters)
    assert sorted(found.ranking()) == list(range(BLOCKS))
    assert found.block_scores().equal(again.block_scores())
    assert not found.everywhere["mlp"].equal(emosteer.attribute(model, pairs, steps=1).everywhere["mlp"])
    with pytest.raises(EmosteerError, match="steps=0"):
        emosteer.attribute(model, pairs, steps=0)
    with pytest.raises(EmosteerError, match="attribution needs at least 8"):
        emosteer.attribute(model, pairs[:7])


def test_a_random_vector_is_as_long_as_the_one_beside_it_and_each_is_another(model: LanguageModel, vector: EmotionVector) -> None:
    beside = emosteer.random_vector(model, seed=1, index=2, like=replace(vector, site="mlp"))
    assert torch.allclose(beside.directions.norm(dim=1), vector.directions.norm(dim=1))
    assert beside.residual_norm.equal(vector.residual_norm)
    assert beside.site == "mlp"
    alone = emosteer.random_vector(model, seed=1, index=2)
    assert torch.allclose(alone.directions.norm(dim=1), torch.ones(BLOCKS))
    assert alone.residual_norm.equal(vector.residual_norm)
    assert torch.allclose(alone.added(1, 0.3, "fraction"), beside.added(1, 0.3, "fraction"), atol=1e-6)
    others = [alone, *(emosteer.random_vector(model, *key, like=vector) for key in ((1, 1), (2, 2)))]
    units = torch.stack([other.directions[0] / other.directions[0].norm() for other in others])
    assert (units @ units.T - torch.eye(3)).abs().max() < 0.9
    for seed, index in ((0.5, 0), (0, -1), (True, 0), ("a", 0)):
        with pytest.raises(EmosteerError, match="give a whole number of at least 0"):
            emosteer.random_vector(model, seed, index, like=vector)  # type: ignore[arg-type]


def shouting(replies: list[str]) -> dict[str, list[float]]:
    return {"capitals": [float(sum(letter.isupper() for letter in reply)) for reply in replies], "undefined": [np.inf] * len(replies)}


def test_scorers_of_ones_own_stand_beside_the_shipped(model: LanguageModel) -> None:
    replies = emosteer.reply(model, TEXTS, max_new_tokens=6)
    table = emosteer.score(model, replies, ["pronouns", shouting])

    assert list(table) == [*replies.table(), "first_person", "first_person_singular", "first_person_plural", "capitals", "undefined"]
    assert table["capitals"].tolist() == shouting(replies.texts)["capitals"]
    assert table["undefined"].isna().all()
    assert emosteer.score(model, replies, "words")["words"].tolist() == emosteer.score(model, replies)["words"].tolist()


def test_what_steering_did_to_the_models_expectations(model: LanguageModel, vector: EmotionVector) -> None:
    steered = emosteer.steer(model, TEXTS, vector, layer=1, coefficient=0.5, max_new_tokens=6)
    unsteered = emosteer.reply(model, TEXTS, max_new_tokens=6)
    assert emosteer.score(model, unsteered, ["kl"])["kl"].tolist() == [0.0] * len(TEXTS)
    more = emosteer.score(model, steered, ["kl"])["kl"]
    assert (more > emosteer.score(model, replace(steered, steering=None), ["kl"])["kl"]).all()
    assert "kl" not in emosteer.score(model, steered), "it is slow"


def test_unusable_scorers_and_replies_are_refused(model: LanguageModel) -> None:
    replies = emosteer.reply(model, TEXTS, max_new_tokens=2)
    for scorers, message in (
        (["joy"], "scorers=joy: choose of nrc, caveats, sentiment"),
        ([lambda replies: {"m": [0.0]}], "m has 1 values for 3 replies"),
        ([lambda replies: [0.0, 0.0, 0.0]], "a scorer gives metric -> one value per reply"),
    ):
        with pytest.raises(EmosteerError, match=message):
            emosteer.score(model, replies, scorers)
    with pytest.raises(EmosteerError, match="give what reply or steer returned"):
        emosteer.score(model, replies.texts)  # type: ignore[arg-type]
    with pytest.raises(EmosteerError, match="the replies are of other, not of tiny-llama"):
        emosteer.score(model, replace(replies, model="other"))


def test_the_table_of_replies_has_a_row_per_prompt_and_sample(model: LanguageModel) -> None:
    replies = emosteer.reply(model, TEXTS, max_new_tokens=6, do_sample=True, n_samples=2)
    table = replies.table()

    assert isinstance(replies, Replies)
    assert table["prompt"].tolist() == [text for text in TEXTS for _ in range(2)]
    assert table["sample"].tolist() == [0, 1] * 3
    assert table["reply"].tolist() == replies.texts
    assert table["n_tokens"].tolist() == [len(row.tokens) for row in replies.rows]


@pytest.mark.slow
@pytest.mark.real_model
def test_joy_at_block_9_gives_more_joy_words(smollm2: LanguageModel) -> None:
    prompts = emosteer.load_prompts("conversation", limit=16)
    vector = emosteer.build_vector(smollm2, load_contrastive_pairs(SHIPPED / "pairs" / "joy_sadness.jsonl")[:8])

    plain = emosteer.score(smollm2, emosteer.reply(smollm2, prompts, max_new_tokens=24), ["nrc"])
    steered = emosteer.score(smollm2, emosteer.steer(smollm2, prompts, vector, layer=9, max_new_tokens=24), ["nrc"])

    assert emosteer.compare(steered, plain).loc["joy", "delta"] > 0


def test_what_a_notebook_shows_is_short_and_a_slip_is_told(model: LanguageModel) -> None:
    vector = emosteer.random_vector(model)
    plain = emosteer.reply(model, ["How was your day?"], max_new_tokens=2)

    for shown in (model, vector, plain):
        assert len(repr(shown)) < 200
    with pytest.raises(EmosteerError, match=r"vector='joy_sadness': give what build_vector"):
        emosteer.steer(model, ["How was your day?"], "joy_sadness", layer=1)  # type: ignore[arg-type]
    with pytest.raises(EmosteerError, match="compare takes tables of scored replies"):
        emosteer.compare(plain, plain)  # type: ignore[arg-type]
