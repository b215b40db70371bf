"""Text in and out of a model: chat templates, tokens, and the parts of an answer.

Runs in the neuron service, so nothing below may import torch or transformers, even indirectly: the
service has to start in a fraction of a second and must survive whatever happens to an engine.
"""
