"""The engine beside its peers, in one run on one machine: ``python -m bench.engine --help``.

See ``bench/README.md`` for how to make the peers' environment and for how to read the tables.
"""
