"""Where the files of models are, and how they get there.

This package decides what a source such as ``org/name`` or a folder means, when a model folder is
complete, what is downloaded from the Hugging Face Hub, and which weights stay in host memory for
the next load. Must not know tensors, engines or the bus.

``neuron.service.residents`` resolves sources and uses the warm tier; ``neuron.service.rendering``
looks for local folders. Read ``sources`` first (a source becomes a folder, or an error that says
what to do), then ``hub`` (cache and downloads), then ``warm_tier`` (the budget) and
``locked_pages`` (the system calls under it).
"""
