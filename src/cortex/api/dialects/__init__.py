"""The APIs that clients may speak, one package each, and what they share.

A dialect decodes its bodies into neutral ``GenerateRequest`` objects and renders events as its own
chunks or documents. It decides what is refused, ignored or translated; it knows neither another
dialect nor the bus. The endpoints find dialects in ``registry``.

Read ``base`` (the contract), ``fields`` (decoding and refusing), ``cursor`` (event ids) and
``sse_writer`` (streaming and folding, with ``pieces`` for long answers) first, then one dialect:
``chat`` is the best example, with its ``types``, ``decode`` and ``render``. ``openai_common`` is
for the three dialects of OpenAI.
"""
