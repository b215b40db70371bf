"""The tables of streams and attempts: complete, reachable, and the ones that the docs draw."""

from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest

from cortex.streams.lifecycle import (
    ATTEMPT,
    STREAM,
    AttemptPhase,
    AttemptStep,
    IllegalStep,
    Lifecycle,
    StreamPhase,
    StreamStep,
    Table,
    diagram,
)

PAGE = Path(__file__).parents[3] / "docs" / "architecture.md"
LIVES: list[tuple[Table[Any, Any], StrEnum, type[StrEnum], type[StrEnum]]] = [
    (STREAM, StreamPhase.WAITING, StreamPhase, StreamStep),
    (ATTEMPT, AttemptPhase.QUEUED, AttemptPhase, AttemptStep),
]


@pytest.mark.parametrize(("table", "start", "phases", "steps"), LIVES)
def test_every_phase_is_reached_and_every_step_leads_somewhere(
    table: Table[Any, Any], start: StrEnum, phases: type[StrEnum], steps: type[StrEnum]
) -> None:
    reached = {start}
    while more := {to for phase in reached for to in table[phase].values()} - reached:
        reached |= more
    assert reached == set(phases) == set(table)
    assert {step for row in table.values() for step in row} == set(steps)


@pytest.mark.parametrize(("table", "start", "phases", "steps"), LIVES)
def test_a_step_outside_the_table_is_a_bug(
    table: Table[Any, Any], start: StrEnum, phases: type[StrEnum], steps: type[StrEnum]
) -> None:
    for phase in phases:
        for step in steps:
            life = Lifecycle(table, phase)
            if step in table[phase]:
                assert life.step(step) is life.phase is table[phase][step]
            else:
                with pytest.raises(IllegalStep, match=step.value):
                    life.step(step)
                assert life.phase is phase


@pytest.mark.parametrize(("table", "start", "phases", "steps"), LIVES)
def test_the_docs_draw_the_tables(
    table: Table[Any, Any], start: StrEnum, phases: type[StrEnum], steps: type[StrEnum]
) -> None:
    assert f"```mermaid\n{diagram(table, start)}\n```" in PAGE.read_text(encoding="utf-8")
