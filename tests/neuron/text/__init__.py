"""Tests of neuron.text."""
