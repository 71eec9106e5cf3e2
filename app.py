"""PEFT Workbench: `python app.py` serves the page.

`demo` is the Gradio app that a Space looks for; launched without `main` it has no guard and no login.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from peft_core.access.guard import HUGGING_FACE, SHARED_PAGES, PagePolicy, RequestGuard, guard_lifespan
from peft_core.access.hosts import AllowedHosts, is_loopback
from peft_core.access.page_script import PageScript
from peft_core.access.passwords import Credentials, Login
from peft_core.access.session_messages import SessionMessages
from peft_core.errors import ConfigError

UNGUARDED = (
    "{flag} opens this app to {visitors}, with your files and your processor behind it: add --auth USER:PASS "
    "(or AUTH, or --auth-file) to ask for a login, or --public to serve the limited public demo."
)
MCP_WITH_LOGIN = (
    "--mcp cannot ask for a password: gradio lists its tools to whoever connects, before a login. Serve MCP "
    "on this machine without --auth, or leave out --mcp."
)
MAX_PROXIES = 10


@dataclass(frozen=True)
class Options:
    """The options of the command line, with environment variables as defaults."""

    host: str
    port: int | None
    share: bool
    public: bool
    credentials: Credentials | None
    hosts: AllowedHosts
    policy: PagePolicy
    runs_dir: Path
    examples: tuple[str, ...]
    mcp: bool
    proxies: int


def read_options(arguments: Sequence[str], environment: Mapping[str, str]) -> Options:
    """Return the options; exit with one line on stderr for an invalid one."""
    parser = _parser(environment)
    flags = parser.parse_args(arguments)
    hosted = environment.get("PUBLIC_DEMO", "").lower() in ("1", "true", "yes") or "SPACE_ID" in environment
    try:
        credentials = Credentials.find(flags.auth, flags.auth_file, environment)
        names = [*flags.allow_host, *environment.get("ALLOW_HOST", "").split()]
        hosts = AllowedHosts(flags.host, [*names, *environment.get("SPACE_HOST", "").split()])
    except ConfigError as error:
        parser.error(str(error))
    if not (credentials or flags.public or hosted):
        if flags.share:
            parser.error(UNGUARDED.format(flag="--share", visitors="anyone who has the link"))
        if not is_loopback(flags.host):
            flag = f"--host {flags.host}"
            parser.error(UNGUARDED.format(flag=flag, visitors="everyone on your network"))
    if credentials and flags.mcp:
        parser.error(MCP_WITH_LOGIN)
    public = flags.public or flags.share or hosted
    return Options(
        host=flags.host,
        port=flags.port,
        share=flags.share,
        public=public,
        credentials=credentials,
        hosts=hosts,
        policy=PagePolicy(
            links=public or not is_loopback(flags.host),
            frames=HUGGING_FACE if "SPACE_ID" in environment else (),
            scripts=(SHARED_PAGES,) if flags.share else (),
        ),
        runs_dir=Path(flags.runs_dir),
        examples=(*flags.example, *environment.get("EXAMPLES", "").split()),
        mcp=flags.mcp,
        proxies=flags.proxies,
    )


def _parser(environment: Mapping[str, str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="app.py", description="Fine-tune, compare and try PEFT adapters.")
    add = parser.add_argument
    add("--host", default=environment.get("GRADIO_SERVER_NAME", "127.0.0.1"), metavar="H")
    add("--port", type=int, metavar="P", help="default: the first free one from 7860")
    add("--share", action="store_true", help="a public link; needs --auth or --public")
    add("--public", action="store_true", help="limits for strangers: presets only, short runs")
    add("--auth", metavar="USER:PASS", help="ask for this name and password (or AUTH)")
    add("--auth-file", metavar="FILE", help="as --auth, from the first line of a file")
    add("--allow-host", action="append", default=[], metavar="NAME", help="also answer under this name")
    proxies = environment.get("TRUSTED_PROXIES") or ("1" if "SPACE_ID" in environment else "0")
    add("--proxies", type=_count, default=proxies, metavar="N", help="proxies in front of the app")
    add("--runs-dir", default=environment.get("RUNS_DIR", "runs"), metavar="DIR")
    add("--example", action="append", default=[], metavar="RUN", help="a run that every visitor may read")
    add("--mcp", action="store_true", help="serve the endpoints to MCP clients too")
    return parser


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 3 and int(text) <= MAX_PROXIES):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to {MAX_PROXIES}")
    return int(text)


# Sessions whose state gradio keeps, half a megabyte each; an API call without a session starts one.
SESSIONS, PUBLIC_SESSIONS = 200, 500

# The worker process imports this file again, and needs no page.
if TYPE_CHECKING or __name__ != "__mp_main__":
    from peft_core.access.gate import PublicGate
    from peft_core.access.upload_room import UploadRoom
    from peft_core.data.formats import MAX_FILE_BYTES
    from peft_core.service.workbench import Workbench
    from peft_core.ui.downloads import download_cache
    from peft_core.ui.page import build_page
    from peft_core.ui.requests import local_visitor, pending_sessions, public_visitor
    from peft_core.ui.theme import STYLE, THEME, VISITOR_SCRIPT

    options = read_options(sys.argv[1:] if __name__ == "__main__" else [], os.environ)
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    workbench = Workbench.open(
        options.runs_dir,
        public=options.public,
        visitor=public_visitor if options.public else local_visitor,
        examples=options.examples,
    )
    demo = build_page(workbench)


def main() -> None:
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
        sys.exit("The guard against foreign requests is not in place: this gradio starts in another way.")
    if demo.share_url:
        options.hosts.add_url(demo.share_url)
    demo.block_thread()


if __name__ == "__main__":
    main()
