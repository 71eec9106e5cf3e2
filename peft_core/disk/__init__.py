"""The disk of a public demo: what visitors use of it, their quotas, and what goes when it is short."""
