"""Text into and out of a model: chat templates, tokens, and the parts of an answer.

This package runs in the neuron service, so nothing here may import torch or transformers, even
indirectly: the service must start in a fraction of a second and survive whatever happens to an
engine. It decides how a conversation becomes a prompt, and how a streamed answer is split into
thinking, visible text and tool calls. ``neuron.service.jobs`` calls it: ``prompt`` on the way in,
``answer_parts`` on the way out.

Read ``files`` and ``generation_defaults`` (a model folder's small files), then ``tokenizer``,
``sandbox`` and ``template`` (prompts), then ``tool_calls`` (the forms in which models write them)
and ``answer_splitter`` (answers), and ``aligner`` (logprobs) last.
"""
