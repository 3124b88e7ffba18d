"""Text to tokens and back: by hand."""

import pytest
from tokenizers import processors

from minippo.texts import decode, encode, encode_prompts, left_pad, split_columns
from tests import tiny
from tests.shapes import refuses


def test_left_pad_by_hand():
    ids, mask = left_pad([[5], [6, 7, 8], [9, 1]], pad_token_id=0)
    assert ids.tolist() == [[0, 0, 5], [6, 7, 8], [0, 9, 1]]
    assert mask.int().tolist() == [[0, 0, 1], [1, 1, 1], [0, 1, 1]]


def test_left_pad_keeps_a_real_token_that_is_the_padding_token():
    _, mask = left_pad([[0, 0], [0]], pad_token_id=0)
    assert mask.int().tolist() == [[1, 1], [0, 1]]


def test_left_pad_needs_rows_with_tokens():
    with refuses("left_pad: rows", "none"):
        left_pad([], 0)
    with refuses("left_pad: row 1", "none"):
        left_pad([[1], []], 0)


def test_encode_then_decode_gives_the_texts():
    prompts, texts = ["a b", "c"], ["good", "so very bad"]
    responses = encode(tiny.tokenizer(), prompts, texts)
    assert decode(tiny.tokenizer(), responses) == (prompts, texts)
    assert responses.prompt_ids.tolist() == [[1, 2], [0, 3]]
    assert responses.ids.tolist() == [[7, 0, 0, 0], [10, 11, 8, 0]]
    assert responses.mask.int().tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]


def test_a_response_that_did_not_end_has_no_eos():
    responses = encode(tiny.tokenizer(), ["a", "b"], ["good", "so bad"], ended=False)
    assert responses.ids.tolist() == [[7, 0], [10, 8]]
    assert responses.mask.int().tolist() == [[1, 0], [1, 1]]


@pytest.mark.parametrize(("texts", "came"), [([], "[]"), ("a b", "'a b'")])
def test_encoded_prompts_are_a_list_of_texts(texts, came):
    with refuses("encode_prompts: texts", came):
        encode_prompts(tiny.tokenizer(), texts)


@pytest.mark.usefixtures("without_hook")
def test_a_prompt_that_is_no_string_is_refused_by_its_number():
    with refuses("encode_prompts: text 1", "3"):
        encode_prompts(tiny.tokenizer(), ["a", 3])


def test_an_empty_prompt_is_refused_by_its_number():
    with refuses("encode_prompts: text 1", "''"):
        encode_prompts(tiny.tokenizer(), ["a", ""])


def templated(template, *special):
    """A tokenizer that puts special tokens around a text, as its post-processor says."""
    made = tiny.tokenizer(["</s>", "<s>", *tiny.WORDS[1:]])
    pairs = [(token, made.convert_tokens_to_ids(token)) for token in special]
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=pairs
    )
    return made


def rows_of(tokenizer, texts):
    ids, mask = encode_prompts(tokenizer, texts)
    return [row[real].tolist() for row, real in zip(ids, mask, strict=True)]


def test_an_end_that_the_tokenizer_appends_is_left_out_of_a_prompt():
    # Or every response would be written after the end of the text.
    behind = templated("$A </s>", "</s>")
    assert behind("a b")["input_ids"] == [2, 3, 0]
    assert rows_of(behind, ["a b", "c"]) == [[2, 3], [4]]
    around = templated("<s> $A </s>", "<s>", "</s>")
    assert rows_of(templated("<s> $A", "<s>"), [""]) == [[1]]
    assert rows_of(around, ["a b", ""]) == [[1, 2, 3], [1]]  # a start alone is a prompt


def test_a_prompt_that_already_has_its_start_gets_no_second_one():
    starting = templated("<s> $A", "<s>")
    assert starting("<s> a b")["input_ids"] == [1, 1, 2, 3]
    assert rows_of(starting, ["<s> a b", "a b", "<s> <s> a", "a <s> b"]) == [
        [1, 2, 3], [1, 2, 3], [1, 2], [1, 2, 1, 3],
    ]  # fmt: skip
    assert rows_of(starting, ["a", "<s>"]) == [[1, 2], [1]]
    its_end = templated("</s> $A", "</s>")  # one token for both, as OPT has it
    assert rows_of(its_end, ["</s> a", "a", "</s>", ""]) == [[0, 2], [0, 2], [0], [0]]


def test_a_prompt_that_ends_with_the_end_of_text_is_refused_by_its_number():
    with refuses("encode_prompts: text 1", "'b <|endoftext|>'"):
        encode_prompts(tiny.tokenizer(), ["a", "b <|endoftext|>"])
    with refuses("encode_prompts: text 0", "'<s> </s>'"):
        encode_prompts(templated("<s> $A", "<s>"), ["<s> </s>"])


def test_the_end_of_text_may_start_a_prompt_or_be_all_of_it_or_stand_between_turns():
    texts = ["<|endoftext|>", "<|endoftext|> a", "a <|endoftext|> b"]
    assert rows_of(tiny.tokenizer(), texts) == [[0], [0, 1], [1, 0, 2]]


def test_many_prompts_are_encoded_as_they_are_one_at_a_time():
    # More than are given to the tokenizer at once; some of its own padding would be seen.
    texts = [tiny.WORDS[1 + i % 11] + " a" * (i % 5) for i in range(2_100)]
    made = tiny.tokenizer()
    assert rows_of(made, texts) == [made(text)["input_ids"] for text in texts]


def test_each_prompt_has_its_response():
    with refuses("encode: responses", "1"):
        encode(tiny.tokenizer(), ["a", "b"], ["a"])


@pytest.mark.usefixtures("without_hook")
@pytest.mark.parametrize(
    ("rows", "argument", "came"),
    [
        ([{"prompt": "a", "x": 1}, {"prompt": "b"}], "row 1", "{'prompt': 'b'}"),
        ([{"prompt": "a"}, {"prompt": "b", "x": 1}], "row 1", "{'prompt': 'b', 'x': 1}"),
        ([{"text": "a"}], "row 0", "{'text': 'a'}"),
        ([{"prompt": "a"}, "b"], "row 1", "'b'"),
        (["a", {"prompt": "b"}], "text 1", "{'prompt': 'b'}"),
        ([{"prompt": "a"}, {"prompt": 3}], "text 1", "3"),
        ([3], "text 0", "3"),
    ],
)
def test_rows_that_do_not_have_the_same_columns_are_refused_by_their_number(rows, argument, came):
    with refuses(f"encode_prompts: {argument}", came):
        split_columns(rows)


def test_split_columns_leaves_texts_without_columns():
    assert split_columns(["a", "b"]) == (["a", "b"], {})
