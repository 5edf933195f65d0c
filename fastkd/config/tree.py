"""The configuration of a run: one tree of frozen dataclasses, validated by pydantic."""

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from fastkd.config.losses import (
    A2D,
    CrossEntropy,
    DiMS,
    HiddenStates,
    Length,
    LossConfig,
    MaskedCrossEntropy,
    TieKD,
    WordKD,
)
from fastkd.config.types import (
    STRICT,
    AboveZero,
    BleuTokenizer,
    Exponent,
    Flag,
    Natural,
    NonNegative,
    PathText,
    Positive,
    Probability,
    Repeats,
    Share,
    Size,
    Width,
)

__all__ = [
    "A2D",
    "CMLMConfig",
    "Config",
    "CrossEntropy",
    "DataConfig",
    "DecodingConfig",
    "DiMS",
    "HiddenStates",
    "Length",
    "LossConfig",
    "MaskedCrossEntropy",
    "ModelConfig",
    "OptimizerConfig",
    "StartConfig",
    "TeacherConfig",
    "TieKD",
    "TokenizerConfig",
    "TrainingConfig",
    "WordKD",
]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DataConfig:
    """The parallel corpus: `<prefix>.<language>` or `<prefix>.<language>.gz` for each split."""

    source: str
    target: str
    train: PathText
    dev: PathText
    test: PathText | None = None
    prepared: PathText  # folder that `prepare` writes and `train` reads
    max_length: Size = 256  # pieces, end-of-sentence included; longer training pairs are dropped


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TokenizerConfig:
    """A sentencepiece model to train."""

    vocabulary: Annotated[Size, Field(gt=5)] = 8000  # pieces, with the five special ones
    joint: Flag = True  # one model for both languages
    model: Literal["unigram", "bpe"] = "unigram"
    character_coverage: Share = 1.0
    # What becomes of characters before they are cut, so also of what a student can write:
    # identity leaves them, nfc composes accents, nmt_nfkc rewrites widths, ligatures, joiners ...
    normalization: Literal["identity", "nfc", "nmt_nfkc"] = "identity"  # of the target
    source_normalization: Literal["identity", "nfc", "nmt_nfkc"] | None = None  # None = as above
    byte_fallback: Flag = False  # unknown characters are cut into 256 pieces for their bytes
    sample: Positive = 1_000_000  # lines a side that the model is trained on, at most

    def __post_init__(self) -> None:
        if self.joint and self.source_normalization not in (None, self.normalization):
            raise ValueError("joint: false where source_normalization is another one")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CMLMConfig:
    """What only a conditional masked language model has."""

    length_classes: Annotated[Size, Field(gt=1)] = 256
    length: Literal["absolute", "offset"] = "absolute"  # what is predicted; offset: from the source
    causal_attention: Flag = False  # causal self-attention after the full one (CMLMC)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ModelConfig:
    """An encoder-decoder Transformer: autoregressive, or a conditional masked language model."""

    kind: Literal["transformer", "cmlm"] = "transformer"
    encoder_layers: Repeats = 6
    decoder_layers: Repeats = 6
    width: Width = 512
    ffn: Width = 2048
    heads: Width = 8
    dropout: Probability = 0.1
    attention_dropout: Probability = 0.0
    activation_dropout: Probability = 0.0
    activation: Literal["relu", "swish"] = "relu"  # within the feed-forward parts
    norm: Literal["pre", "post"] = "pre"
    share_embeddings: Flag = True  # source and target; needs a joint tokenizer
    tie_output: Flag = True  # output projection = target embedding
    output_bias: Flag = False
    decoder_start: Literal["bos", "eos", "pad"] = "bos"
    max_positions: Size = 1024
    cmlm: CMLMConfig = field(default_factory=CMLMConfig)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class OptimizerConfig:
    """AdamW and its schedule."""

    lr: AboveZero = 5e-4
    betas: tuple[Probability, Probability] = (0.9, 0.98)
    eps: AboveZero = 1e-8
    weight_decay: NonNegative = 1e-4
    schedule: Literal["inverse_sqrt", "cosine", "constant"] = "inverse_sqrt"
    warmup: Positive = 4000  # updates
    clip: NonNegative = 0.0  # gradient norm; 0 = off


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrainingConfig:
    """The training loop. `batch_tokens` is one update's size over all devices and pieces."""

    seed: Natural = 1
    updates: Positive = 100_000  # stop after so many
    epochs: Positive | None = None  # or after so many, whichever comes first
    batch_tokens: Positive = 4096  # sentences × longest side, padding included
    accumulation: Repeats = 1  # pieces one device cuts its share of an update into
    sharding: Literal["none", "fully_shard"] = "none"  # of weights, gradients, Adam over processes
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    validate_every: Positive | None = None  # updates; None = each epoch
    log_every: Positive = 50
    save_every: Positive = 1000  # updates between saves of the training state
    keep_last: Positive = 5
    early_metric: Literal["bleu", "chrf", "loss"] = "bleu"
    patience: Positive | None = None  # validations without a better early_metric
    bleu_sentences: Natural = 1000  # of dev, for BLEU and chrF in validation; 0 = off
    bleu_tokenizer: BleuTokenizer | None = None  # sacrebleu's; None = the target language's own
    process_timeout: AboveZero = 1800.0  # seconds without progress of any of several processes
    max_skipped: Positive = 10  # updates in a row with a loss or gradient that is not finite
    ema: Probability = 0.0  # decay of the averaged weights; 0 = off
    tensorboard: Flag = False
    backend: Literal["auto", "reference", "torch", "triton"] = "auto"  # of every fastkd loss
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DecodingConfig:
    """Beam search; mask-predict for a model of kind cmlm."""

    beam: Repeats = 5
    length_penalty: Exponent = 1.0  # score / length ** length_penalty
    max_length_ratio: AboveZero = 2.0
    max_length_extra: Size = 10  # target pieces <= ratio · source pieces + extra
    passes: Repeats = 4  # of mask-predict
    length_window: Annotated[Natural, Field(le=2**10)] = 2  # lengths tried: predicted ± so many
    remove_duplicates: Flag = True  # drop a piece that repeats the one before it
    reconsider: Flag = False  # a pass may change unmasked pieces too, as CMLMC does
    unknown: Flag = False  # whether <unk> may be written, as " ⁇ "
    batch_tokens: Positive = 8192


@dataclass(frozen=True, kw_only=True, config=STRICT)
class StartConfig:
    """A trained run whose weights a new one begins with; what that run lacks begins at random."""

    run: PathText
    checkpoint: Literal["best", "last", "average"] = "best"
    learned: Flag = False  # with what its losses learned, such as A2D's mix of heads


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TeacherConfig:
    """A trained run, or what `fastkd cache-teacher` wrote of one: `run` or `cache`."""

    run: PathText | None = None
    checkpoint: Literal["best", "last", "average"] = "best"  # of the run
    cache: PathText | None = None  # folder; for word_kd, and tie_kd with 1 iteration
    rest: Literal["drop", "spread", "renormalize", "tail"] = (
        "renormalize"  # what a cache leaves out
    )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Config:
    """Everything that one run needs."""

    run: PathText  # run folder
    data: DataConfig
    tokenizer: TokenizerConfig | PathText = field(default_factory=TokenizerConfig)  # or a folder's
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    start: StartConfig | None = None  # a masked model may begin as an autoregressive one
    teacher: TeacherConfig | None = None
    losses: tuple[LossConfig, ...] = (CrossEntropy(),)
