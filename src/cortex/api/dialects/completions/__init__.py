"""OpenAI's legacy Completions dialect: continues a prompt given as text or tokens."""
