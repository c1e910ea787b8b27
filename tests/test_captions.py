"""Captions: order, dropout, English, the limit."""

import random
import warnings

import pytest

from mmgen.clip.model import train_tokenizer
from mmgen.data.captions import (
    ABSENCES,
    PREDICATES,
    Claim,
    CutWarning,
    absent,
    as_tags,
    caption,
    cut,
    describe,
    fit,
    full_claim,
    overflow,
    short_claim,
)

TAGS = ["green hair", "blue eyes", "long hair", "smile", "glasses", "eyewear"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([", ".join(TAGS)] * 10, 600)


def test_fixed_tags_come_first_in_their_order_and_stay():
    text = caption(TAGS, random.Random(0), fixed=["smile", "red hair", "green hair"], shuffle=True, dropout=1.0)
    assert text == "smile, green hair"


def test_caption_keeps_order_without_shuffle_and_drops_repeats():
    assert caption(TAGS + ["smile"]) == ", ".join(TAGS)
    assert caption([]) == ""


def test_shuffle_is_a_permutation_and_reproducible():
    orders = {caption(TAGS, random.Random(seed), shuffle=True) for seed in range(20)}
    assert len(orders) > 10 and all(sorted(o.split(", ")) == sorted(TAGS) for o in orders)
    assert caption(TAGS, random.Random(3), shuffle=True) == caption(TAGS, random.Random(3), shuffle=True)


def test_dropout_rate():
    rng = random.Random(0)
    kept = sum(len(as_tags(caption(TAGS, rng, dropout=0.3))) for _ in range(2000)) / (2000 * len(TAGS))
    assert kept == pytest.approx(0.7, abs=0.02)


@pytest.mark.parametrize("wrong", [-0.1, 1.5])
def test_dropout_is_a_probability(wrong):
    with pytest.raises(ValueError, match="probability"):
        caption(TAGS, random.Random(0), dropout=wrong)


def test_randomness_needs_a_source():
    with pytest.raises(ValueError, match="rng"):
        caption(TAGS, shuffle=True)


def test_absences_follow_from_the_tags():
    assert "no glasses" not in absent(TAGS) and "no earrings" in absent(TAGS)
    assert set(absent([])) == set(ABSENCES)


def test_every_predicate_starts_with_a_verb_and_is_said():
    verbs = {"has", "wears", "is", "smiles", "looks", "opens", "winks", "sticks", "shows", "does"}
    for tag, phrases in PREDICATES.items():
        assert phrases and all(phrase.split()[0] in verbs for phrase in phrases), tag
    texts = {describe(["glasses"], random.Random(n)) for n in range(100)}
    assert "she wears glasses" in texts and any(text.startswith("a portrait of a") for text in texts)


def test_claims_state_what_they_say():
    for n in range(200):
        full, short = full_claim(TAGS, random.Random(n), absent(TAGS)), short_claim(TAGS, random.Random(n))
        assert as_tags(full.text) == list(full.states)
        assert 1 <= len(short.states) <= 4 and set(short.states) <= set(TAGS)
    assert short_claim([], random.Random(0)).states == ()
    assert short_claim(["smile"], random.Random(0), plain=0.0) == Claim("smile", ("smile",))


def test_no_claim_is_false_of_its_image():
    from mmgen.data.portraits import sample, tags

    for seed in range(100):
        shown = tags(sample(seed))
        true = set(shown) | set(absent(shown))
        assert set(short_claim(shown, random.Random(seed), absent(shown)).states) <= true


def test_cut_says_what_is_lost(tokenizer):
    assert cut("smile", tokenizer) == ("smile", "", 3)
    read, lost, count = cut("green hair, long hair", tokenizer, 5)
    assert (read, lost, count) == ("green hair", "long hair", 7)
    with pytest.warns(CutWarning, match="'long hair'"):
        assert fit("green hair, long hair", tokenizer, 5) == ["green hair"]


def test_what_fits_does_not_warn(tokenizer):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fit(["", "green hair"], tokenizer) == ["", "green hair"]


def test_500_words_warn_once_each(tokenizer):
    with pytest.warns(CutWarning, match="77") as seen:
        fit(["smile " * 500, "smile"], tokenizer)
    assert len(seen) == 1


def test_overflow_counts(tokenizer):
    found = overflow(["green hair, long hair", "smile"], tokenizer, 5)
    assert found == {"captions": 2, "cut": 1, "tokens": 10, "tokens_cut": 2, "longest": 7, "lost": {"long hair": 1}}
