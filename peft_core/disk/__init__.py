"""Disk space of a public demo: usage of the visitors, their quotas, and removal of old files."""
