"""PEFT Workbench: python app.py serves the page; `demo` is the Gradio app that a Space looks for."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

REFUSED_SHARE = (
    "--share opens this app to anyone who has the link, with your files and your processor behind it: add "
    "--auth USER:PASS to let in only whom you tell, or --public to serve the limited public demo."
)


@dataclass(frozen=True)
class Options:
    """How the app is served; a host's environment sets the same (RUNS_DIR, PUBLIC_DEMO, SPACE_ID)."""

    host: str
    port: int | None
    share: bool
    public: bool
    auth: tuple[str, str] | None
    runs_dir: Path
    mcp: bool


def read_options(arguments: Sequence[str], environment: Mapping[str, str]) -> Options:
    """The command line over the environment; exits with one line for a wrong one."""
    parser = argparse.ArgumentParser(prog="app.py", description="Fine-tune, compare and try PEFT adapters.")
    parser.add_argument("--host", default=environment.get("GRADIO_SERVER_NAME", "127.0.0.1"), metavar="H")
    parser.add_argument("--port", type=int, metavar="P", help="default: the first free one from 7860")
    parser.add_argument("--share", action="store_true", help="a public link; needs --auth or --public")
    parser.add_argument(
        "--public", action="store_true", help="limits for strangers: presets only, short runs"
    )
    parser.add_argument("--auth", metavar="USER:PASS", help="ask for this name and password")
    parser.add_argument("--runs-dir", default=environment.get("RUNS_DIR", "runs"), metavar="DIR")
    parser.add_argument("--mcp", action="store_true", help="serve the endpoints to MCP clients too")
    given = parser.parse_args(arguments)
    if given.share and not (given.auth or given.public):
        parser.error(REFUSED_SHARE)
    user, colon, password = (given.auth or "").partition(":")
    if given.auth and not (user and colon and password):
        parser.error(f"--auth is {given.auth!r}; it takes USER:PASS.")
    hosted = environment.get("PUBLIC_DEMO", "").lower() in ("1", "true", "yes") or "SPACE_ID" in environment
    return Options(
        host=given.host,
        port=given.port,
        share=given.share,
        public=given.public or given.share or hosted,
        auth=(user, password) if given.auth else None,
        runs_dir=Path(given.runs_dir),
        mcp=given.mcp,
    )


SESSIONS = 200  # of pages whose state is kept, half a megabyte each; every call of the API without one is one
options = read_options(sys.argv[1:] if __name__ == "__main__" else [], os.environ)

if __name__ != "__mp_main__":  # the worker process imports this file again, and needs no page
    from peft_core.data.formats import MOST_BYTES
    from peft_core.ui.downloads import download_cache
    from peft_core.ui.page import build_page
    from peft_core.ui.theme import STYLE, THEME
    from peft_core.workbench import Workbench

    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    workbench = Workbench.open(options.runs_dir, public=options.public)
    demo = build_page(workbench)


def main() -> None:
    """Serve until stopped; a training that runs then goes on, and the next start finds it."""
    download_cache()
    workbench.start()
    demo.launch(
        server_name=options.host,
        server_port=options.port,
        share=options.share,
        auth=options.auth,
        mcp_server=options.mcp,
        allowed_paths=[],
        state_session_capacity=SESSIONS,
        max_file_size=MOST_BYTES if workbench.limits is None else workbench.limits.max_upload_bytes,
        show_error=True,
        theme=THEME,
        css_paths=[STYLE],
        footer_links=["api"],
    )


if __name__ == "__main__":
    main()
