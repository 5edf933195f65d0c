"""Where the text of the recipes with published sizes comes from."""

from dataclasses import dataclass, field

# Other commits than those that the committed tables' text was taken from: DATA.md.
_WMT22 = (
    "https://raw.githubusercontent.com/mariondimarco/WMT22_UnsupVeryLowResMT_Data/"
    "2edd1d2a295c9c409239c3a67ae6cd29c84811fa"
)
_WMT25 = (
    "https://raw.githubusercontent.com/TUM-NLP/llms-limited-resources2025/"
    "3b6587a6c0e7f46ec6937c4d2c904b23bcbb929d"
)
_MULTI30K = (
    "https://raw.githubusercontent.com/multi30k/dataset/"
    "c9be912dc05a3ebf9ae5bb5f7f58c1791cda43ab/data/task1/raw"
)
_IWSLT = "http://dl.fbaipublicfiles.com/fairseq/data/iwslt14/de-en.tgz"
_WMT13, _WMT14 = "http://www.statmt.org/wmt13", "http://www.statmt.org/wmt14"


@dataclass(frozen=True)
class Part:
    """A file of sentences a language: `{}` stands for it, `!` before a file in an archive."""

    place: str
    sides: tuple[str, str] = ("", "")  # what `{}` is, where it is not the language


@dataclass(frozen=True)
class Text:
    """A corpus: its parts by split, and what is left out of train."""

    languages: tuple[str, str]
    parts: dict[str, tuple[Part, ...]]
    longest: int = 175  # words
    ratio: float = 3.0  # of the words of one side to the other's
    dev_every: int = 0  # of train's pairs, where dev has no parts: every so many
    unique: bool = True  # equal pairs once
    pairs: dict[str, int] = field(default_factory=dict)  # what came of it before, where known


_TALKS = ("TED.dev2010", "TEDX.dev2012", "TED.tst2010", "TED.tst2011", "TED.tst2012")
TEXTS = {
    "wmt22-de-dsb": Text(
        ("de", "dsb"),
        {
            "train": (Part(f"{_WMT22}/40194_train_dsb_de.{{}}.gz"),),
            "dev": (Part(f"{_WMT22}/valid.{{}}.gz"),),
            "test": (Part(f"{_WMT25}/Sorbian/dsb/MT/dev.de-dsb.{{}}"),),
        },
        pairs={"train": 38_991, "dev": 1_353, "test": 2_640},
    ),
    "multi30k": Text(
        ("en", "de"),
        {
            "train": (Part(f"{_MULTI30K}/train.{{}}.gz"),),
            "dev": (Part(f"{_MULTI30K}/val.{{}}.gz"),),
            "test": (Part(f"{_MULTI30K}/test_2016_flickr.{{}}.gz"),),
        },
        longest=1024,
        ratio=1024.0,
        unique=False,
        pairs={"train": 28_986, "dev": 1_014, "test": 1_000},
    ),
    # As fairseq's prepare-iwslt14.sh cuts it, whose bounds are on tokenised text.
    "iwslt14-de-en": Text(
        ("de", "en"),
        {
            "train": (Part(f"{_IWSLT}!de-en/train.tags.de-en.{{}}"),),
            "test": tuple(Part(f"{_IWSLT}!de-en/IWSLT14.{t}.de-en.{{}}.xml") for t in _TALKS),
        },
        ratio=1.5,
        dev_every=23,
        unique=False,
    ),
    # As fairseq's prepare-wmt14en2de.sh lists it.
    "wmt14-en-de": Text(
        ("en", "de"),
        {
            "train": (
                Part(f"{_WMT13}/training-parallel-europarl-v7.tgz!training/europarl-v7.de-en.{{}}"),
                Part(f"{_WMT13}/training-parallel-commoncrawl.tgz!commoncrawl.de-en.{{}}"),
                Part(
                    f"{_WMT14}/training-parallel-nc-v9.tgz!training/news-commentary-v9.de-en.{{}}"
                ),
            ),
            "dev": (
                Part(
                    "http://data.statmt.org/wmt17/translation-task/dev.tgz!dev/newstest2013.{}",
                ),
            ),
            "test": (
                Part(
                    f"{_WMT14}/test-full.tgz!test-full/newstest2014-deen-{{}}.sgm",
                    ("src.en", "ref.de"),
                ),
            ),
        },
        longest=250,
        ratio=1.5,
        unique=False,
    ),
}
