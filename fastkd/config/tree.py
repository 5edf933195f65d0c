"""The configuration of a run: one tree of frozen dataclasses, validated by pydantic."""

from dataclasses import field
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


def _path(text: str) -> str:
    if not text or "\0" in text:
        raise ValueError("a path")
    return text


# Strict: true is no number, 1e3 no whole one, and "5" neither. Bounds keep what is far outside of
# any use from ending in NaN, in an overflow or in a process that the system kills.
PathText = Annotated[str, AfterValidator(_path)]
Flag = Annotated[bool, Field(strict=True)]
Natural = Annotated[int, Field(ge=0, lt=2**63, strict=True)]
Positive = Annotated[int, Field(gt=0, lt=2**63, strict=True)]
Size = Annotated[int, Field(gt=0, le=2**20, strict=True)]
Width = Annotated[int, Field(gt=0, le=2**16, strict=True)]
Repeats = Annotated[int, Field(gt=0, le=2**10, strict=True)]
NonNegative = Annotated[float, Field(ge=0, le=1e6, strict=True)]
AboveZero = Annotated[float, Field(gt=0, le=1e6, strict=True)]
Share = Annotated[float, Field(gt=0, le=1, strict=True)]
Probability = Annotated[float, Field(ge=0, lt=1, strict=True)]
Temperature = Annotated[float, Field(ge=1e-3, le=1e3, strict=True)]
Exponent = Annotated[float, Field(ge=-10, le=10, strict=True)]
BleuTokenizer = Literal["13a", "intl", "char", "zh", "ja-mecab", "ko-mecab", "none"]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class DataConfig:
    """The parallel corpus: `<prefix>.<language>` or `<prefix>.<language>.gz` for each split."""

    source: str
    target: str
    train: PathText
    dev: PathText
    test: PathText | None = None
    prepared: PathText  # folder that `prepare` writes and `train` reads
    max_length: Size = 256  # pieces, end-of-sentence included; longer training pairs are dropped


@dataclass(frozen=True, kw_only=True, config=_STRICT)
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


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class CMLMConfig:
    """What only a conditional masked language model has."""

    length_classes: Annotated[Size, Field(gt=1)] = 256
    length: Literal["absolute", "offset"] = "absolute"  # what is predicted; offset: from the source
    causal_attention: Flag = False  # causal self-attention after the full one (CMLMC)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
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


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class OptimizerConfig:
    """AdamW and its schedule."""

    lr: AboveZero = 5e-4
    betas: tuple[Probability, Probability] = (0.9, 0.98)
    eps: AboveZero = 1e-8
    weight_decay: NonNegative = 1e-4
    schedule: Literal["inverse_sqrt", "cosine", "constant"] = "inverse_sqrt"
    warmup: Positive = 4000  # updates
    clip: NonNegative = 0.0  # gradient norm; 0 = off


@dataclass(frozen=True, kw_only=True, config=_STRICT)
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
    max_skipped: Positive = 10  # updates in a row with a loss or gradient that is not finite
    ema: Probability = 0.0  # decay of the averaged weights; 0 = off
    tensorboard: Flag = False
    backend: Literal["auto", "reference", "torch", "triton"] = "auto"  # of every fastkd loss
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
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


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class StartConfig:
    """A trained run whose weights a new one begins with; what that run lacks begins at random."""

    run: PathText
    checkpoint: Literal["best", "last", "average"] = "best"


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class TeacherConfig:
    """A trained run, or what `fastkd cache-teacher` wrote of one: `run` or `cache`."""

    run: PathText | None = None
    checkpoint: Literal["best", "last", "average"] = "best"  # of the run
    cache: PathText | None = None  # folder; for word_kd, and tie_kd with 1 iteration
    rest: Literal["drop", "spread", "renormalize"] = "renormalize"  # the mass a cache leaves out


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class CrossEntropy:
    """Cross-entropy to the reference translation."""

    name: Literal["cross_entropy"] = "cross_entropy"
    weight: NonNegative = 1.0
    label_smoothing: Probability = 0.1


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class WordKD:
    """Word-level distillation: KL(teacher ‖ student) at each target position."""

    name: Literal["word_kd"] = "word_kd"
    weight: NonNegative = 0.8
    student_temperature: Temperature = 1.0
    teacher_temperature: Temperature = 1.0


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class TieKD:
    """KL + hierarchical ranking, averaged over iterative passes."""

    name: Literal["tie_kd"] = "tie_kd"
    weight: NonNegative = 0.8  # 0.5 as published
    rank_weight: NonNegative = 0.1  # of the ranking, relative to the KL; 1 as published
    top_k: Size = 5
    iterations: Repeats = 3
    student_temperature: Temperature = 1.0
    teacher_temperature: Temperature = 1.0


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class A2D:
    """Attention alignment, per kind of map."""

    name: Literal["a2d"] = "a2d"
    weight: NonNegative | None = None  # None: the normalization's own; 2400 with "map" as published
    encoder: NonNegative = 1.0
    decoder: NonNegative = 0.5
    cross: NonNegative = 0.5
    decay: Share = 0.9  # weight · decay^(epoch-1)
    normalization: Literal["map", "row", "mixture"] = "mixture"  # "map": as published
    temperature: Temperature = 1.0
    padding: Literal["exclude", "include"] = "exclude"

    def __post_init__(self) -> None:
        if not (self.encoder or self.decoder or self.cross):
            raise ValueError("encoder, decoder or cross above 0")


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class HiddenStates:
    """Mean squared distance of the last hidden states, through a learned map of widths."""

    name: Literal["hidden"] = "hidden"
    weight: NonNegative = 1.0
    encoder: Flag = True
    decoder: Flag = True

    def __post_init__(self) -> None:
        if not (self.encoder or self.decoder):
            raise ValueError("encoder or decoder")


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class MaskedCrossEntropy:
    """Cross-entropy to the reference at the masked positions of a cmlm's input."""

    name: Literal["masked_cross_entropy"] = "masked_cross_entropy"
    weight: NonNegative = 1.0
    label_smoothing: Probability = 0.1
    self_correction: Probability = 0.0  # share of unmasked pieces replaced by guesses (CMLMC)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Length:
    """Cross-entropy of a cmlm's length predictor."""

    name: Literal["length"] = "length"
    weight: NonNegative = 0.1


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class DiMS:
    """Several mask-predict steps of the teacher distilled into one pass of the student.

    The student starts from the teacher's weights, so both models have the same sizes.
    """

    name: Literal["dims"] = "dims"
    weight: NonNegative = 1.0
    steps: Repeats = 2  # of the teacher
    mask: Literal["random", "full"] = "random"
    reconsider: Flag = True  # steps predict unmasked pieces anew; false for a teacher that never
    # learned to (without self-correction): such pieces keep what they were predicted with
    ema: Probability = 0.9992  # decay of the teacher that follows the student; 0 = it stays fixed
    teacher_temperature: Temperature = 0.5
    student_temperature: Temperature = 1.0
    labels: Literal["soft", "hard"] = "soft"  # hard: the teacher's best piece
    hidden_weight: NonNegative = 0.4  # of the distance of the last states, relative to the KL
    dropout: Flag = False  # whether the student has dropout


LossConfig = Annotated[
    CrossEntropy | WordKD | TieKD | A2D | HiddenStates | MaskedCrossEntropy | Length | DiMS,
    Field(discriminator="name"),
]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
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
