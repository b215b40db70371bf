"""How the processes that share one model work together.

Rank 0 has the scheduler, the sampler and the text; the others compute their share of every matrix
and do what rank 0 tells them. This package decides how they find each other and what is sent. The
sums over the ranks are in ``neuron.layers.group``, and the commands themselves in
``neuron.ipc.rank_commands``, which needs no torch.

``neuron.engine.loader`` forms the group, ``neuron.engine.runner`` sends, and
``neuron.engine.serve`` receives in the other ranks. Read ``broadcast`` (commands over socketpairs),
then ``rendezvous`` (the process group over loopback).
"""
