"""The life of one answer as its gateway sees it: frames in, events and actions out.

Decided here: which frame belongs to the present attempt, what is missing, what the client gets, and
when a stream is over. Pure: ``cortex.dispatch.receiver`` feeds frames in and carries out the
actions, and the dialects render the events.

Read ``lifecycle`` (the phases, as tables) and ``events`` (what comes out) first, then ``state``
(from frames to events), then ``inbox`` (how a reader takes many events at once).
"""
