"""Benchmarks, run by command: each measures, prints a table, and may write it into docs/.

Numbers in the documentation come from these scripts; raw numbers are in `results/`. None of them is a test.
"""
