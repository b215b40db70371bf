"""OpenAI's Responses dialect, without its store: every request brings its whole conversation."""
