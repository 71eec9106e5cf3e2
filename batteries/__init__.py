"""Batteries: many cases of one kind of trouble, run by command, each with a count and the failures."""
