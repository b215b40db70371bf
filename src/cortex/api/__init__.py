"""The HTTP surface: dialects in, events out. Handlers hold no state beyond one request."""
