"""Agents that people use, run non-interactively against a fleet; installed from npm."""
