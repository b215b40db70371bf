"""From logits to tokens and logprobs.

This package decides which token each row gets. A draw is a pure function of the logits and of
(seed, choice, position): it depends neither on the batch nor on the device's random state, so a
stream can continue on another node. It must not know sequences, requests or text.

``neuron.engine.runner`` calls ``sampler.choose`` once per step, and ``prompt_logprobs`` uses
``logprobs``. Read ``sampler`` (the order of all parts) and ``logits_processors`` with
``penalties``, then ``draw``, ``topk``, ``nucleus`` and ``gumbel`` (the definition of a draw), and
last ``full_vocab_draw`` and ``cpu_chunks``, which only make it faster.
"""
