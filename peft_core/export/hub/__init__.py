"""Push to the Hub under the user's account, with a generated model card."""
