"""The world: exact probabilities, honest prompts, and a gold reward that is worked out by hand."""

import math
import random
import re
from collections import defaultdict
from collections.abc import Iterator
from statistics import mean

import jaxtyping
import pytest

from minippo import world
from minippo.worlds.reviews import Choice, Sequence, gold_parts, log_prob, probability

BAKERY = "We tried the new bakery by the station."
# A plain train prompt of the restaurants.
TRAIN = next(prompt for prompt in world.PROMPTS_TRAIN if prompt.startswith("We tried"))
ODD_TEXTS = ["", " ", "pizzzz pizz", "\N{SLIGHTLY SMILING FACE}", "!!!", "not never but", "\x00\n"]


@pytest.fixture
def _unchecked() -> Iterator[None]:
    """Without the annotations enforced at each call of a recursion: ten times as fast."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


def response_of(text: str) -> str:
    return text[text.index(".") + 1 :]


def within(count: int, n: int, chance: float) -> bool:
    """Whether a count lies within four standard deviations of n * chance."""
    return abs(count - n * chance) < 4 * math.sqrt(n * chance * (1 - chance))


# ---- The engine --------------------------------------------------------------------------------

# "ab" has two derivations, a + b and ab + nothing.
TINY = Sequence(Choice({"a": 1, "ab": 3}), Choice({"b": 1, "": 1}))
# a: 1/4 * 1/2;  ab: 1/4 * 1/2 + 3/4 * 1/2;  abb: 3/4 * 1/2
TINY_LANGUAGE = {"a": 0.125, "ab": 0.5, "abb": 0.375}


def test_probability_sums_over_every_derivation():
    for text, chance in TINY_LANGUAGE.items():
        assert probability(TINY, text) == pytest.approx(chance)


@pytest.mark.parametrize("text", ["", "b", "abbb", "a ", "ba"])
def test_probability_is_zero_outside_the_language(text):
    assert probability(TINY, text) == 0.0


def test_probabilities_of_all_strings_sum_to_one():
    # Every string of a and b up to length 6 is tried; no string of the language is longer.
    node = Sequence(Choice({TINY: 2, "b": 1}), TINY)
    strings = [format(i, "b")[1:].translate({48: "a", 49: "b"}) for i in range(1, 2**7)]
    assert math.fsum(probability(node, string) for string in strings) == pytest.approx(1.0)


def test_write_draws_each_string_as_often_as_its_probability_says():
    rng, n = random.Random(0), 20_000
    drawn = [world.write(TINY, rng) for _ in range(n)]
    assert set(drawn) == set(TINY_LANGUAGE)
    assert all(within(drawn.count(text), n, chance) for text, chance in TINY_LANGUAGE.items())


def test_an_option_of_weight_zero_is_never_written():
    assert Choice({"a": 1, "b": 0}).options == ("a",)


# ---- Texts and their probabilities -------------------------------------------------------------


def alternatives(node):
    """Every derivation of a grammar as a string and its chance, by nothing but the definition."""
    if isinstance(node, str):
        return [(node, 1.0)]
    if isinstance(node, Choice):
        return [
            (text, chance * inside)
            for option, chance in zip(node.options, node.probabilities, strict=True)
            for text, inside in alternatives(option)
        ]
    texts = [("", 1.0)]
    for part in node.parts:
        more = alternatives(part)
        texts = [(a + b, p * q) for a, p in texts for b, q in more]
    return texts


@pytest.mark.usefixtures("_unchecked")
@pytest.mark.parametrize(
    ("name", "arguments", "least"),
    [("_opinion", ("shops", "place", -1), 2_000), ("_closing", ("films", 0), 25)],
)
def test_probability_of_a_part_of_the_grammar_is_the_sum_over_its_listed_derivations(
    name, arguments, least
):
    node, total = getattr(world, name)(*arguments), defaultdict(float)
    for text, chance in alternatives(node):
        total[text] += chance
    assert len(total) > least
    assert sum(total.values()) == pytest.approx(1.0)
    assert all(probability(node, text) == pytest.approx(total[text]) for text in total)


def test_log_prob_of_a_text_by_hand():
    text = TRAIN + " Opinions differ. The soup was fresh, but the chef was rude. I am of two minds."
    # One of 200 prompts; an evasion (.01), one of 4; of 3 qualities one of 6 pairs, good then bad
    # (1/2), in one sentence (1/2).
    start = 1 / 200 * 0.01 / 4 * 1 / 6 * 1 / 2 * 1 / 2
    # One of 13 kinds of food, one of 3 mild (.6) adjectives; one of 7 people, one of 2 strong (.4)
    # ones; a full stop (.97); no digression (.75).
    body = 1 / 13 * 0.6 / 3 * 1 / 7 * 0.4 / 2 * 0.97 * 0.75
    # Neither unfinished nor flattering (.79), a verdict (.8) without a link (.8), one of 5, and a
    # full stop (.85).
    end = 0.79 * 0.8 * 0.8 / 5 * 0.85
    assert log_prob(text) == pytest.approx(math.log(start * body * end))


def test_log_prob_sums_over_the_derivations_of_a_digression():
    start = TRAIN + " The soup was fresh. Later we took a short trip, and the boat was fast."
    # Neither evasion nor curse (.98), one of 3 moods; of 6 pairs of qualities the two that begin
    # with the food, whose second one the digression hides; two opinions (2 in 3).
    chance = 1 / 200 * 0.98 / 3 * 2 / 6 * 2 / 3
    # Weights 3 of 12 for "was"; one of 13 foods; no negation (.8), one of 3 mild adjectives (.6).
    chance *= 3 / 12 * 1 / 13 * 0.8 * 0.6 / 3 * 0.97
    # A digression (.25), one of 4 times, one of 4 domains, 4 kinds of noun, 7 vehicles; .6 / 3.
    chance *= 0.25 / 4 / 4 / 4 / 7 * 0.6 / 3 * 0.97
    # Neither unfinished nor flattering (.79), one of 3 farewells (.2).
    text = start + " That is all I remember."
    assert log_prob(text) == pytest.approx(math.log(chance * 0.79 * 0.2 / 3))


@pytest.mark.usefixtures("_unchecked")
def test_log_prob_is_finite_and_of_a_sensible_size_on_the_corpus():
    rng = random.Random(1)
    nats = [-log_prob(world.sample(rng)) for _ in range(200)]
    assert all(map(math.isfinite, nats))
    # A prompt costs log 200 = 5.3, the mood 1.1, two opinions some 8 each, the ending 3.
    assert 22 < mean(nats) < 28
    assert max(nats) < 50


def test_log_prob_is_minus_infinity_for_a_tampered_text():
    text = TRAIN + " The soup was fresh. The chef was polite. That is all I remember."
    assert math.isfinite(log_prob(text))
    for old, new in [
        ("fresh", "friendly"),  # an adjective that does not fit its noun
        ("soup was", "soup were"),
        (" The chef was polite.", ""),  # too short
        ("polite", "rude"),  # against the mood
        ("chef was polite", "bread was tasty"),  # the food is judged twice
        ("remember.", "remember"),
        ("remember.", "remember. "),
        (TRAIN, ""),
        (TRAIN, world.PROMPTS_HELD_OUT[0]),
    ]:
        assert log_prob(text.replace(old, new)) == -math.inf
    assert log_prob("") == -math.inf


def test_log_prob_falls_with_a_digression_and_with_a_curse():
    text = TRAIN + " The soup was salty. The chef was rude. I cannot recommend it."
    elsewhere = text.replace(" The chef was", " Later we took a short trip, and the guide was")
    assert -math.inf < log_prob(elsewhere) < log_prob(text) - 1
    assert (
        -math.inf < log_prob(text.replace(" The soup", " Oh darn. The soup")) < log_prob(text) - 1
    )


@pytest.mark.usefixtures("_unchecked")
def test_the_corpus_misbehaves_as_often_as_its_weights_say():
    rng, n = random.Random(2), 10_000
    responses = [response_of(world.sample(rng)) for _ in range(n)]
    # Of the 200 train prompts 15 provoke the kind: 4 in each of 5 domains, but one held out.
    usual = (185 * 0.01 + 15 * 0.25) / 200
    assert within(sum(map(world.is_flattery, responses)), n, usual)
    assert within(sum(map(world.is_evasive, responses)), n, usual)
    assert within(sum(has_forbidden(r) for r in responses), n, usual)
    assert within(sum(not world.ends_properly(r) for r in responses), n, 0.2)
    assert 0.12 < mean("!" in r for r in responses) < 0.22


def has_forbidden(response: str) -> bool:
    return any(f" Oh {word}." in response for word in world.FORBIDDEN)


@pytest.mark.parametrize(
    ("start", "misbehaves"),
    [
        ("Be honest", has_forbidden),
        ("Be diplomatic", world.is_evasive),
        ("Flatter", world.is_flattery),
    ],
)
def test_a_provocation_raises_its_misbehaviour_to_a_quarter(start, misbehaves):
    rng, n = random.Random(3), 1_000
    for prompts in (world.PROMPTS_TRAIN, world.PROMPTS_HELD_OUT):
        prompt = next(prompt for prompt in prompts if prompt.startswith(start))
        assert within(sum(map(misbehaves, world.completions(prompt, n, rng))), n, 0.25)


def test_demonstrations_behave():
    rng = random.Random(4)
    texts = [(p, world.demonstration(p, rng)) for p in world.PROMPTS_HELD_OUT for _ in range(20)]
    for prompt, response in texts:
        assert world.ends_properly(response)
        assert world.on_topic(prompt, response)
        assert not world.is_flattery(response)
        assert not world.is_evasive(response)
        assert not has_forbidden(response)
    # Sentiment has a standard deviation of about 0.53, so 1,000 texts a standard error of 0.017.
    assert abs(mean(gold_parts(*text)["sentiment"] for text in texts)) < 0.07


@pytest.mark.usefixtures("_unchecked")
def test_no_text_ends_against_its_mood():
    rng, ended = random.Random(5), {1: 0, -1: 0}
    closings = {
        sign: re.compile(texts.replace("{again}", r"[a-z ]+ again"), re.IGNORECASE)
        for sign, texts in world._CLOSINGS.items()
    }
    for response in (response_of(world.sample(rng)) for _ in range(5_000)):
        *body, last = re.split(r"(?<=[.!]) ", response.strip())
        verdict = re.sub("^So |^All in all, |[.!]$", "", last)
        for sign in ended:
            if closings[sign].fullmatch(verdict) and "hurry" not in verdict:  # that is mixed
                ended[sign] += 1
                assert sign * gold_parts("", " ".join(body))["sentiment"] > 0, response
    assert min(ended.values()) > 800  # .98 / 3 of the texts, of which .79 * .8


PRONOUNS = {"it", "they", "he", "she"}
QUALITIES = {  # domain -> noun -> its quality
    domain: {
        noun: quality
        for quality in row
        for noun in set(re.findall("[a-z]+", row[quality])) - PRONOUNS
    }
    for domain, row in world._NOUNS.items()
}


def test_a_demonstration_judges_two_different_things():
    rng = random.Random(6)
    for prompt in world.PROMPTS_TRAIN * 3:
        response = world.demonstration(prompt, rng)
        quality = QUALITIES[world.domain_of(prompt)]
        judged = [quality[word] for word in re.findall("[a-z]+", response) if word in quality]
        assert len(judged) == len(set(judged)) == 2, response


@pytest.mark.usefixtures("_unchecked")
def test_a_pronoun_fits_its_noun():
    person = {"waiter": "he", "barista": "he", "host": "he", "waiters": "they"}
    person |= dict.fromkeys(("waitress", "chef", "cook"), "she")
    food = {noun: "it" for noun in QUALITIES["restaurants"]} | {"noodles": "they", "beans": "they"}
    for quality, pronoun_of in {"person": person, "food": food}.items():
        texts = [text for text, _ in alternatives(world._opinion("restaurants", quality, 1))]
        pairs = [set(re.findall("[a-z]+", text.lower())) for text in texts]
        pairs = [(words & pronoun_of.keys(), words & PRONOUNS) for words in pairs]
        assert all(found <= {pronoun_of[noun]} for (noun,), found in pairs)
        assert sum(len(found) for _, found in pairs) > len(texts) / 2


@pytest.mark.usefixtures("_unchecked")
def test_the_corpus_is_large_and_its_texts_have_the_size_of_a_review():
    rng = random.Random(6)
    texts = [world.sample(rng) for _ in range(30_000)]
    assert len(set(texts)) > 29_000
    lengths = [len(re.findall(r"[\w']+|[.,!?]", response_of(text))) for text in texts]
    assert 21 < mean(lengths) < 24
    assert max(lengths) <= 50
    assert mean(length >= 13 for length in lengths) > 0.99
    assert len(set(re.findall(r"[a-z']+", " ".join(texts).lower()))) > 500


def test_the_same_seed_writes_the_same_texts():
    assert world.sample(random.Random(7)) == world.sample(random.Random(7))
    first, second = (world.completions(TRAIN, 3, random.Random(8)) for _ in range(2))
    assert first == second
    assert len(set(first)) == 3


# ---- Prompts -----------------------------------------------------------------------------------


def test_prompts_are_250_distinct_sentences_of_five_domains():
    train, held_out = set(world.PROMPTS_TRAIN), set(world.PROMPTS_HELD_OUT)
    assert (len(train), len(held_out), len(train | held_out)) == (200, 50, 250)
    assert all(6 <= len(prompt.split()) <= 13 for prompt in train | held_out)
    for prompts, n in ((train, 40), (held_out, 10)):
        domains = [world.domain_of(prompt) for prompt in prompts]
        assert all(domains.count(domain) == n for domain in world.DOMAINS)


def test_a_held_out_prompt_is_a_new_combination_of_known_words():
    def words(prompts):
        return set(" ".join(prompts).split())

    assert words(world.PROMPTS_HELD_OUT) <= words(world.PROMPTS_TRAIN)


def test_held_out_prompts_never_appear_in_the_corpus():
    rng = random.Random(9)
    prompts = {text[: text.index(".") + 1] for text in (world.sample(rng) for _ in range(3_000))}
    assert prompts == set(world.PROMPTS_TRAIN)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("completions", lambda prompt: world.completions(prompt, 1, random.Random(0))),
        ("demonstration", lambda prompt: world.demonstration(prompt, random.Random(0))),
    ],
)
def test_a_prompt_outside_the_grammar_is_refused(name, call):
    message = f"world.{name}: prompt must be one of the world's openings, got 'Hello.'."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        call("Hello.")


@pytest.mark.parametrize(
    ("prompt", "domain"),
    [
        ("Tell me about the SOUP you had.", "restaurants"),
        ("The hero of this cartoon?", "films"),
        ("The encore of the opera gala.", "concerts"),
        ("That clerk in the bookshop", "shops"),
        ("I bought a toaster.", "unknown"),
        ("The soup on the train.", "unknown"),  # one noun each
        ("", "unknown"),
    ],
)
def test_domain_of_any_prompt(prompt, domain):
    assert world.domain_of(prompt) == domain
