"""Who may use the app, and what a request must show for it; nothing here knows gradio."""
