"""OpenAI's Chat Completions dialect: the one that most clients speak."""
