"""The endpoints, one module for each group of paths; ``cortex.app`` mounts them.

An endpoint reads a request, asks the gateway and writes the response. It decides nothing about
models or nodes: ``cortex.dispatch`` and ``cortex.placement`` do.

Read ``generation`` (decode, admit, relay) and ``relay`` (one answer, one client) first: they carry
all the traffic. ``models`` and ``tokenization`` serve clients, ``fleet_view`` and ``admin`` serve
operators, ``openapi`` describes the API, and ``cached`` keeps what many ask for.
"""
