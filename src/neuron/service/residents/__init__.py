"""The models of this node: which are loaded, which could be, and where their memory comes from.

Decided here: what becomes of an order (load, unload, pull, recycle), which victims go and for how
long they drain, when a load is tried again, and what the fleet is told of each model. Which model
is to be loaded where is decided by the placer, in a gateway; what a model takes, in
``neuron.sizing``.

``neuron.service.node`` builds these parts and passes orders and epochs on. Read ``offers`` first
(what could be loaded), then ``reservations`` (memory; ``memory_meter`` measures for it),
``resident`` (one model from its files to its engine) and ``manager`` (all of them, and the orders);
``records`` and ``announcer`` write what is shown. ``Resident`` is given its ``Reservations`` and
never knows the manager.
"""
