"""Tests of the measurements' arithmetic; nothing is measured here."""
