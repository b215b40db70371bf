"""Joins parts of an answer, so that what a client gets does not show how it was found."""

from collections.abc import Iterable

from protocol.frames import AnswerPart, Reasoning, Text, ToolCallPart


def joined(parts: Iterable[AnswerPart]) -> tuple[AnswerPart, ...]:
    """Joins neighbours that are of the same kind; they must not have logprobs yet."""
    runs: list[list[AnswerPart]] = []
    for part in parts:
        is_more = runs and type(part) is type(runs[-1][0])
        if is_more and not (isinstance(part, ToolCallPart) and part.name):
            runs[-1].append(part)
        else:
            runs.append([part])
    return tuple(_one(run) if len(run) > 1 else run[0] for run in runs)


def _one(run: list[AnswerPart]) -> AnswerPart:
    """Joins parts of one kind; the name and the id of a call are in its first part."""
    whole = "".join(p.arguments if isinstance(p, ToolCallPart) else p.text for p in run)
    match run[0]:
        case ToolCallPart(number, call_id, name):
            return ToolCallPart(number, call_id, name, whole)
        case Reasoning():
            return Reasoning(whole)
        case Text():
            return Text(whole)
