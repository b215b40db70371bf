"""The service's side of text processes: what turns requests into tokens, one for each model.

Templates and tokenizers come with models, and requests are as large as clients like, so both run in
processes that this package starts, watches, ends and replaces; the event loop never waits for them.
``neuron.service.residents`` and ``neuron.service.rendering`` take a model's texts from ``shelf``;
``neuron.service.jobs`` uses them.

Read ``process`` first (one process, which ``patience`` judges), then ``lane`` (requests one after
the other, also when the process dies), ``model_texts`` (a model's lanes) and ``shelf`` (what is
kept).
"""
