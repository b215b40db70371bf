"""The machine under an engine: device, memory and kernels, as found at load.

This package decides which dtype, threads and kernels a model runs on, whether it can be exact
here, and how large its KV cache may be. It asks the hardware and tries the model's own shapes;
it must not know sequences, messages or text.

``neuron.engine.loader`` calls it while a model loads, and ``neuron.engine.serve`` asks
``out_of_memory`` about errors. Read ``device`` and ``memory`` first, then ``kernel_probe`` (the
choice of kernels) and ``row_padding`` (the smallest fast batch); ``heap`` keeps a long-lived
process small.
"""
