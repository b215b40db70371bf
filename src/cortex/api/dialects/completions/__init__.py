"""OpenAI's first Completions: a prompt as text or tokens, and how it goes on."""
