"""From sampled tokens to the text of an answer, and to its end.

This package decides when text is certain (whole characters, out of reach of any stop text) and
why an answer ends: an end token, a stop text, or its length. It must not know models, scheduling
or messages. Thinking and tool calls are split off later, in the service (``neuron.text``).

``neuron.engine.engine`` feeds one ``AnswerText`` per sequence, token by token. Read ``answer``
first, then ``detokenizer`` (tokens to text) and ``stop_scanner`` (the first stop text in a
stream).
"""
