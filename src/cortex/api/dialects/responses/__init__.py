"""OpenAI's Responses, without their store: every request brings its whole conversation."""
