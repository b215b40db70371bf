"""How the bundled demo model is made: data, tokenizer, training and evaluation.

Nothing under ``src/`` imports this package; the fleet only ever sees the finished model folder
``src/neuron/demo_model``. Tests import :mod:`training.data` for questions with known answers.
"""
