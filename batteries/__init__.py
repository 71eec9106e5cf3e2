"""Batteries: commands that run many cases of one kind of fault and report the count and the failures."""
