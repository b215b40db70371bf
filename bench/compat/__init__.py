"""What clients expect of a gateway, asked of ours and of LiteLLM's proxy in front of the same
scripted engine.

``python -m bench.compat --litellm PATH`` (the ``litellm`` program of another environment; without
it, ours alone). LiteLLM gets our chat endpoint as an OpenAI-compatible model, ``drop_params`` on
and everything else as it comes. Each row is one expectation, and all of them rest on what published
clients do; what is not met is told beneath the table.
"""
