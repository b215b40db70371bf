"""What the fleet keeps in JetStream: made, compared, mended.

Decided here: whether jobs can be stored and why not, when a stream is put in the place of one that
stores nothing any more, which lanes there are, and what operators have said that somebody has
deleted. ``cortex.gateway`` runs it, ``cortex.dispatch`` asks it. It knows no requests.

Read ``keeper`` (all streams) first, then ``kept_stream`` (one of them), ``lane_keeper`` (the
consumers of models) and ``intent_keeper`` (profiles, pins and drained nodes).
"""
