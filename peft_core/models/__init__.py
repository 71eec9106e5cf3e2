"""Base models: where they come from, their shape, their head and their modules."""
