"""Anthropic's Messages dialect: blocks of text, thinking and tool calls."""
