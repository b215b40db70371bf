"""Measurements that are made by hand; nothing here gates a change or runs in CI."""
