"""What the page and the API call: the worker process and its tasks, the queue, a public demo's limits."""
