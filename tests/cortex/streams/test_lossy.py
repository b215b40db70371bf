"""The frame algorithm on a bus that drops, repeats and reorders, with senders that come and go."""

import random

from hypothesis import given
from hypothesis import strategies as st

from cortex.streams.events import Ended, Move, Parts, Repair
from cortex.streams.state import StreamState
from protocol import frames
from protocol.frames import AnyFrame, Phase, Text
from protocol.generate import FinishReason, Usage
from tests.support.properties import examples

ANSWER = random.Random(1).sample(range(1000), 40)
"""What every attempt computes: each token's text is its number."""


class Sender:
    """A neuron with one attempt of the job, by the rules of the bus."""

    def __init__(self, attempt: int, tokens_so_far: list[int]) -> None:
        assert tokens_so_far == ANSWER[: len(tokens_so_far)]
        self.attempt = attempt
        self.instance = f"i{attempt}"
        self.begin = self.done = len(tokens_so_far)

    def accepted(self) -> AnyFrame:
        return frames.Accepted(
            attempt=self.attempt,
            instance=self.instance,
            node=f"n{self.attempt}",
            prompt_tokens=3,
            prompt_hash="h",
            max_tokens=100,
        )

    def delta(self, index: int) -> AnyFrame:
        return frames.Delta(
            attempt=self.attempt,
            instance=self.instance,
            index=index,
            tokens=(ANSWER[index],),
            parts=(Text(f" {ANSWER[index]}"),),
        )

    def last(self) -> AnyFrame:
        if self.done == len(ANSWER):
            return frames.Finished(
                attempt=self.attempt,
                instance=self.instance,
                next_index=self.done,
                reason=FinishReason.STOP,
                usage=Usage(3, self.done),
            )
        return frames.KeepAlive(
            attempt=self.attempt, instance=self.instance, next_index=self.done, phase=Phase.DECODE
        )

    def step(self) -> list[AnyFrame]:
        if self.done == len(ANSWER):
            return []
        self.done += 1
        sent = [self.delta(self.done - 1)]
        return sent + ([self.last()] if self.done == len(ANSWER) else [])

    def resume(self, index: int) -> list[AnyFrame]:
        opening = [self.accepted()] if index <= self.begin else []
        return [*opening, *(self.delta(i) for i in range(index, self.done)), self.last()]


class World:
    """A gateway's stream, its senders, and what is on its way between them."""

    def __init__(self, chance: random.Random, loss: float) -> None:
        self.chance = chance
        self.loss = loss
        self.state = StreamState()
        self.senders = [Sender(1, [])]
        self.on_the_way: list[AnyFrame] = []
        self.text = ""
        self.ended: Ended | None = None
        self.send([self.senders[0].accepted()])

    @property
    def sender(self) -> Sender:
        return self.senders[-1]

    def send(self, sent: list[AnyFrame]) -> None:
        for frame in sent:
            if self.chance.random() >= self.loss:
                self.on_the_way += [frame] * (2 if self.chance.random() < self.loss else 1)

    def deliver(self, *, in_order: bool) -> None:
        if self.on_the_way:
            at = 0 if in_order else self.chance.randrange(len(self.on_the_way))
            self.receive(self.on_the_way.pop(at))

    def receive(self, frame: AnyFrame) -> None:
        match self.state.receive(frame):
            case Parts(parts, _, next_index):
                assert self.ended is None
                self.text += "".join(part.text for part in parts if isinstance(part, Text))
                assert next_index == len(self.state.tokens)
            case Repair(instance, index):
                assert instance == self.sender.instance, "an earlier life was listened to"
                self.send(self.sender.resume(index))
            case Ended() as ended:
                assert self.ended is None
                self.ended = ended
            case Move():
                raise AssertionError("nobody asked for that")
            case _:
                pass
        assert self.state.tokens == ANSWER[: len(self.state.tokens)]
        assert self.text == "".join(f" {token}" for token in self.state.tokens)

    def migrate(self) -> None:
        """The earlier senders live on: frozen, thawed, or only slow."""
        if self.ended is None:
            attempt = self.state.attempt + 1
            self.state.next_attempt(attempt)
            self.senders.append(Sender(attempt, list(self.state.tokens)))
            self.send([self.sender.accepted()])


ACTIONS = st.sampled_from(["step"] * 6 + ["deliver"] * 6 + ["shuffle", "alive", "migrate", "ghost"])


@examples(300)
@given(
    st.lists(ACTIONS, max_size=120),
    st.floats(0, 0.7),
    st.integers(0, 10**9),
)
def test_every_token_comes_once_and_in_order(actions: list[str], loss: float, seed: int) -> None:
    chance = random.Random(seed)
    world = World(chance, loss)
    for action in actions:
        match action:
            case "step":
                world.send(world.sender.step())
            case "deliver":
                world.deliver(in_order=True)
            case "shuffle":
                world.deliver(in_order=False)
            case "alive":
                world.send([world.sender.last()])
            case "migrate":
                world.migrate()
            case "ghost":
                world.send(chance.choice(world.senders).step())
    world.loss = 0.0  # from now on the bus is good, and everything has to end well
    for _ in range(len(ANSWER)):
        world.send(world.sender.step())
    for _ in range(3):
        while world.on_the_way:
            world.deliver(in_order=True)
        world.send([world.sender.last()])  # what a KeepAlive or a probe's answer says
    while world.on_the_way:
        world.deliver(in_order=True)
    assert world.ended is not None
    assert world.state.tokens == ANSWER


def test_frames_of_another_attempt_change_nothing() -> None:
    world = World(random.Random(1), 0.0)
    for _ in range(5):
        world.send(world.sender.step())
    while world.on_the_way:
        world.deliver(in_order=True)
    ghost = world.sender
    world.migrate()
    world.deliver(in_order=True)
    before = list(world.state.tokens)
    for frame in (*ghost.step(), ghost.last(), *ghost.resume(0)):
        world.receive(frame)
    assert world.state.tokens == before
