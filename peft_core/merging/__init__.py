"""Merging an adapter into its base model, and the certificate of a merge."""
