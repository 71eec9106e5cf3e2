"""Access control: which requests are answered, and for whom. No module here imports gradio."""
