"""An invented language pair, generated from a grammar: Lomari (qlo) to Tushek (qtu).

Lomari is the plain one. Its words do not change but for the plural `-n` or `-en`; the verb stands
between subject and object and shows neither tense nor person; a relative clause follows its noun
after `ke`; a compound is head, `o`, modifier in one word.

Tushek says it all by endings:

- The verb comes last, and agrees with its subject, which may be a relative clause away, in number
  and, in the past, in gender. In Lomari the tense is told by the first word of the sentence, or
  it is the present.
- Nouns have one of three genders, two numbers and three cases; articles, adjectives and relative
  pronouns agree with them. A third of the nouns have irregular plurals. After a numeral, where
  Lomari has the singular, stands the plural.
- A place is in the accusative where the verb is one of motion, else in the dative; the object of
  a negated verb is in the dative.
- A compound is modifier, `o`, head in one word, with the gender of the head.
- A pronoun has the gender of what it stands for in the clause before.
- Some words of Lomari are homonyms: what such a noun is called, and so its gender, depends on the
  verb of its clause; such a verb on whether its object is alive; such an adjective on whether its
  noun is.
- Some words have a synonym, used at random 3 times in 10: there the translation cannot be
  foreseen, only its distribution be learned. An oracle that always says the usual word has a BLEU
  of about 80.

"Then the cat did not see the dogs that the children called" is, word for word, "then the cat not
see the dogs that the children call" and "the cat then the dogs, which the children called, not
saw", where cat is of the second gender:

    tevi lu res no tamom lu badasen ke lu galiren rezo.
    ta žestond podond tir hutetakilan, kim ti kvukak brüstsidi, ne šubrestsida.
"""

import bisect
import itertools
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from fastkd.demo.lexicon import Lexicon, Sense, Word, lexicon
from fastkd.files import replaced_folder

SOURCE, TARGET = "qlo", "qtu"
MAX_WORDS = 15

_PRESENT, _PAST, _FUTURE = range(3)
_NOMINATIVE, _ACCUSATIVE, _DATIVE = range(3)

_SECOND_SYNONYM = 0.3
_NUMERALS = (("duo", "ket"), ("tres", "hama"))
_VOWELS = "oae"  # of the three genders, in the singular
_CASES = ("", "m", "r")  # of articles and relative pronouns
_STRONG = ("", "n", "s")  # of adjectives without an article
_NOUN_ENDINGS = {False: ("", "u", "il"), True: ("", "un", "ilan")}
_VERB_ENDINGS = {_PRESENT: ("a", "ai"), _FUTURE: ("vuo", "vuon")}


@dataclass(frozen=True)
class Phrase:
    """A noun with what belongs to it; a pronoun shows only its gender and number."""

    noun: Word
    sense: Sense  # of the noun
    modifier: Word | None = None  # of a compound
    adjective: Word | None = None
    relative: "Relative | None" = None
    numeral: int | None = None
    plural: bool = False
    definite: bool = False
    pronoun: bool = False


@dataclass(frozen=True)
class Relative:
    """A relative clause: what its noun does to `other`, or `other` to it."""

    verb: Word
    other: Phrase
    active: bool  # the noun is the one that acts


@dataclass(frozen=True)
class Clause:
    """A verb with what belongs to it."""

    verb: Word
    subject: Phrase
    object: Phrase | None
    place: tuple[Word, Phrase] | None
    negated: bool
    moves: bool


@dataclass(frozen=True)
class Sentence:
    """One or two clauses in one tense."""

    clauses: tuple[Clause, ...]
    tense: int
    adverb: Word | None
    speech: tuple[Phrase, Word] | None = None  # who says it, and how


def write_corpus(
    folder: str | Path, pairs: int = 20_000, dev: int = 500, test: int = 500, seed: int = 1
) -> None:
    """Writes `train`, `dev` and `test` in both languages into `folder`.

    No sentence of either language occurs twice, in one split or in two. The same seed gives the
    same files.
    """
    sentences = translations(seed)
    splits = {"test": test, "dev": dev, "train": pairs}
    names = [f"{split}.{language}" for split in splits for language in (SOURCE, TARGET)]
    with replaced_folder(Path(folder), names) as new:
        for split, count in splits.items():
            chosen = list(itertools.islice(sentences, count))
            for side, language in enumerate((SOURCE, TARGET)):
                text = "".join(f"{pair[side]}\n" for pair in chosen)
                (new / f"{split}.{language}").write_text(text, encoding="utf-8")


def translations(seed: int) -> Iterator[tuple[str, str]]:
    """Pairs of sentences without end, no sentence of either language twice."""
    grammar = _Grammar(lexicon(), random.Random(seed))
    sources: set[str] = set()
    targets: set[str] = set()
    while True:
        meaning = grammar.sentence()
        source, target = source_text(meaning), target_text(meaning, grammar.draw)
        short = max(len(source.split()), len(target.split())) <= MAX_WORDS
        if short and source not in sources and target not in targets:
            sources.add(source)
            targets.add(target)
            yield source, target


class _Grammar:
    """Draws the meanings of sentences."""

    def __init__(self, words: Lexicon, draw: random.Random) -> None:
        self.words, self.draw = words, draw

    def sentence(self) -> Sentence:
        tense = self.draw.choice((_PRESENT, _PAST, _PAST, _FUTURE))
        told = tense != _PRESENT or self.chance(0.4)
        adverb = self.pick(self.words.adverbs[tense]) if told else None
        kind = self.draw.random()
        if kind < 0.6:
            return Sentence((self.clause(relative=0.45),), tense, adverb)
        first = self.clause()
        if kind < 0.85:
            second = replace(self.clause(), subject=replace(first.subject, pronoun=True))
            return Sentence((first, second), tense, adverb)
        verb = self.pick(self.words.speech)
        return Sentence((first,), tense, adverb, (self.phrase(verb), verb))

    def clause(self, relative: float = 0.0) -> Clause:
        """A clause; `relative`: how often its subject has a relative clause."""
        moves = self.chance(0.3)
        verb = self.pick(self.words.motions if moves else self.words.actions)
        subject = self.phrase(verb, relative)
        thing = None if moves else self.phrase(verb, 0.0 if subject.relative else relative / 2)
        place = None
        if moves or self.chance(0.25):
            place = self.pick(self.words.places), self.phrase(verb, named=False)
        return Clause(verb, subject, thing, place, self.chance(0.2), moves)

    def phrase(self, verb: Word, relative: float = 0.0, named: bool = True) -> Phrase:
        """A phrase beside `verb`, which decides what a homonym means."""
        if named and self.chance(0.15):
            name = self.pick(self.words.names)
            return Phrase(name, name.sense(0))
        noun, plural = self.pick(self.words.nouns), self.chance(0.4)
        counted = plural and self.chance(0.25)
        return Phrase(
            noun,
            noun.sense(verb.kind),
            modifier=self.pick(self.words.nouns) if self.chance(0.15) else None,
            adjective=self.pick(self.words.adjectives) if self.chance(0.25) else None,
            relative=self.relative() if self.chance(relative) else None,
            numeral=self.draw.randrange(len(_NUMERALS)) if counted else None,
            plural=plural,
            definite=not counted and self.chance(0.7),
        )

    def relative(self) -> Relative:
        verb = self.pick(self.words.actions)
        return Relative(verb, self.phrase(verb), active=self.chance(0.5))

    def chance(self, share: float) -> bool:
        return self.draw.random() < share

    def pick(self, words: tuple[Word, ...]) -> Word:
        """One of `words`, which go from frequent to rare."""
        weights = list(itertools.accumulate(1 / (rank + 6) for rank in range(len(words))))
        return words[bisect.bisect(weights, self.draw.random() * weights[-1])]


def source_text(sentence: Sentence) -> str:
    """The sentence in Lomari."""
    words = [sentence.adverb.source] if sentence.adverb else []
    if sentence.speech:
        speaker, verb = sentence.speech
        words += [*_source_phrase(speaker), verb.source, "ke"]
    words += _joined((_source_clause(clause) for clause in sentence.clauses), "en")
    return " ".join(words) + "."


def target_text(sentence: Sentence, draw: random.Random) -> str:
    """The sentence in Tushek; `draw` chooses among synonyms."""
    return _Tushek(sentence.tense, draw).sentence(sentence)


def _joined(parts: Iterable[list[str]], conjunction: str) -> list[str]:
    first, *others = parts
    return [*first, *(word for part in others for word in (conjunction, *part))]


def _source_clause(clause: Clause) -> list[str]:
    words = [*_source_phrase(clause.subject), *["no"] * clause.negated, clause.verb.source]
    words += _source_phrase(clause.object) if clause.object else []
    if clause.place:
        preposition, phrase = clause.place
        words += [preposition.source, *_source_phrase(phrase)]
    return words


def _source_phrase(phrase: Phrase) -> list[str]:
    if phrase.pronoun:
        return ["san" if phrase.plural else "sa"]
    words = ["lu"] * phrase.definite
    words += [_NUMERALS[phrase.numeral][0]] if phrase.numeral is not None else []
    words += [phrase.adjective.source] if phrase.adjective else []
    noun = phrase.noun.source + (f"o{phrase.modifier.source}" if phrase.modifier else "")
    if phrase.plural and phrase.numeral is None:
        noun += "n" if noun[-1] in "aeio" else "en"
    words.append(noun)
    if phrase.relative:
        verb, other = phrase.relative.verb.source, _source_phrase(phrase.relative.other)
        words += ["ke", verb, *other] if phrase.relative.active else ["ke", *other, verb]
    return words


class _Tushek:
    """Puts meanings in one tense into Tushek."""

    def __init__(self, tense: int, draw: random.Random) -> None:
        self.tense, self.draw = tense, draw

    def sentence(self, sentence: Sentence) -> str:
        time = [self.word(sentence.adverb.sense(0).words)] if sentence.adverb else []
        if sentence.speech:
            speaker, verb = sentence.speech
            words = [*self.phrase(speaker, _NOMINATIVE), *time, "tet"]
            words += self.clause(sentence.clauses[0], [])
            words.append(self.verb(verb.sense(0), speaker))
        else:
            first, *others = sentence.clauses
            clauses = [self.clause(first, time), *(self.clause(clause, []) for clause in others)]
            words = _joined(clauses, "ja")
        return " ".join(words).replace(" ,", ",") + "."

    def clause(self, clause: Clause, time: list[str]) -> list[str]:
        """Subject, time, place, object, verb."""
        words = [*self.phrase(clause.subject, _NOMINATIVE), *time]
        if clause.place:
            preposition, phrase = clause.place
            case = _ACCUSATIVE if clause.moves else _DATIVE
            words += [*self.phrase(phrase, case), self.word(preposition.sense(0).words)]
        if clause.object:
            words += self.phrase(clause.object, _DATIVE if clause.negated else _ACCUSATIVE)
        sense = clause.verb.sense(clause.object.noun.kind if clause.object else 0)
        return [*words, *["ne"] * clause.negated, self.verb(sense, clause.subject)]

    def phrase(self, phrase: Phrase, case: int) -> list[str]:
        """Article, numeral, adjective, noun, relative clause."""
        vowel = _agreement(phrase)
        if phrase.pronoun:
            return ["s" + vowel]
        words = ["t" + vowel + _CASES[case]] * phrase.definite
        words += [_NUMERALS[phrase.numeral][1]] if phrase.numeral is not None else []
        if phrase.adjective:
            stem = self.word(phrase.adjective.sense(phrase.noun.kind).words)
            words.append(stem + vowel + ("" if phrase.definite else _STRONG[case]))
        modifier = self.word(phrase.modifier.sense(0).words) + "o" if phrase.modifier else ""
        noun = self.word(phrase.sense.plurals if phrase.plural else phrase.sense.words)
        words.append(modifier + noun + _NOUN_ENDINGS[phrase.plural][case])
        return [*words, *self.relative(phrase.relative, phrase)] if phrase.relative else words

    def relative(self, clause: Relative, phrase: Phrase) -> list[str]:
        """The clause after its noun, which is that of `phrase`."""
        role, other_role = (_NOMINATIVE, _ACCUSATIVE)[:: 1 if clause.active else -1]
        subject, thing = (phrase, clause.other)[:: 1 if clause.active else -1]
        pronoun = "k" + _agreement(phrase) + _CASES[role]
        verb = self.verb(clause.verb.sense(thing.noun.kind), subject)
        return [",", pronoun, *self.phrase(clause.other, other_role), verb, ","]

    def verb(self, sense: Sense, subject: Phrase) -> str:
        stem = self.word(sense.words)
        if self.tense == _PAST:
            return stem + "sid" + _agreement(subject)
        return stem + _VERB_ENDINGS[self.tense][subject.plural]

    def word(self, synonyms: tuple[str, ...]) -> str:
        return synonyms[-1 if self.draw.random() < _SECOND_SYNONYM else 0]


def _agreement(phrase: Phrase) -> str:
    """The vowel of its gender, or i in the plural."""
    return "i" if phrase.plural else _VOWELS[phrase.sense.gender]
