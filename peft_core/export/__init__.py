"""Exports of a run: one file or subpackage for each kind."""
