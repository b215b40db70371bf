"""Tests of the demo model's data and of its shipped tokenizer and template."""
