"""The page and the endpoints: a file for each tab and card. Handlers call the facade in `service/`."""
