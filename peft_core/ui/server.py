"""Serve the page: gradio behind the guard, and on a public demo behind the gate, as the options say."""

import os
import sys
from functools import partial

import gradio as gr

from peft_core.access.gate import PublicGate
from peft_core.access.guard import RequestGuard, guard_lifespan
from peft_core.access.page_script import PageScript
from peft_core.access.passwords import Login
from peft_core.access.session_messages import SessionMessages
from peft_core.access.upload_room import UploadRoom
from peft_core.data.formats import MAX_FILE_BYTES
from peft_core.service.workbench import Workbench
from peft_core.ui.downloads import download_cache
from peft_core.ui.options import Options
from peft_core.ui.page import build_page
from peft_core.ui.requests import local_visitor, pending_sessions, public_visitor
from peft_core.ui.theme import STYLE, THEME, VISITOR_SCRIPT

# Sessions whose state gradio keeps, half a megabyte each; an API call without a session starts one.
SESSIONS, PUBLIC_SESSIONS = 200, 500


def open_app(options: Options) -> tuple[Workbench, gr.Blocks]:
    """Return the workbench and its page; nothing is started or written yet."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    workbench = Workbench.open(
        options.runs_dir,
        public=options.public,
        visitor=public_visitor if options.public else local_visitor,
        examples=options.examples,
    )
    return workbench, build_page(workbench)


def serve(options: Options, workbench: Workbench, demo: gr.Blocks) -> None:
    """Serve until stopped; a training that runs then continues, and the next start of the app finds it."""
    download_cache()
    workbench.start()
    # gradio declares an LRUCache, and uses it as a mapping only
    demo._queue.pending_messages_per_session = SessionMessages()  # pyright: ignore[reportAttributeAccessIssue]
    layers = []
    if workbench.limits is not None:
        room, pending = UploadRoom(download_cache().root.parent), partial(pending_sessions, demo._queue)
        gate = partial(PublicGate, limits=workbench.limits, room=room, pending=pending)
        layers = [gate, partial(PageScript, script=VISITOR_SCRIPT.read_text())]
        demo.api_open = False  # direct calls would bypass the queue and its limits
        demo._queue.max_size = workbench.limits.max_queue  # `demo.queue()` would make a new queue
    lifespan = guard_lifespan(options.hosts, options.policy, layers, proxies=options.proxies)
    verify = Login(options.credentials).verify if options.credentials else None
    demo.launch(
        server_name=options.host,
        server_port=options.port,
        share=options.share,
        auth=verify,  # pyright: ignore[reportArgumentType] - gradio also awaits a coroutine function
        mcp_server=options.mcp,
        allowed_paths=[],
        state_session_capacity=PUBLIC_SESSIONS if options.public else SESSIONS,
        max_file_size=MAX_FILE_BYTES if workbench.limits is None else workbench.limits.max_upload_bytes,
        show_error=not options.public,  # of a bug, whose message may name paths of this machine
        theme=THEME,
        css_paths=[STYLE],
        footer_links=["api"],
        app_kwargs={"lifespan": lifespan, "openapi_url": None},
        run_history=False,  # its routes give the host's own Hub token to any client on this machine
        enable_monitoring=False,  # its summary would show everyone the requests of all visitors
        ssr_mode=False,  # its server in front of the app would bypass the guard
        num_workers=0,  # servers beside the app would not be guarded
        prevent_thread_lock=True,
    )
    if not isinstance(demo.app.middleware_stack, RequestGuard):
        demo.close()
        sys.exit("The guard against cross-site requests is not in place: this gradio starts differently.")
    if demo.share_url:
        options.hosts.add_url(demo.share_url)
    demo.block_thread()
