"""The node that knows a conversation's beginning is found, by the longest beginning."""

import msgspec

from cortex.dispatch.prefix_affinity import MIN_CHARACTERS, PrefixAffinity, prefixes_of
from protocol.generate import GenerateRequest, Message, Role, Tool

LONG = "x" * MIN_CHARACTERS


def conversation(*turns: str, **changes: object) -> GenerateRequest:
    messages = (Message(Role.SYSTEM, LONG), *(Message(Role.USER, turn) for turn in turns))
    return msgspec.structs.replace(GenerateRequest("m", messages), **changes)


def test_the_next_turn_finds_the_node_of_the_last_one() -> None:
    affinity = PrefixAffinity()
    affinity.remember(prefixes_of(conversation("a", "b")), "n1")
    affinity.remember(prefixes_of(conversation("a", "c")), "n2")
    assert affinity.node_of(prefixes_of(conversation("a", "b", "and on"))) == "n1"
    assert affinity.node_of(prefixes_of(conversation("a", "c", "and on"))) == "n2"
    assert affinity.node_of(prefixes_of(conversation("a"))) == "n2", "the last who computed it"
    assert affinity.node_of(prefixes_of(conversation("z"))) == "n2", "the system prompt"


def test_what_changes_the_prompt_changes_every_beginning() -> None:
    affinity = PrefixAffinity()
    affinity.remember(prefixes_of(conversation("a")), "n1")
    for other in (
        conversation("a", model="other"),
        conversation("a", tools=(Tool("f"),)),
        conversation("a", template_options={"enable_thinking": False}),
        msgspec.structs.replace(conversation("a"), messages=(Message(Role.USER, LONG),)),
    ):
        assert affinity.node_of(prefixes_of(other)) == ""


def test_short_beginnings_are_not_worth_it() -> None:
    request = GenerateRequest("m", tuple(Message(Role.USER, "hello") for _ in range(3)))
    assert prefixes_of(request) == []
    lengths = [b.characters for b in prefixes_of(conversation(*"abc"))]
    assert len(lengths) == 4
    assert lengths == sorted(lengths)


def test_the_oldest_are_forgotten() -> None:
    affinity = PrefixAffinity(max_prefixes=2)
    for name in "abc":
        affinity.remember(prefixes_of(conversation(name))[-1:], f"n{name}")
    nodes = [affinity.node_of(prefixes_of(conversation(name))[-1:]) for name in "abc"]
    assert nodes == ["", "nb", "nc"]
    affinity.remember(prefixes_of(conversation("d")), "")
    assert affinity.node_of(prefixes_of(conversation("d"))) == "", "nobody computed it"
