"""The text process: everything of a model that is text → tokens, in a process that may be killed.

A chat template is a program, a tokenizer is one as well, and both come with the model; requests are
as large as clients like. So none of it runs in the service, whose event loop must always answer: it
runs here, under a limit of memory that this package sets, and limits of time that the service
enforces by killing the process.

``neuron.service.texts`` holds the other end. Read ``serve`` first (the life of the process), then
``limits``.
"""
