"""The options of the command line that serves the page, with environment variables as defaults."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from peft_core.access.guard import HUGGING_FACE, SHARED_PAGES, PagePolicy
from peft_core.access.hosts import AllowedHosts, is_loopback
from peft_core.access.passwords import Credentials
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


def read_options(
    arguments: Sequence[str], environment: Mapping[str, str], *, program: str = "app.py"
) -> Options:
    """Return the options; exit with one line on stderr for an invalid one."""
    parser = _parser(program, environment)
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


def _parser(program: str, environment: Mapping[str, str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=program, description="Fine-tune, compare and try PEFT adapters.")
    add = parser.add_argument
    add("--host", default=environment.get("GRADIO_SERVER_NAME", "127.0.0.1"), metavar="H")
    add("--port", type=int, metavar="P", help="default: the first free one from 7860")
    add("--share", action="store_true", help="a public link; needs --auth or --public")
    add("--public", action="store_true", help="limits for visitors: presets only, short runs")
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
