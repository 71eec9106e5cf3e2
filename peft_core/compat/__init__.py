"""Private or undocumented behavior of torch and transformers that this project relies on, in one place.

`tests/unit/test_compat.py` fails with the name of what another version has moved. What concerns gradio is in
`ui/sessions.py`, `ui/requests.py` and `ui/server.py`, since gradio is imported only in `ui/`.
"""
