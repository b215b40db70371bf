"""Decides which model is loaded where, and carries that out while this gateway is the placer.

Every gateway runs this package: it reports its demand, answers where a model would fit, and serves
the operators' verbs. Only the holder of the lease loads and evicts on its own account.
``cortex.gateway`` wires it through ``service``; it never imports ``cortex.dispatch``.

Read the pure deciders first: ``fit`` (where, and in whose place), ``eviction`` (who goes first),
``planner`` (what to do now). Then their input: ``demand``, ``pins``, ``snapshot``, ``feasibility``.
Then the effects: ``demand_writer``, ``lease``, ``kv_mirror``, ``node_orders``, ``placer``,
``operations``. ``options`` holds the settings, and ``service`` ties all of it together.
"""
