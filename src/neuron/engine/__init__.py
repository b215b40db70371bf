"""The inference engine: one process for each rank of a loaded model, driven over ``neuron.ipc``.

It decides what each step computes, owns the KV cache and its blocks, samples tokens and turns them
into text. It knows nothing of the bus, requests or gateways: the service
(``neuron.engine_process``) starts the processes, sends ``Start``, ``Add`` and ``Abort``, and
receives ``Step``.

Read ``serve`` (the loop) and ``engine`` (one step) first; then ``sequence``, ``blocks`` and
``scheduler``, which decide without torch; then ``runner`` and ``forward``, which compute; then
``sampling`` and ``output``. ``fork_server`` makes the process, ``loader`` and ``machine`` prepare a
model on this machine; ``ranks`` connects the processes of one model; ``tp_check_rank`` belongs to
``neuron tp-check``.
"""
