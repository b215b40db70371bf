"""Random failures of whole processes under load."""
