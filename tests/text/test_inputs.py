"""Titles, in-context examples and marks: what stands where, what is cut, and what is refused."""

import pickle
from pathlib import Path

import pytest
from pydantic import ValidationError
from transformers import PreTrainedTokenizerFast

import llm2enc
from llm2enc.recipe import ExampleSpec, InputSpec, Part
from llm2enc.text import Example, InputFormat, Passage

TOKENIZER = PreTrainedTokenizerFast.from_pretrained(Path(llm2enc.__file__).parent / "pocket")
BOS, EOS, TEXT = Part(special="bos"), Part(special="eos"), Part(slot="text", pool=True)
LONG = "the river runs through the old town " * 20

TITLED = (
    BOS,
    Part(literal="title: "),
    Part(slot="title", empty="none", pool=True),
    Part(literal=" | text: "),
    TEXT,
    EOS,
)
ICL = (
    BOS,
    Part(slot="examples"),
    Part(literal="<instruct>"),
    Part(slot="instruction"),
    Part(literal="\n<query>"),
    TEXT,
    Part(literal="\n<response>"),
    EOS,
)


def ids(*pieces: str) -> list[int]:
    """Ids of pieces that the tokenizer reads one by one, by itself."""
    return [token for piece in pieces for token in TOKENIZER(piece, add_special_tokens=False)["input_ids"]]


def titled(**options) -> InputFormat:
    return InputFormat(InputSpec(query=(BOS, TEXT), document=TITLED, **options), TOKENIZER)


def icl(longest: int = 200, **options) -> InputFormat:
    example = ExampleSpec(**({"max_tokens": 10, "reserve": 60} | options))
    spec = InputSpec(query=ICL, document=(BOS, TEXT, EOS), max_tokens=longest, example=example)
    return InputFormat(spec, TOKENIZER)


# -------------------------------------------------------------------------------------------------------------- titles


def test_a_passage_is_its_joined_text_to_all_that_do_not_ask() -> None:
    passage = Passage("Old Town", "A river.")
    assert passage == "Old Town A river." and hash(passage) == hash("Old Town A river.")
    copied = pickle.loads(pickle.dumps(passage))
    assert copied == passage and copied.parts == ("Old Town", "A river.")
    for text in (passage, str(passage)):  # neither this template nor that of queries has a title slot
        assert titled().pack([text], role="query").ids.tolist() == ids("<s>", "Old Town A river.")


def test_title_and_text_are_pooled_by_their_own_parts() -> None:
    tokens = titled().pack([Passage(" Old Town ", "A river."), "A river."])
    first, second = tokens.ids.split(tokens.lengths.tolist())
    pools = tokens.pool.split(tokens.lengths.tolist())
    assert first.tolist() == ids("<s>", "title: Old Town | text: A river.", "</s>")
    assert TOKENIZER.decode(first[pools[0]]) == " Old Town A river."
    assert second.tolist() == ids("<s>", "title: none | text: A river.", "</s>")
    assert TOKENIZER.decode(second[pools[1]]) == " none A river."


def test_the_text_is_cut_before_its_title_and_the_template_never() -> None:
    whole = titled().pack([Passage("Old Town", LONG)]).ids.tolist()
    fixed = ids("<s>", "title:", " | text:", "</s>")
    for limit in range(len(fixed) + 1, len(whole)):
        tokens = titled(max_tokens=limit).pack([Passage("Old Town", LONG)])
        kept = tokens.ids.tolist()
        room = limit - len(fixed)
        title, text = ids(" Old Town")[:room], ids(" " + LONG)[: max(0, room - 2)]
        assert kept == [*ids("<s>", "title:"), *title, *ids(" | text:"), *text, *ids("</s>")]
        assert bool(tokens.truncated[0]) and len(kept) == limit
    short = titled(max_text_tokens=5).pack([Passage("Old Town", LONG)])
    assert len(short.ids) == len(fixed) + 5


@pytest.mark.parametrize(
    ("document", "query", "said"),
    [
        ((BOS, TEXT, Part(slot="title")), (TEXT,), "one {slot: title}, in front of its text"),
        ((Part(slot="title"), Part(slot="title"), TEXT), (TEXT,), "one {slot: title}, in front of its text"),
        ((Part(special="sep", when="title"), TEXT), (TEXT,), "`when: title` needs {slot: title}"),
        ((TEXT,), (Part(slot="title"), TEXT), "only documents have titles"),
        ((Part(slot="examples"), TEXT), (TEXT,), "cannot have an instruction or examples slot"),
    ],
)
def test_slots_out_of_place_are_refused(document: tuple[Part, ...], query: tuple[Part, ...], said: str) -> None:
    with pytest.raises(ValidationError, match=said.replace("{", r"\{")):
        InputSpec(query=query, document=document)


# ------------------------------------------------------------------------------------------------------------ examples


def test_both_sides_of_an_example_are_cut_and_the_template_between_them_stays() -> None:
    shown = Example("Find it", LONG, LONG)
    tokens = icl().pack(["a mill"], "Find it", "query", examples=[[shown]])
    query = TOKENIZER.decode(ids(f"<instruct>Find it\n<query>{LONG}")[:10])
    document = TOKENIZER.decode(ids(LONG)[:10])
    string = f"{query}\n<response>{document}\n\n<instruct>Find it\n<query>a mill\n<response>"
    assert tokens.ids.tolist() == ids("<s>", string, "</s>")
    assert TOKENIZER.decode(tokens.ids[tokens.pool]) == "a mill"
    assert not tokens.truncated.any()


def test_examples_that_leave_too_little_for_the_query_are_refused_and_fitting_says_how_many_do_not() -> None:
    words = ("river", "mill", "bridge", "town", "market")
    examples = [Example("Find it", word, "an answer") for word in words]
    written = "".join(f"<instruct>Find it\n<query>{word}\n<response>an answer\n\n" for word in words[:3])
    size = len(ids(written))
    for room, count in ((size - 1, 2), (size, 3)):
        input_format = icl(60 + room, max_tokens=40)
        assert input_format.fitting(examples, "Find it") == tuple(examples[:count])
        with pytest.raises(ValueError, match=f"5 examples were given, and {count} of them fit"):
            input_format.pack(["a mill"], "Find it", "query", examples=[examples])
    long = icl(60 + size, max_tokens=40).pack([LONG], "Find it", "query", examples=[examples[:3]])
    assert long.ids.tolist()[: 1 + size] == ids("<s>", written)
    assert long.ids.tolist()[-1] == TOKENIZER.eos_token_id
    assert len(long.ids) == 60 + size and long.truncated.all()


def test_examples_without_a_place_are_refused() -> None:
    example = Example("", "question", "answer")
    for instruction, role in (("", "query"), ("Find it", "document")):
        with pytest.raises(ValueError, match=r"no \{slot: examples\}"):
            icl().pack(["a mill"], instruction, role, examples=[[example]])
    assert icl().fitting([example], "") == ()
    written = "<instruct>\n<query>question\n<response>answer\n\n<instruct>Find it\n<query>a mill\n<response>"
    shown = icl(max_tokens=40).render("a mill", "Find it", "query", [example])
    assert shown == f"<s>{written}</s>"  # an example has the instruction of its own row, which may be none
    with pytest.raises(TypeError, match="the document of an example is NoneType"):
        icl().pack(["a mill"], "Find it", "query", examples=[[example._replace(document=None)]])


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"example": None}, "give both or neither"),
        ({"query": (BOS, TEXT)}, "give both or neither"),
        ({"query": (TEXT, Part(slot="examples"))}, "one {slot: examples}, in front of one {slot: text}"),
        ({"query": (Part(slot="examples"), Part(slot="text"), TEXT)}, "in front of one {slot: text}"),
        ({"query": (Part(slot="examples"), Part(token="["), TEXT)}, "write it as a literal"),
        ({"max_tokens": 60}, "example.reserve (60) leaves no room"),
    ],
)
def test_example_settings_that_contradict_each_other_are_refused(fields: dict, said: str) -> None:
    given = {"query": ICL, "document": (TEXT,), "example": ExampleSpec(reserve=60), "max_tokens": 200}
    with pytest.raises(ValidationError) as caught:
        InputSpec(**(given | fields))
    assert said in str(caught.value)


# --------------------------------------------------------------------------------------------------- marks and brackets


def test_a_mark_stands_behind_the_text_as_a_part_of_it_and_is_never_cut() -> None:
    template = (BOS, Part(literal="query: "), TEXT, EOS)
    input_format = InputFormat(InputSpec(query=template, document=template), TOKENIZER)
    tokens = input_format.pack(["a mill", LONG], max_tokens=20, marks=[" 107", " 12"])
    short, long = tokens.ids.split(tokens.lengths.tolist())
    assert short.tolist() == ids("<s>", "query: a mill 107", "</s>")
    mark = ids(" 12")
    assert long.tolist() == [*ids("<s>", "query: " + LONG)[: 19 - len(mark)], *mark, *ids("</s>")]
    pools = tokens.pool.split(tokens.lengths.tolist())
    assert TOKENIZER.decode(short[pools[0]]) == " a mill 107" and TOKENIZER.decode(long[pools[1]]).endswith(" 12")
    assert tokens.truncated.tolist() == [False, True]


@pytest.mark.parametrize("role", ["query", "document"])
@pytest.mark.parametrize("text", ["how do birds fly", "[a] {b} [", "]", " ", LONG])
def test_brackets_are_single_ids_around_the_tokens_of_the_text(role: str, text: str) -> None:
    """SGPT's rule: tokenize, cut, then insert the two ids; both are attended to and pooled."""
    marks = {"query": "[]", "document": "{}"}
    templates = {
        name: (Part(token=pair[0], pool=True), TEXT, Part(token=pair[1], pool=True)) for name, pair in marks.items()
    }
    input_format = InputFormat(InputSpec(**templates, max_text_tokens=30, max_tokens=32), TOKENIZER)
    tokens = input_format.pack([text], role=role)
    begin, end = TOKENIZER.convert_tokens_to_ids(list(marks[role]))
    assert tokens.ids.tolist() == [begin, *ids(text)[:30], end]
    assert tokens.pool.all() and tokens.truncated.tolist() == [len(ids(text)) > 30]
