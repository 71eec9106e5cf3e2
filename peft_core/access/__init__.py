"""Access control: which requests are answered, and for whom. No module here imports gradio.

A request passes, in this order: `guard.py` (Host, Origin, Sec-Fetch-Site), on a public demo `gate.py` (rates,
sessions, bodies), then gradio, a handler of `ui/`, the facade in `service/workbench.py`, and `run_access.py`,
which finds a run only for those who may read or change it.

An upload passes the same way: `gate.py` reserves room for it (`upload_room.py`, `bodies.py`), gradio stores
it in its cache, `ui/data_card.py` hands it to `Workbench.upload`, which checks the files and reserves disk
space, and `service/visitor_uploads.py` stores it in the visitor's folder and counts its rows in a worker.
"""
