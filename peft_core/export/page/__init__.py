"""A static page that runs the classifier in the visitor's browser."""
