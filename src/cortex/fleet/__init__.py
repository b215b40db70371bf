"""What this gateway knows about the fleet: its nodes, their models, and the models' profiles.

Owned here: the state that is folded from KV records and heartbeats, and the catalogue that leads
from names to models. ``cortex.gateway`` feeds both; ``cortex.dispatch``, ``cortex.placement`` and
the endpoints only read them.

Read ``state`` (nodes and models) first, then ``catalogue`` (profiles and names), then
``models_file`` (``models.toml``, validated, with errors for the person who wrote it).
"""
