"""The words of the invented language pair."""

import functools
import random
from dataclasses import dataclass

GENDERS = ("sun", "moon", "star")

_SYNONYM_SHARE = 0.3  # of nouns and verbs that have a second word in the target language
_NOUNS, _ACTIONS, _MOTIONS, _ADJECTIVES, _NAMES = 48, 16, 8, 16, 8
_HOMONYMS = 6  # nouns, verbs and adjectives with two meanings, each


@dataclass(frozen=True)
class Sense:
    """One meaning of a word: what the target language calls it."""

    words: tuple[str, ...]  # synonyms, the usual one first
    gender: int = 0  # of a noun
    plurals: tuple[str, ...] = ()  # of a noun: the stem of each synonym in the plural


@dataclass(frozen=True)
class Word:
    """A word of the source language; a homonym has two senses."""

    source: str
    senses: tuple[Sense, ...]
    kind: int = 0  # noun: 1 where it is alive; verb: which sense it gives to its nouns

    def sense(self, choice: int) -> Sense:
        return self.senses[choice % len(self.senses)]


@dataclass(frozen=True)
class Lexicon:
    """All words, each list from frequent to rare."""

    nouns: tuple[Word, ...]
    actions: tuple[Word, ...]  # verbs with an object
    motions: tuple[Word, ...]  # verbs with a place
    speech: tuple[Word, ...]  # verbs with a clause
    adjectives: tuple[Word, ...]
    names: tuple[Word, ...]
    adverbs: tuple[tuple[Word, ...], ...]  # of time: present, past, future
    places: tuple[Word, ...]  # prepositions


@functools.cache
def lexicon() -> Lexicon:
    """The words, the same ones always."""
    draw = random.Random(1)
    source, target = _SourceForms(draw), _TargetForms(draw)

    def noun(rank: int) -> Word:
        senses = 2 if rank % (_NOUNS // _HOMONYMS) == 1 else 1
        return Word(
            source.form(),
            tuple(_noun_sense(target, draw) for _ in range(senses)),
            kind=int(draw.random() < 0.5),
        )

    def plain(rank: int, count: int, homonyms: int, synonyms: float = _SYNONYM_SHARE) -> Word:
        senses = 2 if homonyms and rank % (count // homonyms) == 1 else 1
        words = [_synonyms(target, draw, synonyms) for _ in range(senses)]
        return Word(source.form(), tuple(map(Sense, words)), kind=rank % 2)

    def several(
        count: int, homonyms: int = 0, synonyms: float = _SYNONYM_SHARE
    ) -> tuple[Word, ...]:
        return tuple(plain(rank, count, homonyms, synonyms) for rank in range(count))

    return Lexicon(
        nouns=tuple(noun(rank) for rank in range(_NOUNS)),
        actions=several(_ACTIONS, _HOMONYMS),
        motions=several(_MOTIONS),
        speech=several(3),
        adjectives=several(_ADJECTIVES, _HOMONYMS),
        names=tuple(_name(source, draw) for _ in range(_NAMES)),
        adverbs=tuple(several(3, synonyms=1.0) for _ in range(3)),
        places=several(4, synonyms=0.0),
    )


class _SourceForms:
    """Draws source words such as "lomar", all different."""

    onsets: tuple[str, ...] = tuple("bdfglmnprstvz")
    vowels: tuple[str, ...] = tuple("aeio")
    codas: tuple[str, ...] = ("", "l", "r", "s", "m")  # no n: it marks the plural

    def __init__(self, draw: random.Random) -> None:
        self.draw, self.used = draw, {"lu", "ke", "en", "no", "sa"}

    def form(self) -> str:
        while True:
            syllables = self.draw.choice((1, 2, 2))
            word = "".join(self._syllable() for _ in range(syllables)) + self.draw.choice(
                self.codas
            )
            if len(word) > 2 and word not in self.used:
                self.used.add(word)
                return word

    def _syllable(self) -> str:
        return self.draw.choice(self.onsets) + self.draw.choice(self.vowels)


class _TargetForms(_SourceForms):
    """Draws target stems such as "tšük", all different."""

    onsets = ("k", "t", "š", "h", "j", "ž", "br", "kv", "st", "p", "m", "d")
    vowels = tuple("aouüe")
    codas = ("k", "t", "š", "lk", "nd", "st", "p")


def _synonyms(target: _TargetForms, draw: random.Random, share: float) -> tuple[str, ...]:
    return tuple(target.form() for _ in range(2 if draw.random() < share else 1))


def _noun_sense(target: _TargetForms, draw: random.Random) -> Sense:
    words = _synonyms(target, draw, _SYNONYM_SHARE)
    irregular = draw.random() < 0.3
    plurals = tuple(_umlaut(word) if irregular else word + "ak" for word in words)
    return Sense(words, draw.randrange(len(GENDERS)), plurals)


def _umlaut(word: str) -> str:
    """The irregular plural: the first vowel turns into i, and the end is cut and closed anew."""
    place = next(i for i, letter in enumerate(word) if letter in _TargetForms.vowels)
    return word[:place] + "i" + word[place + 1 :] + "e"


def _name(source: _SourceForms, draw: random.Random) -> Word:
    name = source.form().capitalize()
    return Word(name, (Sense((name,), draw.randrange(2)),), kind=1)
