"""Pushing to the Hub under a person's own account, with a model card that fills itself."""
