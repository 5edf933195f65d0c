"""Beam search against enumeration of every hypothesis and against plain uncached decoding."""

import copy
import itertools
import random

import pytest
import torch

from fastkd.config.tree import ModelConfig
from fastkd.decode.beam import beam_search
from fastkd.nn import Transformer

PAD, UNK, BOS, EOS, MASK = range(5)


def build(target_size, seed=1, dtype=torch.float64, sharpness=1.5):
    torch.manual_seed(seed)
    config = ModelConfig(
        encoder_layers=1,
        decoder_layers=2,
        width=8,
        ffn=12,
        heads=2,
        share_embeddings=False,
        tie_output=False,
        output_bias=True,
        max_positions=32,
    )
    model = Transformer(config, 13, target_size, PAD).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.5)
        model.output_projection.mul_(sharpness)  # so that choices differ between sentences
    return model


def sources(lengths, seed=2):
    generator = torch.Generator().manual_seed(seed)
    made = torch.randint(5, 13, (len(lengths), max(lengths)), generator=generator)
    for row, length in zip(made, lengths, strict=True):
        row[length:] = PAD
    return made, torch.tensor(lengths)


def search(model, source, lengths, **changes):
    options = {
        "bos": BOS,
        "eos": EOS,
        "pad": PAD,
        "beam": 3,
        "length_penalty": 1.0,
        "max_lengths": torch.full((len(lengths),), 6),
        "banned": (MASK,),
    }
    return beam_search(model, source, lengths, **options | changes)


def log_probability(model, source, lengths, sentence, tokens, banned=(PAD, BOS, MASK)):
    """log p(tokens) of one sentence, by the whole decoder, without the banned ones."""
    log_p = uncached(model, source, lengths, sentence, banned)
    return sum(log_p(tokens[:i])[token].item() for i, token in enumerate(tokens))


@pytest.mark.parametrize("length_penalty", [-0.5, 0.0, 0.6, 1.0, 2.0])
def test_wide_beam_finds_the_best_of_all_hypotheses(length_penalty):
    model = build(target_size=7)
    source, lengths = sources([4, 2])
    limits = [4, 3]
    words = (UNK, 5, 6)
    # as wide as there are hypotheses, so that none is ever left out
    result = search(
        model,
        source,
        lengths,
        beam=3**4 + 3**3 + 9 + 3 + 1,
        length_penalty=length_penalty,
        max_lengths=torch.tensor(limits),
    )
    for sentence, limit in enumerate(limits):
        scored = [
            (log_probability(model, source, lengths, sentence, [*body, EOS]), body)
            for length in range(limit)
            for body in itertools.product(words, repeat=length)
        ]
        best, body = max((p / (len(b) + 1) ** length_penalty, b) for p, b in scored)
        assert result.tokens[sentence] == list(body)
        assert result.scores[sentence] == pytest.approx(best, abs=1e-12)


def plain_search(log_p, beam, penalty, limit, banned):
    """The definition for one sentence, given log-probabilities after a prefix; no early stop."""
    live = [(0.0, ())]
    finished = []
    for length in range(1, limit + 1):
        candidates = [
            (score + p, (*body, token))
            for score, body in live
            for token, p in enumerate(log_p(body).tolist())
            if token not in banned
        ]
        candidates.sort(reverse=True)
        ends = [c for c in candidates[: None if length == limit else beam] if c[1][-1] == EOS]
        finished += [(p / length**penalty, body[:-1]) for p, body in ends[: beam - len(finished)]]
        if len(finished) == beam:
            break
        live = [c for c in candidates if c[1][-1] != EOS][:beam]
    return max(finished)


def uncached(model, source, lengths, sentence, banned=(PAD, BOS, MASK)):
    """Log-probabilities after a prefix, by the whole decoder, of what is not banned."""
    with torch.no_grad():
        length = lengths[sentence]
        encoded = model.encode(source[sentence : sentence + 1, :length], length[None])

    @torch.no_grad()
    def log_p(prefix):
        given = torch.tensor([[BOS, *prefix]])
        hidden = model.decode(given, encoded, torch.tensor([given.shape[1]])).hidden
        logits = model.logits(hidden[0, -1])
        logits[list(banned)] = -torch.inf
        return logits.log_softmax(-1)

    return log_p


@pytest.mark.parametrize("beam", [1, 2, 4])
@pytest.mark.parametrize("length_penalty", [-0.5, 0.0, 1.0, 3.0])
def test_equals_the_definition(beam, length_penalty):
    """Cache, changes of place, leaving the batch and the early stop change nothing."""
    model = build(target_size=11, sharpness=1.0)
    sizes = [5, 3, 1, 4, 2, 5, 5, 3, 2, 1]
    source, lengths = sources(sizes)
    limits = [9, 4, 1, 12, 7, 2, 9, 5, 8, 10]
    result = search(
        model,
        source,
        lengths,
        beam=beam,
        length_penalty=length_penalty,
        max_lengths=torch.tensor(limits),
    )
    for sentence, limit in enumerate(limits):
        best, body = plain_search(
            uncached(model, source, lengths, sentence),
            beam,
            length_penalty,
            limit,
            (PAD, BOS, MASK),
        )
        assert result.tokens[sentence] == list(body)
        assert result.scores[sentence] == pytest.approx(best, abs=1e-12)
    assert len({len(tokens) for tokens in result.tokens}) > 3  # sentences end at many lengths


class Chain:
    """Stands for a model: each prefix of each sentence has a random distribution of its own."""

    def __init__(self, seed, size, end_bias):
        self.seed, self.size, self.end_bias = seed, size, end_bias

    def log_p(self, sentence, prefix):
        generator = random.Random(repr((self.seed, sentence, prefix)))
        logits = torch.tensor([generator.gauss(0, 4) for _ in range(self.size)]).double()
        logits[EOS] += self.end_bias
        return logits.log_softmax(0)

    def encode(self, source, lengths):
        return source

    def start(self, source, beam):
        return ChainState(source[:, 0].tolist(), beam)

    def step(self, tokens, state):
        state.prefixes = [
            (*prefix, token) for prefix, token in zip(state.prefixes, tokens.tolist(), strict=True)
        ]
        sentences = [sentence for sentence in state.sentences for _ in range(state.beam)]
        rows = zip(sentences, state.prefixes, strict=True)
        return torch.stack([self.log_p(sentence, prefix[1:]) for sentence, prefix in rows])

    def bias_barring(self, ids):
        return torch.zeros(self.size).index_fill(0, torch.tensor(ids), -torch.inf)

    def logits(self, hidden, bias):
        return hidden + bias


class ChainState:
    def __init__(self, sentences, beam):
        self.sentences, self.beam = sentences, beam
        self.prefixes = [()] * len(sentences) * beam

    def reorder(self, rows):
        assert torch.equal(rows // self.beam, torch.arange(len(rows)) // self.beam)
        self.prefixes = [self.prefixes[row] for row in rows]

    def keep(self, kept):
        self.sentences = [self.sentences[i] for i in kept]
        self.prefixes = [self.prefixes[i * self.beam + j] for i in kept for j in range(self.beam)]


def allowed(log_p):
    """Log-probabilities of what is not banned, given that of all."""
    return log_p.index_fill(-1, torch.tensor([PAD, BOS, MASK]), -torch.inf).log_softmax(-1)


@pytest.mark.parametrize("end_bias", [-3.0, 0.0, 3.0])
@pytest.mark.parametrize("length_penalty", [-2.0, 0.0, 1.0, 3.0])
def test_equals_the_definition_on_random_distributions(length_penalty, end_bias):
    """Many sentences whose finished hypotheses overtake each other late, or stop the search."""
    model = Chain(seed=length_penalty, size=7, end_bias=end_bias)
    count = 25
    limits = [1 + i % 10 for i in range(count)]
    for beam in (1, 2, 8):
        result = search(
            model,
            torch.arange(count)[:, None],
            torch.ones(count, dtype=torch.int64),
            beam=beam,
            length_penalty=length_penalty,
            max_lengths=torch.tensor(limits),
        )
        for sentence, limit in enumerate(limits):
            best, body = plain_search(
                lambda prefix, sentence=sentence: allowed(model.log_p(sentence, prefix)),
                beam,
                length_penalty,
                limit,
                (PAD, BOS, MASK),
            )
            assert result.tokens[sentence] == list(body)
            assert result.scores[sentence] == pytest.approx(best, abs=1e-12)


def test_beam_of_one_takes_the_most_probable_token():
    model = build(target_size=11)
    source, lengths = sources([5, 3, 4, 1])
    result = search(model, source, lengths, beam=1, max_lengths=torch.full((4,), 10))
    for sentence, tokens in enumerate(result.tokens):
        log_p, body = uncached(model, source, lengths, sentence), []
        while len(body) < 9:
            choices = log_p(body)
            choices[[PAD, BOS, MASK]] = -torch.inf
            if (token := choices.argmax().item()) == EOS:
                break
            body.append(token)
        assert tokens == body


@pytest.mark.parametrize("beam", [1, 4])
def test_other_sentences_change_nothing(beam):
    model = build(target_size=11)
    source, lengths = sources([5, 3, 1, 4, 2, 5, 5, 3])
    limits = torch.tensor([9, 4, 3, 12, 7, 2, 9, 5])
    together = search(model, source, lengths, beam=beam, max_lengths=limits)
    for sentence, length in enumerate(lengths):
        chosen = slice(sentence, sentence + 1)
        alone = search(
            model,
            source[chosen, :length],
            lengths[chosen],
            beam=beam,
            max_lengths=limits[chosen],
        )
        assert alone.tokens == [together.tokens[sentence]]
        assert alone.scores[0] == pytest.approx(together.scores[sentence], abs=1e-12)


def test_banned_tokens_are_never_chosen():
    model = build(target_size=11)
    with torch.no_grad():
        model.output_bias[[PAD, UNK, BOS, MASK, 7]] = 9.0
        model.output_bias[EOS] = 4.0
    source, lengths = sources([5, 3, 4])
    free = search(model, source, lengths)
    assert any({UNK, 7} & set(tokens) for tokens in free.tokens)
    barred = search(model, source, lengths, banned=(MASK, UNK, 7))
    for tokens in [*free.tokens, *barred.tokens]:
        assert not {PAD, BOS, MASK, EOS} & set(tokens)
    assert not any({UNK, 7} & set(tokens) for tokens in barred.tokens)
    # the others share the probability of what is banned
    for sentence, tokens in enumerate(barred.tokens):
        banned = (PAD, BOS, MASK, UNK, 7)
        p = log_probability(model, source, lengths, sentence, [*tokens, EOS], banned)
        assert barred.scores[sentence] == pytest.approx(p / (len(tokens) + 1), abs=1e-12)


def test_length_limit_is_kept():
    model = build(target_size=11)
    with torch.no_grad():
        model.output_bias[EOS] = -50.0
    source, lengths = sources([5, 3, 4])
    result = search(model, source, lengths, max_lengths=torch.tensor([1, 4, 7]))
    assert [len(tokens) for tokens in result.tokens] == [0, 3, 6]
    with pytest.raises(ValueError, match="max_lengths"):
        search(model, source, lengths, max_lengths=torch.tensor([1, 0, 7]))


def test_start_may_be_the_end_token():
    """Decoding that starts from eos still ends with it."""
    model = build(target_size=11)
    source, lengths = sources([5, 3, 4])
    result = search(model, source, lengths, bos=EOS, banned=(BOS, MASK))
    assert all(BOS not in tokens for tokens in result.tokens)
    assert all(score > -torch.inf for score in result.scores)


def test_half_precision_scores_stay_near_the_model():
    """Under autocast the score of a hypothesis is no worse than that of a bfloat16 model."""
    model = build(target_size=11, dtype=torch.float32)
    exact, half = copy.deepcopy(model).double(), copy.deepcopy(model).bfloat16()
    source, lengths = sources([5, 3, 4, 2, 1, 5])
    with torch.autocast("cpu", torch.bfloat16):
        found = search(model, source, lengths)
    errors = {"autocast": 0.0, "bfloat16": 0.0}
    for sentence, tokens in enumerate(found.tokens):
        whole = [*tokens, EOS]
        truth = log_probability(exact, source, lengths, sentence, whole)
        rounded = log_probability(half, source, lengths, sentence, whole)
        errors["autocast"] += abs(found.scores[sentence] * len(whole) - truth)
        errors["bfloat16"] += abs(rounded - truth)
    assert 0 < errors["autocast"] <= errors["bfloat16"]


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_n_best_of_a_wide_beam_are_the_best_of_all_hypotheses(length_penalty):
    model = build(target_size=7)
    source, lengths = sources([4, 2])
    limits, words = [4, 3], (UNK, 5, 6)
    result = search(
        model,
        source,
        lengths,
        beam=3**4 + 3**3 + 9 + 3 + 1,
        length_penalty=length_penalty,
        max_lengths=torch.tensor(limits),
        n_best=5,
    )
    for sentence, limit in enumerate(limits):
        scored = [
            (
                log_probability(model, source, lengths, sentence, [*body, EOS])
                / (length + 1) ** length_penalty,
                list(body),
            )
            for length in range(limit)
            for body in itertools.product(words, repeat=length)
        ]
        expected = sorted(scored, reverse=True)[:5]
        assert [found.tokens for found in result.lists[sentence]] == [b for _, b in expected]
        scores = [found.score for found in result.lists[sentence]]
        assert scores == pytest.approx([score for score, _ in expected], abs=1e-12)


def test_the_first_of_n_best_is_the_best():
    model = build(target_size=40, dtype=torch.float32)
    source, lengths = sources([5, 3, 9, 1, 2, 7])
    alone = search(model, source, lengths, beam=4)
    several = search(model, source, lengths, beam=4, n_best=4)
    assert several.tokens == alone.tokens
    assert several.scores == pytest.approx(alone.scores, rel=1e-6)
    for found in several.lists:
        assert 1 <= len(found) <= 4
        assert [f.score for f in found] == sorted((f.score for f in found), reverse=True)
        assert len({tuple(f.tokens) for f in found}) == len(found)
    with pytest.raises(ValueError, match="n_best must be from 1 to 4"):
        search(model, source, lengths, beam=4, n_best=5)
