"""cortex: the gateway; one OpenAI- and Anthropic-compatible API over every model of the fleet."""

__version__ = "0.1.0"
