import itertools
import random
import re

import pytest

from fastkd.config.tree import TokenizerConfig
from fastkd.data.text import count_pairs
from fastkd.data.tokenizer import train_tokenizers
from fastkd.demo import language
from fastkd.demo.language import (
    MAX_WORDS,
    SOURCE,
    TARGET,
    Clause,
    Phrase,
    Relative,
    Sentence,
    source_text,
    target_text,
    translations,
    write_corpus,
)
from fastkd.demo.lexicon import Sense, Word, lexicon

# Words made to be recognised: the gender is in the name, plurals are irregular.
MAN = Word("man", (Sense(("SUNMAN",), 0, ("SUNMEN",)),), kind=1)
STONE = Word("ston", (Sense(("MOONSTONE",), 1, ("MOONSTONAK",)),), kind=0)
BANK = Word("bank", (Sense(("SUNBANK",), 0, ("",)), Sense(("STARBANK",), 2, ("",))), kind=0)
SEES = Word("vid", (Sense(("SEES",)), Sense(("MEETS",))), kind=0)
BUYS = Word("bai", (Sense(("BUYS",)),), kind=1)
GOES = Word("gon", (Sense(("GOES",)),), kind=0)
OLD = Word("old", (Sense(("WORN",)), Sense(("AGED",))))
INTO = Word("in", (Sense(("IN",)),))
THEN = Word("den", (Sense(("THEN",)),))
SAYS = Word("sai", (Sense(("SAYS",)),))
PRESENT, PAST, FUTURE = range(3)


def phrase(word, **with_it):
    return Phrase(word, word.senses[0], definite=True, **with_it)


def both(clauses, tense=PRESENT, adverb=None, speech=None):
    sentence = Sentence(tuple(clauses), tense, adverb, speech)
    return source_text(sentence), target_text(sentence, random.Random(0))


def clause(verb, subject, thing=None, place=None, negated=False, moves=False):
    return Clause(verb, subject, thing, place, negated, moves)


def test_the_verb_comes_last_and_agrees_over_a_relative_clause():
    reads = Relative(BUYS, phrase(STONE, plural=True), active=True)
    subject = phrase(MAN, relative=reads)
    assert both([clause(SEES, subject, phrase(STONE))], PAST, THEN) == (
        "den lu man ke bai lu stonen vid lu ston.",
        "to SUNMAN, ko tim MOONSTONAKun BUYSsido, THEN tam MOONSTONEu SEESsido.",
    )


def test_a_relative_clause_may_be_about_its_object():
    seen = Relative(SEES, phrase(MAN, plural=True), active=False)
    assert both([clause(BUYS, phrase(MAN), phrase(STONE, relative=seen))], PAST) == (
        "lu man bai lu ston ke lu manen vid.",
        "to SUNMAN tam MOONSTONEu, kam ti SUNMEN SEESsidi, BUYSsido.",
    )


@pytest.mark.parametrize(
    ("tense", "plural", "ending"),
    [
        (PRESENT, False, "a"),
        (PRESENT, True, "ai"),
        (PAST, False, "sida"),
        (PAST, True, "sidi"),
        (FUTURE, False, "vuo"),
        (FUTURE, True, "vuon"),
    ],
)
def test_tense_and_agreement_are_in_the_verb(tense, plural, ending):
    stone = phrase(STONE, plural=plural)
    source, target = both([clause(BUYS, stone, phrase(MAN))], tense)
    assert source == f"lu ston{'en' * plural} bai lu man."
    assert target.endswith(f" BUYS{ending}.")


def test_places_and_negated_objects_take_other_cases():
    place = INTO, phrase(STONE)
    assert both([clause(GOES, phrase(MAN), None, place, moves=True)]) == (
        "lu man gon in lu ston.",
        "to SUNMAN tam MOONSTONEu IN GOESa.",
    )
    assert both([clause(BUYS, phrase(MAN), phrase(MAN), place, negated=True)]) == (
        "lu man no bai lu man in lu ston.",
        "to SUNMAN tar MOONSTONEil IN tor SUNMANil ne BUYSa.",
    )


def test_a_pronoun_has_the_gender_of_its_noun():
    stone = phrase(STONE)
    second = clause(BUYS, phrase(STONE, pronoun=True), phrase(MAN))
    assert both([clause(GOES, stone, None, (INTO, phrase(MAN)), moves=True), second], PAST) == (
        "lu ston gon in lu man en sa bai lu man.",
        "ta MOONSTONE tom SUNMANu IN GOESsida ja sa tom SUNMANu BUYSsida.",
    )


def test_homonyms_are_told_apart_by_other_words():
    old = [phrase(word, adjective=OLD) for word in (MAN, STONE)]
    assert both([clause(SEES, *old)])[1] == "to AGEDo SUNMAN tam WORNa MOONSTONEu SEESa."
    assert both([clause(SEES, *old[::-1])])[1] == "ta WORNa MOONSTONE tom AGEDo SUNMANu MEETSa."


def test_compounds_turn_round():
    stone_man = phrase(MAN, modifier=STONE, plural=True)
    assert both([clause(SEES, stone_man, phrase(STONE, modifier=MAN))]) == (
        "lu manostonen vid lu stonoman.",
        "ti MOONSTONEoSUNMEN tam SUNMANoMOONSTONEu SEESai.",
    )


def test_numerals_and_indefinite_adjectives():
    two = Phrase(MAN, MAN.senses[0], plural=True, numeral=0)
    old = Phrase(STONE, STONE.senses[0], adjective=OLD)
    assert both([clause(BUYS, two, old)]) == (
        "duo man bai old ston.",
        "ket SUNMEN WORNan MOONSTONEu BUYSai.",
    )


def test_who_says_it_frames_what_is_said():
    says = phrase(MAN, plural=True), SAYS
    assert both([clause(SEES, phrase(STONE), phrase(MAN))], PAST, THEN, says) == (
        "den lu manen sai ke lu ston vid lu man.",
        "ti SUNMEN THEN tet ta MOONSTONE tom SUNMANu MEETSsida SAYSsidi.",
    )


def test_the_grammar_names_a_homonym_by_the_verb_beside_it():
    grammar = language._Grammar(lexicon(), random.Random(3))
    named = {0: set(), 1: set()}
    homonym = next(word for word in lexicon().nouns if len(word.senses) == 2)
    for _ in range(3000):
        found = grammar.clause()
        if found.subject.noun is homonym:
            named[found.verb.kind].add(homonym.senses.index(found.subject.sense))
    assert named == {0: {0}, 1: {1}}


def test_the_second_synonym_comes_three_times_in_ten():
    tushek = language._Tushek(PRESENT, random.Random(1))
    drawn = [tushek.word(("usual", "other")) for _ in range(4000)]
    # Five standard deviations of the binomial.
    assert abs(drawn.count("other") / 4000 - 0.3) < 5 * (0.3 * 0.7 / 4000) ** 0.5


def test_the_lexicon_has_no_word_twice():
    words = lexicon()
    adverbs = tuple(itertools.chain.from_iterable(words.adverbs))
    verbs = words.actions + words.motions + words.speech
    everything = words.nouns + verbs + words.adjectives + words.names + adverbs + words.places
    sources = [word.source for word in everything]
    assert len(set(sources)) == len(sources)
    targets = [name for word in everything for sense in word.senses for name in sense.words]
    assert len(set(targets)) == len(targets)
    assert {sense.gender for noun in words.nouns for sense in noun.senses} == {0, 1, 2}
    assert any(len(verb.senses) == 2 for verb in words.actions)
    assert not any(source.endswith("n") for source in sources)  # only plurals do


def test_splits_share_no_sentence_and_repeat_with_the_seed(tmp_path):
    for name, seed in (("one", 7), ("same", 7), ("other", 8)):
        write_corpus(tmp_path / name, pairs=600, dev=60, test=60, seed=seed)
    for side in (SOURCE, TARGET):
        splits = [
            (tmp_path / "one" / f"{split}.{side}").read_text(encoding="utf-8").splitlines()
            for split in ("train", "dev", "test")
        ]
        assert [len(lines) for lines in splits] == [600, 60, 60]
        every = [line for lines in splits for line in lines]
        assert len(set(every)) == len(every)
        assert max(len(line.split()) for line in every) <= MAX_WORDS
        text = (tmp_path / "one" / f"train.{side}").read_bytes()
        assert text == (tmp_path / "same" / f"train.{side}").read_bytes()
        assert text != (tmp_path / "other" / f"train.{side}").read_bytes()


def test_a_smaller_training_set_keeps_dev_and_test(tmp_path):
    write_corpus(tmp_path / "small", pairs=50, dev=20, test=20)
    write_corpus(tmp_path / "large", pairs=300, dev=20, test=20)
    for name in (f"dev.{SOURCE}", f"test.{TARGET}"):
        assert (tmp_path / "small" / name).read_bytes() == (tmp_path / "large" / name).read_bytes()


def test_fewer_than_a_thousand_pieces_are_enough(tmp_path):
    write_corpus(tmp_path, pairs=5000, dev=1, test=1)
    paths = tmp_path / f"train.{SOURCE}", tmp_path / f"train.{TARGET}"
    config = TokenizerConfig(vocabulary=600, model="bpe")
    tokenizers = train_tokenizers(config, *paths, count_pairs(*paths))
    lines = [pair[1] for pair in itertools.islice(translations(99), 200)]
    rows = tokenizers.target.encode(lines)
    assert all(tokenizers.target.unk_id not in row for row in rows)
    words = sum(len(line.split()) for line in lines)
    assert sum(map(len, rows)) < 2.5 * words


def test_the_example_in_the_description_is_true():
    example = re.search(r"^    (.+\.)\n    (.+\.)$", language.__doc__, re.MULTILINE)
    assert example.groups() in itertools.islice(translations(1), 2000)
