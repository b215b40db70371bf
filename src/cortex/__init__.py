"""cortex: the gateway; one OpenAI-compatible API over every model of the fleet."""
