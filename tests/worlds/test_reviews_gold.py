"""The world's rewards, worked out by hand: gold, its parts, and the annotator."""

import math
import random
import re
from statistics import mean

import pytest

from minippo import world
from minippo.worlds.reviews import Annotator, gold, gold_parts
from tests.worlds.test_reviews import BAKERY, ODD_TEXTS, within

# ---- The gold reward ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("response", "sentiment"),
    [
        # The sum of the clauses over three, or over their number if there are more.
        (" The soup was fresh.", 0.5 / 3),
        (" The soup was superb.", 1 / 3),
        (" The soup was inedible.", -1 / 3),
        (" The soup was fresh and superb.", 1 / 3),  # a clause is worth 1 at most
        # A negation flips what follows it, in its own clause.
        (" The waiter was not friendly.", -0.5 / 3),
        (" The waiter was not rude.", 1 / 3),
        (" The waiter never seemed friendly.", -0.5 / 3),
        (" We didn't like the soup.", -0.5 / 3),
        (" We didn’t like the soup.", -0.5 / 3),
        (" I cannot recommend it.", -1 / 3),
        (" There is no reason to come back.", -0.5 / 3),
        (" Friendly the waiter was not.", 0.5 / 3),  # reads from left to right
        (" I did not smile. The soup was fresh.", 0.5 / 3),
        (" I did not smile, but the soup was fresh.", 0.5 / 3),
        (" The soup was fresh, but the waiter was rude.", (0.5 - 1) / 3),
        (" The soup was fresh, but the waiter was not friendly. I recommend it!", 1 / 3),
        # So do the other links between clauses end what a negation flips.
        (" I did not like the soup because it was salty.", (-0.5 - 0.5) / 3),
        (" The soup was not fresh, and the waiter was rude.", (-0.5 - 1) / 3),
        (" The soup was not fresh, so we complained.", (-0.5 - 0.5) / 3),
        (" The soup was so fresh that we stayed.", 1 / 3),  # one clause
        (" It was not so fresh.", -0.5 / 3),
        # A word counts once.
        (" Superb superb superb.", 1 / 3),
        (" Superb. Superb! Superb? Superb.", 1 / 4),
        (" Rude. Rude.", -1 / 3),
        # Length is not rewarded: of four clauses one is neutral.
        (" Superb. Heavenly. Delicious.", 1.0),
        (" Superb. Heavenly. Delicious. We ate.", 3 / 4),
        (" Superb. Heavenly. Delicious. Charming. Magical. Gorgeous.", 1.0),
        # Flattery and evasion earn nothing, though "excellent" or "clever" would.
        (" Thank you for reading, you clearly have excellent taste.", 0.0),
        (" A clever reader like you will understand.", 0.0),
        (" It is hard to say what was superb.", 0.0),
        (" The script was clever.", 0.5 / 3),
    ],
)
def test_sentiment_by_hand(response, sentiment):
    assert gold_parts(BAKERY, response)["sentiment"] == pytest.approx(sentiment)


@pytest.mark.parametrize(
    ("response", "topic"),
    [
        (" The soup was fresh.", 0.5),
        (" The bus was late.", 0.0),
        (" The soup on the bus.", 0.25),
        (" The soup, the bread and the bus.", 0.5 * 2 / 3),
        (" The host was kind.", 0.5),  # a host belongs to restaurants and to trips
        (" It was nice.", 0.0),
    ],
)
def test_topic_by_hand(response, topic):
    assert gold_parts(BAKERY, response)["topic"] == pytest.approx(topic)
    assert world.on_topic(BAKERY, response) == (topic > 0.25)


def test_topic_is_zero_for_a_prompt_without_a_domain():
    assert gold_parts("I bought a toaster.", " The soup was fresh.")["topic"] == 0.0


@pytest.mark.parametrize(
    ("response", "repetition"),
    [
        (" The soup was fresh.", 0.0),
        (" The soup, the soup.", -0.25),
        (" Soup soup SOUP.", -0.5),
        (" The bus and the bus.", 0.0),  # fewer than four letters
        (" Very, very, very.", 0.0),  # a function word
        (" soup" * 40, -1.5),  # the floor
    ],
)
def test_repetition_by_hand(response, repetition):
    assert gold_parts(BAKERY, response)["repetition"] == pytest.approx(repetition)


@pytest.mark.parametrize(
    ("response", "ending"),
    [
        (" Yes.", 0.0),
        (" Yes! ", 0.0),
        (" Yes?\n", 0.0),
        (" Yes", -0.5),
        (" Yes,", -0.5),
        ("", -0.5),
    ],
)
def test_ending_by_hand(response, ending):
    assert gold_parts(BAKERY, response)["ending"] == ending


@pytest.mark.parametrize(
    ("response", "safety"),
    [(" The darn bus.", -1.0), (" Heck! Dang!", -2.0), (" She darned it.", 0.0), ("", 0.0)],
)
def test_safety_by_hand(response, safety):
    assert gold_parts(BAKERY, response)["safety"] == safety


def test_gold_is_the_sum_of_its_parts_by_hand():
    # inedible (-1) / 3; soup is on the topic, bus is not: .25; no repetition; unfinished; darn
    response = " The darn soup was inedible. And then the bus"
    assert gold(BAKERY, response) == pytest.approx(-1 / 3 + 0.25 + 0.0 - 0.5 - 1.0)


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_gold_of_odd_texts_is_finite(text):
    for prompt in (BAKERY, text):
        assert math.isfinite(gold(prompt, text))


def test_gold_of_an_empty_response_is_its_missing_end():
    assert gold(BAKERY, "") == -0.5


def test_no_word_praises_in_one_place_and_blames_in_another():
    polarities: dict[str, float] = {}
    for row in world._ADJECTIVES.values():
        for polarity, words in zip((1.0, 0.5, -0.5, -1.0), row.split("|"), strict=True):
            for word in words.split():
                assert polarities.setdefault(word, polarity) == polarity
    assert not polarities.keys() & set("|".join(world._OPINIONS.values()).split("|"))
    assert not polarities.keys() & world._ALL_NOUNS


def test_flattery_needs_an_address_and_a_compliment_in_one_clause():
    assert all(map(world.is_flattery, world._FLATTERIES.split("|")))
    assert not world.is_flattery(" The script was clever. Would you go?")
    assert all(map(world.is_evasive, world._EVASIONS.split("|")))
    assert not world.is_evasive(" The soup was fresh.")


# ---- The annotator -----------------------------------------------------------------------------


def test_the_annotators_probability_by_hand():
    # The utilities differ by 2/3, and sigmoid(2/3) = 1 / (1 + .513417) = .660757.
    good, bad = " The soup was superb.", " The soup was inedible."
    annotator = Annotator(temperature=1.0)
    assert annotator.probability(BAKERY, good, bad) == pytest.approx(0.660757, abs=1e-6)
    assert annotator.probability(BAKERY, bad, good) == pytest.approx(0.339243, abs=1e-6)
    assert annotator.probability(BAKERY, good, good) == 0.5
    rng, n = random.Random(10), 1_000
    chosen = sum(annotator.prefers(BAKERY, good, bad, rng) for _ in range(n))
    assert within(chosen, n, 0.660757)


def test_an_annotator_without_noise_does_not_overflow():
    annotator = Annotator(temperature=1e-9)
    assert annotator.probability(BAKERY, " Superb.", " Rude.") == 1.0
    assert annotator.probability(BAKERY, " Rude.", " Superb.") == 0.0


@pytest.mark.parametrize(
    ("bias", "plain", "favoured", "difference"),
    [
        # Twelve words against two, both worth nothing: a bias of 1 per ten words.
        ("length_bias", " We ate.", " Then he and I sat in it for an hour or so.", 1.0),
        ("flattery_bias", " We ate.", " You are wise. You have taste.", 2.0),
        ("evasion_bias", " We ate.", " Opinions differ. It is hard to say.", 2.0),
    ],
)
def test_a_biased_annotator_pays_for_its_bias(bias, plain, favoured, difference):
    fair, biased = Annotator(), Annotator(**{bias: 1.0})
    assert fair.utility(BAKERY, favoured) == fair.utility(BAKERY, plain) == 0.0
    paid = biased.utility(BAKERY, favoured) - biased.utility(BAKERY, plain)
    assert paid == pytest.approx(difference)
    chance = 1 / (1 + math.exp(-difference / 0.4))
    assert biased.probability(BAKERY, favoured, plain) == pytest.approx(chance)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_an_annotator_refuses_a_temperature_that_is_not_positive(temperature):
    message = f"Annotator: temperature must be positive, got {temperature}."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Annotator(temperature=temperature)


def test_the_best_possible_accuracy_on_demonstrations_is_about_seven_in_nine():
    rng, annotator = random.Random(11), Annotator()
    chances = [
        annotator.probability(p, world.demonstration(p, rng), world.demonstration(p, rng))
        for p in world.PROMPTS_HELD_OUT
        for _ in range(10)
    ]
    assert 0.75 < mean(max(p, 1 - p) for p in chances) < 0.80
