"""The app's own endpoints as Python, curl and MCP, with a run's id and a text filled in.

Credentials appear as the placeholders USER, PASSWORD and TOKEN, never as their values: such code is pasted
into chats.
"""

import json
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from peft_core.access.visitors import TOKEN_HEADER, TOKEN_STORAGE_KEY
from peft_core.config import TrainConfig
from peft_core.errors import ConfigError
from peft_core.export.script.source import assign, call, literal

SERVER = "peft-workbench"
SHORT = 88  # characters that a line of a copied text may have
_DEFAULTS = TrainConfig().to_dict()
_TOKEN_SENTENCE = (
    "TOKEN is 64 random hex digits of your own, the same with each request; the page that this code comes "
    "from keeps its own, which owns the runs that you see there, in the browser's local storage under "
    f"{TOKEN_STORAGE_KEY}."
)
_TOKEN_OF_MCP_CLIENT = (  # JSON has no comments
    f"TOKEN: 64 random hex digits of your own, or the page's, in the local storage under {TOKEN_STORAGE_KEY}"
)
Step = tuple[str, str, Mapping[str, Any]]  # a name for the answer, the endpoint, and its arguments


@dataclass(frozen=True)
class ApiAccess:
    """How a program reaches the app's endpoints.

    Attributes:
        url: where the app is served.
        login: whether the app asks for a user name and a password.
        token: whether the app is a public demo, which knows a visitor by the token that each request sends.
    """

    url: str
    login: bool = False
    token: bool = False


def snippets(
    access: ApiAccess,
    run_id: str,
    text: str,
    *,
    text_pair: str = "",
    variant: str = "adapter",
    tool_prefix: str = "",
) -> dict[str, str]:
    """How a program asks a run for its answer to a text, and how the run stands.

    `python` and `curl` are whole programs; `mcp` is what an MCP client's settings take (JSON) where the app
    is served with `--mcp`, and `mcp_call` the request (JSON-RPC) that such a client makes. `tool_prefix` is
    what a Space puts before the names of its tools. Every value is quoted for the language that it stands
    in. Raises ConfigError if the URL of `access` is none.
    """
    asked = {"text": text, "run_id": run_id, "variant": variant, "text_pair": text_pair}
    steps = [("answer", "predict", asked), ("state", "status", {"run_id": run_id})]
    return _in_every_language(access, steps, tool_prefix)


def train_snippets(
    access: ApiAccess, settings: Mapping[str, Any], *, tool_prefix: str = ""
) -> dict[str, str]:
    """How a program starts a training with these settings: the same four texts. Raises as `snippets`.

    Settings that would come by themselves are left out.
    """
    return _in_every_language(access, [("run", "train", {"settings": _chosen(settings)})], tool_prefix)


def _chosen(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without those that TrainConfig has for this method and these modules anyway."""
    wanted = TrainConfig.from_dict(settings).to_dict()
    first = {name: wanted[name] for name in ("method", "target_modules") if wanted[name] != _DEFAULTS[name]}
    usual = TrainConfig.from_dict(first).to_dict()
    return first | {name: value for name, value in wanted.items() if value != usual[name]}


def _in_every_language(access: ApiAccess, steps: Sequence[Step], tool_prefix: str) -> dict[str, str]:
    access = replace(access, url=_checked(access.url))
    _, endpoint, arguments = steps[0]
    tool = {"name": f"{tool_prefix}{endpoint}", "arguments": _given(arguments)}
    request = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": tool}
    return {
        "python": _python(access, steps),
        "curl": _curl(access, steps),
        "mcp": json.dumps({"mcpServers": {SERVER: _mcp_server(access)}}, indent=2) + "\n",
        "mcp_call": json.dumps(request, indent=2) + "\n",
    }


def _checked(url: str) -> str:
    """A URL without its last slash; ConfigError if it is no address of a web server."""
    try:
        parts = urlsplit(url)
        served = parts.scheme in ("http", "https") and bool(parts.hostname)
    except (ValueError, AttributeError):
        served = False
    if not served:
        raise ConfigError(f"The url is {url!r}; it takes the app's own, such as http://127.0.0.1:7860.")
    return url.rstrip("/")


def _given(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments without a second text that is not there."""
    return {name: value for name, value in arguments.items() if name != "text_pair" or value}


def _mcp_server(access: ApiAccess) -> dict[str, Any]:
    server: dict[str, Any] = {"url": f"{access.url}/gradio_api/mcp/"}
    return server | {"headers": {TOKEN_HEADER: _TOKEN_OF_MCP_CLIENT}} if access.token else server


def _token_comment(access: ApiAccess) -> list[str]:
    """Lines of a comment that say what TOKEN is, for a program that sends it."""
    if not access.token:
        return []
    return textwrap.wrap(
        _TOKEN_SENTENCE, SHORT, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False
    )


def _python(access: ApiAccess, steps: Sequence[Step]) -> str:
    client = [literal(access.url)]
    if access.login:
        client.append('auth=("USER", "PASSWORD")')
    if access.token:
        client.append(f"headers={literal({TOKEN_HEADER: 'TOKEN'})}")
    lines = [*_token_comment(access), "from gradio_client import Client\n", _call("client", "Client", client)]
    for name, endpoint, arguments in steps:
        given = [assign(key, value, "=") for key, value in _given(arguments).items()]
        given.append(f'api_name="/{endpoint}"')
        lines += [_call(name, "client.predict", given), f"print({name})"]
    return "\n".join(lines) + "\n"


def _call(name: str, function: str, arguments: list[str]) -> str:
    """`name = function(arguments)`, one argument a line if they do not fit on one."""
    line = f"{name} = {function}({', '.join(arguments)})"
    fits = len(line) <= SHORT and "\n" not in line
    return line if fits else call(f"{name} = {function}", arguments)


def _curl(access: ApiAccess, steps: Sequence[Step]) -> str:
    """Each endpoint is asked in two steps: the question gives a number, under which the answer comes."""
    blocks, curl = [], "curl -sS"
    if access.token:
        blocks.append("\n".join([*_token_comment(access), "token=TOKEN\n"]))
        curl += f' -H "{TOKEN_HEADER}: $token"'
    if access.login:
        form = "--data-urlencode username=USER --data-urlencode password=PASSWORD"
        blocks.append(f"{curl} -o /dev/null -c cookies.txt {form} {shlex.quote(f'{access.url}/login')}\n")
        curl += " -b cookies.txt"
    for _, endpoint, arguments in steps:
        where = shlex.quote(f"{access.url}/gradio_api/call/{endpoint}")
        data = shlex.quote(json.dumps({"data": list(arguments.values())}))
        header = "-H 'Content-Type: application/json'"
        blocks.append(
            f'id=$({curl} {where} {header} \\\n  -d {data} | cut -d \'"\' -f 4)\n{curl} {where}/"$id"\n'
        )
    return "\n".join(blocks)
