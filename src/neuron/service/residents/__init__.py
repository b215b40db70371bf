"""The models of a node: those it holds, those it could load, and the orders that change them.

This package decides when a model is fetched, loaded, drained and unloaded, which memory it
reserves, and what the fleet is told about it. It must not know single jobs: a resident only
drains or ends its worker.

``neuron.service.node`` owns the manager and passes it the orders of placers and operators. Read
``resident`` (the life of one model) and ``manager`` (all of them, and the orders), then ``offers``
(what could be loaded here), and ``records`` with ``announcer`` (how the fleet learns of it).
"""
