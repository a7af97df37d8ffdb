"""The library from a notebook: load a model, attribute, build a vector, steer, score and compare.

A thin face over the modules that the commands use, with the commands' defaults and checks: the same request gives the same
replies and the same numbers. It neither reads nor writes sweeps, and does not start Hydra.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar, Unpack

import pandas as pd
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from emosteer import attribution, datasets, stories
from emosteer.arguments import Generation, configuration, plain, whole
from emosteer.attribution import Attribution
from emosteer.attribution.metrics import Measure
from emosteer.comparison import GENERATED
from emosteer.config import AUTO, Config, GenerationConfig, ModelConfig
from emosteer.datasets import SHIPPED, ContrastivePair, DiagnosticPair, Prompt
from emosteer.dotted import version_of
from emosteer.engine import Engine, Origin
from emosteer.errors import EmosteerError
from emosteer.model.language_model import LanguageModel, load
from emosteer.model.source import resolve_layers
from emosteer.one_line import one_line
from emosteer.records.store import StoredReply
from emosteer.scoring.scorer import Scorer, find_scorers
from emosteer.steering import Steering, steering_along
from emosteer.turns import context_of, hold, stored, talks_for
from emosteer.vectors import EmotionVector, checked, emotion_vector, random_direction, residual_norms

CONF = Path(__file__).parent / "conf"

Prompts = str | Path | Iterable[str | Prompt | Mapping[str, Any]]
"""A shipped set's name, a file, or prompts: texts, `Prompt`s, or mappings with the keys of a prompts file."""


@dataclass(frozen=True)
class Replies:
    """Replies of one model to prompts, in the order of the prompts, then samples."""

    model: str
    """Its name."""
    prompts: tuple[Prompt, ...]
    rows: tuple[StoredReply, ...]
    """One a reply: its prompt's id, sample, text, tokens, and whether the model ended it itself."""
    generation: GenerationConfig
    """How they were decoded."""
    seed: int
    """Of their sampling."""
    steering: Steering | None = field(default=None, compare=False, repr=False)
    """What was done to the model's states meanwhile."""

    def __repr__(self) -> str:
        return f"<Replies of {self.model}: {len(self.rows)} to {len(self.prompts)} prompts; .texts, .table()>"

    @property
    def texts(self) -> list[str]:
        """The replies as a person reads them, without special tokens."""
        return [row.reply for row in self.rows]

    def table(self) -> pd.DataFrame:
        """A row per reply, with the columns of a sweep's `replies.parquet`: prompt_id, sample, turn, prompt, reply, n_tokens."""
        asked = {prompt.id: prompt.text for prompt in self.prompts}
        return pd.DataFrame(
            {
                "prompt_id": [row.prompt_id for row in self.rows],
                "sample": [row.sample for row in self.rows],
                "turn": [row.turn for row in self.rows],
                "prompt": [row.said or asked[row.prompt_id] for row in self.rows],
                "reply": self.texts,
                "n_tokens": [len(row.tokens) for row in self.rows],
            }
        )


def load_model(model: str | Path, **changes: Any) -> LanguageModel:
    """Load a language model.

    A model that is loaded already becomes one by `emosteer.model.language_model.wrap(name, model, tokenizer)`.

    Args:
        model: the name of a shipped model (a file in `emosteer/conf/model`, such as `smollm2`), a directory, or a hub id.
        changes: keys of `emosteer.config.ModelConfig` that shall differ: `dtype` (float32 where the shipped file says nothing,
            and never taken from the device), `device`, `revision`, `gguf_file`, `attn_implementation`, ...

    Raises:
        EmosteerError: an unknown key, nothing to load, an absent device, or a decoder whose blocks are not found.
    """
    shipped = {path.stem: path for path in (CONF / "model").glob("*.yaml") if path.stem != "custom"}
    is_shipped = isinstance(model, str) and model in shipped
    named = OmegaConf.load(shipped[str(model)]) if is_shipped else {"name": Path(model).absolute().name, "path": str(model)}
    try:
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ModelConfig), named, changes))
    except OmegaConfBaseException as error:
        raise EmosteerError(f"model={model}: {one_line(error)}") from None
    assert isinstance(config, ModelConfig)
    try:
        return load(config)
    except EmosteerError as error:
        if is_shipped or "/" in str(model):
            raise
        raise EmosteerError(f"{error}; shipped models: {', '.join(sorted(shipped))}") from None


def load_prompts(prompts: Prompts, limit: int | None = None) -> list[Prompt]:
    """The first `limit` prompts (all for None) of a shipped set, a file or a list, in their order.

    The shipped sets alternate their categories, so that the first n are a fair choice. A plain text gets a hash of itself as
    id, so that its sampled replies do not depend on the texts beside it.

    Raises:
        EmosteerError: neither a shipped set nor a file; no prompt; one without text; two with one id; or `limit` below 1.
    """
    if isinstance(prompts, str | Path):
        return datasets.load_prompts(_file("prompts", prompts), limit)
    found = datasets.from_records(_prompt_records(_listed("prompts", prompts)), Prompt, "prompts")
    if limit is not None and limit < 1:
        raise EmosteerError(f"limit={limit}: give a whole number of at least 1, or None for all prompts")
    return found[:limit]


def attribute(
    model: LanguageModel,
    pairs: str | Path | Iterable[DiagnosticPair],
    *,
    steps: int | None = None,
    direction: str = "denoising",
    method: str = "attribution_patching",
    measure: Measure | None = None,
    neurons: int = 0,
) -> Attribution:
    """Find by attribution patching which blocks decide an emotional expression; `.ranking()` names them, first the largest.

    Scores are in units of the metric: by default nats, log p(expressive words) - log p(counterpart words) as the next token.
    Source: Nanda 2023; Syed et al. 2023; over all positions, integrated gradients (Hanna et al. 2024).

    Args:
        model: the language model.
        pairs: the name of a shipped emotion pair (`joy_sadness`), a file of diagnostic pairs, or a list of them.
        steps: gradients averaged between the corrupted and the clean run; None takes 1 at the last position or for atp_star, else 5.
        direction: denoising (clean activations into the corrupted run) or noising (corrupted ones into the clean run).
        method: attribution_patching or atp_star (Kramár et al. 2024).
        measure: another metric, of `emosteer.attribution.metrics`, or the `measure` of one of `emosteer.measures`.
        neurons: how many of the strongest MLP neurons are kept.

    Raises:
        EmosteerError: unusable pairs, or fewer than 8 that are aligned under the model's tokenizer.
    """
    cases = attribution.prepare(model, _items("diagnostics", pairs, DiagnosticPair, datasets.load_diagnostic_pairs), measure)
    return attribution.attribute(model, cases, steps, direction=direction, method=method, neurons=neurons)


def build_vector(
    model: LanguageModel,
    pairs: str | Path | Iterable[ContrastivePair],
    *,
    method: str = "mean_difference",
    site: str = "residual",
    reading: str = "token_mean",
    components: int = 5,
) -> EmotionVector:
    """Derive an emotion vector from contrastive pairs: directions [block, width], raw, positive minus negative, float32.

    The model's residual norms [block], measured on the shipped neutral texts, come with it: a coefficient is a multiple of them.
    Source: *Conversations: Love Them, Hate Them, Steer Them* (Chebrolu, Yeo, Jaidka).

    Args:
        model: the language model.
        pairs: the name of a shipped emotion pair (`joy_sadness`), a file of contrastive pairs, or a list of them.
        method: as `vector.method` in the command.
        reading: as `vector.reading` in the command: token_mean, last_token or assistant_prefix.
        components: as `vector.components` in the command.
        site: whose output is read, and will be steered: residual, attention or mlp.

    Raises:
        EmosteerError: unusable pairs, an unknown method or site, or a vector that is not finite or has no length at some block.
    """
    if method == "random":
        raise EmosteerError("method=random needs no pairs: call random_vector")
    configuration(vector={"method": method, "reading": reading, "components": components}, site=site)
    contrastive = _items("pairs", pairs, ContrastivePair, datasets.load_contrastive_pairs)
    shipped = [datasets.load_contrastive_pairs(path) for path in datasets.shipped_pairs().values()]
    return emotion_vector(
        model,
        contrastive,
        _norms(model),
        method,
        site,
        reading,
        others=[others for others in shipped if datasets.digest(others) != datasets.digest(contrastive)],
        neutral=datasets.load_neutral_texts(),
        components=components,
    )


def write_stories(model: LanguageModel, target: str, counterpart: str, *, seed: int = 0) -> list[ContrastivePair]:
    """Let the model write stories of two emotions, which `build_vector` takes for contrastive pairs.

    Stories that are too short, repetitive or without the emotion's words are left out, with the other emotion's of that scene. A
    sweep with `vector.source=stories` writes the same for the same seed.

    Args:
        model: the language model.
        target: a noun, such as joy.
        counterpart: another, such as sadness.
        seed: of the sampled tokens.

    Raises:
        EmosteerError: fewer than 8 pairs of stories are left, or the seed is none.
    """
    return stories.write_stories(Engine(model), target, counterpart, whole("seed", seed)).pairs()


def random_vector(model: LanguageModel, seed: int = 0, index: int = 0, *, like: EmotionVector | None = None) -> EmotionVector:
    """A random direction to steer with as a control: what any push of that length would do.

    The same seed and index give the direction of a sweep's control (`seed`, and its place among `controls.random`).

    Args:
        model: the language model.
        seed: a whole number.
        index: which of the seed's directions.
        like: the vector that it stands beside, whose lengths, site and residual norms it takes. Without one it is of length 1 at each
            block, for the residual stream, and the norms are measured anew, which takes as long as 48 short prompts.

    Raises:
        EmosteerError: a seed or index that is none, or `like` is no vector of this model's shape.
    """
    directions = random_direction(whole("seed", seed), whole("index", index), model.n_blocks, model.width)
    if like is None:
        return EmotionVector(directions, _norms(model))
    _check_fits(like, model)
    return EmotionVector(directions * like.directions.norm(dim=1, keepdim=True), like.residual_norm, like.site)


def reply(model: LanguageModel, prompts: Prompts, *, seed: int = 0, **generation: Unpack[Generation]) -> Replies:
    """Unsteered replies: the baseline.

    Args:
        model: the language model.
        prompts: as for `load_prompts`.
        seed: of sampling; the random numbers of a reply hang on (seed, prompt's id, sample, step) alone.
        generation: max_new_tokens (60), min_new_tokens (0), do_sample (False), temperature (1.0), top_p (1.0), and
            n_samples (1), the replies per prompt.

    Raises:
        EmosteerError: an unusable prompt or option; see `load_prompts`.
    """
    return _generate(model, prompts, configuration(seed=seed, generation=generation))


def steer(
    model: LanguageModel,
    prompts: Prompts,
    vector: EmotionVector,
    *,
    layer: int | float | str | Iterable[int | float],
    coefficient: float = 0.2,
    coefficient_unit: str = "fraction",
    across_blocks: str = "each",
    scope: str = "generated",
    intervention: str = "add",
    decay: float = 1.0,
    seed: int = 0,
    **generation: Unpack[Generation],
) -> Replies:
    """Replies while `coefficient` times the vector is added to what its site puts out, or the like is done there.

    Prompts, seed and generation must be those of the unsteered replies that these shall be compared with.

    Args:
        model: the language model.
        prompts: as for `load_prompts`.
        vector: of this model.
        layer: a block (0-based), several at once, or a fraction of the depth.
        coefficient: the added length in units of the block's residual norm, or a multiple of the raw vector.
        coefficient_unit: `fraction` or `raw`, accordingly.
        across_blocks: where several blocks are steered, `each` gets the whole coefficient, or it is `split` evenly among them.
        scope: the steered positions: `generated` (from the last prompt position on), `prompt`, or `all`.
        intervention: `add` the vector; `set` the projection on its direction to the coefficient; or `ablate` the direction, whatever
            the coefficient.
        decay: factor from 0 to 1 by which the intervention weakens with each generated token.
        seed: as for `reply`.
        generation: as for `reply`.

    Raises:
        EmosteerError: a block out of range, a coefficient that is not finite, an unknown scope, unit or intervention, a decay out of
            range, a vector of another model's shape, a site that the model has not, and all that `reply` raises.
    """
    if not isinstance(vector, EmotionVector):
        raise EmosteerError(f"vector={vector!r}: give what build_vector, random_vector or load_vector returned")
    config = configuration(
        coefficient=coefficient,
        coefficient_unit=coefficient_unit,
        across_blocks=across_blocks,
        scope=scope,
        intervention=intervention,
        decay=decay,
        seed=seed,
        site=vector.site,
        generation=generation,
    )
    if config.coefficient == AUTO:
        raise EmosteerError("coefficient=auto: only the command looks for one; give a number")
    layers = resolve_layers(plain(layer), model.n_blocks, model.name)
    if layers is None:
        raise EmosteerError("layer=auto: only the command asks attribution by itself; give attribute(model, pairs).ranking()[0]")
    _check_fits(vector, model)
    steering = steering_along(
        vector, layers, float(config.coefficient), coefficient_unit, intervention, scope, config.decay, across_blocks
    )
    return _generate(model, prompts, config, steering)


def score(model: LanguageModel, replies: Replies, scorers: Iterable[str | Callable[..., Any]] | None = None) -> pd.DataFrame:
    """Measure replies: a row per reply, the columns of `Replies.table()`, then one per metric.

    Definitions and units stand in the docstrings of `emosteer.scoring`; `docs/method.md` lists them. `duplication` looks
    across the replies, so that half of them have other values than all.

    Args:
        model: the one that replied; perplexity is of the replies under it, unsteered.
        replies: all that shall be measured together.
        scorers: names of shipped scorers (`nrc`, `sentiment`, `pronouns`, `words`, `repetition`, `distinct`, `caveats`, ...), and
            functions of your own from replies to metrics; None takes the shipped ones but `kl`, which is slow.

    Raises:
        EmosteerError: an unknown scorer, one that gives another number of values than there are replies, or another model.
    """
    if not isinstance(replies, Replies):
        raise EmosteerError(f"replies is a {type(replies).__name__}: give what reply or steer returned")
    if replies.model != model.name:
        raise EmosteerError(
            f"the replies are of {replies.model}, not of {model.name}: score them with the model whose tokens they are"
        )
    found = _scorers(scorers)
    context = context_of(Engine(model), replies.prompts, replies.rows)
    origins = [Origin(prompt, replies.steering) for prompt in context.prompts]
    table = replies.table()
    for scorer in found:
        table = table.assign(**scorer.measure(replies.texts, lambda: context, lambda: origins))
    table.attrs[GENERATED] = {"model": replies.model, "seed": replies.seed, **asdict(replies.generation)}
    return table


def _norms(model: LanguageModel) -> Tensor:
    return residual_norms(model, datasets.load_neutral_texts())


def _check_fits(vector: EmotionVector, model: LanguageModel) -> None:
    blocks, width = checked(vector).directions.shape
    if (blocks, width) != (model.n_blocks, model.width):
        raise EmosteerError(
            f"the vector has {blocks} blocks of width {width}, {model.name} has {model.n_blocks} of width {model.width}: "
            "build it on the model that it shall steer"
        )


def _generate(model: LanguageModel, prompts: Prompts, config: Config, steering: Steering | None = None) -> Replies:
    asked = load_prompts(prompts)
    talks = talks_for(model, asked, config.generation, config.seed, steering)
    for _ in hold(Engine(model), talks):
        pass
    return Replies(model.name, tuple(asked), tuple(stored(talks)), config.generation, config.seed, steering)


def _listed(name: str, items: Any) -> list[Any]:
    if isinstance(items, Mapping) or not isinstance(items, Iterable):
        raise EmosteerError(f"{name}={repr(items)[:60]}: give a list (one alone in brackets), a shipped name, or a file")
    return list(items)


def _prompt_records(prompts: Sequence[Any]) -> list[Any]:
    """The prompts with each plain text as a record, under a hash of itself."""
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    if twice := [text for text, times in Counter(texts).items() if times > 1]:
        raise EmosteerError(f"prompts: {twice[0][:60]!r} stands there more than once; n_samples gives several replies to a prompt")
    return [{"id": _hash(prompt), "text": prompt} if isinstance(prompt, str) else prompt for prompt in prompts]


def _hash(text: str) -> str:
    # What cannot be encoded is refused a step later, with its place.
    return sha256(text.encode(errors="replace")).hexdigest()[:8]


def _file(folder: str, request: str | Path) -> Path:
    """The file of a shipped name, or of a path; raises EmosteerError where there is neither."""
    shipped = {path.stem: path for path in (SHIPPED / folder).glob("*.jsonl")}
    if isinstance(request, str) and request in shipped:
        return shipped[request]
    # A text that was meant as a prompt may be too long for a file's name, or begin with ~.
    with suppress(OSError, RuntimeError):
        if (path := Path(request).expanduser()).exists():
            return path
    raise EmosteerError(
        f"{folder}={str(request)[:60]!r}: no such file, and none of the shipped {', '.join(sorted(shipped))}; "
        "texts and pairs of your own come in a list"
    )


_Pair = TypeVar("_Pair", ContrastivePair, DiagnosticPair)


def _items(folder: str, request: Any, kind: type[_Pair], read: Callable[[Path], list[_Pair]]) -> list[_Pair]:
    if isinstance(request, str | Path):
        return read(_file(folder, request))
    return datasets.from_records(_listed(folder, request), kind, folder)


def _configured(*files: str) -> dict[str, Any]:
    """The scorers that shipped files name."""
    found = OmegaConf.to_container(OmegaConf.merge(*(OmegaConf.load(CONF / "scorers" / f"{file}.yaml") for file in files)))
    assert isinstance(found, dict)
    return {str(name): entry for name, entry in found.items() if name != "defaults"}


def _scorers(asked: Iterable[str | Callable[..., Any]] | None) -> list[Scorer]:
    by_default, all_of_them = _configured("default"), _configured("default", "kl")
    if asked is None:
        return find_scorers(by_default)
    shipped = {scorer.name: scorer for scorer in find_scorers(all_of_them)}
    found = []
    for one in _listed("scorers", [asked] if isinstance(asked, str) else asked):
        if callable(one):
            found.append(Scorer(getattr(one, "__name__", type(one).__name__), "", {}, version_of(one), one))
        elif one in shipped:
            found.append(shipped[one])
        else:
            raise EmosteerError(f"scorers={one}: choose of {', '.join(shipped)}, or give a function")
    return found
