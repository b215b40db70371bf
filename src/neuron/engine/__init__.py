"""The inference engine: one process per loaded model, reached through ``messages``."""
