"""Code snippets in Python, curl and MCP that call the app's endpoints.

Credentials appear as the placeholders USER, PASSWORD and TOKEN, never as their values, because such code is
pasted into chats.
"""

import json
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from peft_core.access.visitors import TOKEN_HEADER, TOKEN_STORAGE_KEY
from peft_core.config import TrainConfig
from peft_core.errors import ConfigError
from peft_core.export.script.source import assign, call, literal

SERVER = "peft-workbench"
LINE_LENGTH = 88  # characters; longer calls are wrapped
_DEFAULTS = TrainConfig().to_dict()
_TOKEN_COMMENT = (
    "TOKEN is 64 random hex digits of your own, the same with each request. The page that this code comes "
    "from has a token too, which owns the runs that you see there. It is in the browser's local storage "
    f"under {TOKEN_STORAGE_KEY}."
)
_MCP_TOKEN = (  # the header's placeholder explains itself, because JSON has no comments
    f"TOKEN: 64 random hex digits of your own, or the page's, in the local storage under {TOKEN_STORAGE_KEY}"
)


class ApiCall(NamedTuple):
    """A call of an endpoint; `variable` receives its result."""

    variable: str
    endpoint: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class ApiAccess:
    """How a program reaches the app's endpoints.

    Attributes:
        url: where the app is served.
        login: whether the app requires a user name and a password.
        token: whether the app is a public demo, which identifies visitors by a token in each request.
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
    """Return code that predicts a text with a run and reads the run's status.

    Every value is quoted for its language. `tool_prefix` is the prefix of the MCP tool names on a Space.

    Returns:
        `python` and `curl`, which are whole programs; `mcp`, the settings of an MCP client (JSON) for an app
        served with `--mcp`; and `mcp_call`, the request of such a client (JSON-RPC).

    Raises:
        ConfigError: the URL of `access` is not an HTTP URL.
    """
    arguments = {"text": text, "run_id": run_id, "variant": variant, "text_pair": text_pair}
    calls = [ApiCall("answer", "predict", arguments), ApiCall("state", "status", {"run_id": run_id})]
    return _in_every_language(access, calls, tool_prefix)


def train_snippets(
    access: ApiAccess, settings: Mapping[str, Any], *, tool_prefix: str = ""
) -> dict[str, str]:
    """Return code that starts a training with these settings, without those that equal the defaults.

    Keys and errors are those of `snippets`.
    """
    arguments = {"settings": _non_default_settings(settings)}
    return _in_every_language(access, [ApiCall("run", "train", arguments)], tool_prefix)


def _non_default_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that differ from TrainConfig's defaults for their method and target modules."""
    config = TrainConfig.from_dict(settings).to_dict()
    method = {name: config[name] for name in ("method", "target_modules") if config[name] != _DEFAULTS[name]}
    defaults = TrainConfig.from_dict(method).to_dict()
    return method | {name: value for name, value in config.items() if value != defaults[name]}


def _in_every_language(access: ApiAccess, calls: Sequence[ApiCall], tool_prefix: str) -> dict[str, str]:
    access = replace(access, url=_checked_url(access.url))
    first = calls[0]
    tool = {"name": f"{tool_prefix}{first.endpoint}", "arguments": _without_empty_pair(first.arguments)}
    request = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": tool}
    return {
        "python": _python(access, calls),
        "curl": _curl(access, calls),
        "mcp": json.dumps({"mcpServers": {SERVER: _mcp_server(access)}}, indent=2) + "\n",
        "mcp_call": json.dumps(request, indent=2) + "\n",
    }


def _checked_url(url: str) -> str:
    """Return a URL without its trailing slash; ConfigError if it is not an HTTP URL."""
    try:
        parts = urlsplit(url)
        is_http = parts.scheme in ("http", "https") and bool(parts.hostname)
    except (ValueError, AttributeError):
        is_http = False
    if not is_http:
        raise ConfigError(f"The url is {url!r}; it must be the app's own URL, such as http://127.0.0.1:7860.")
    return url.rstrip("/")


def _without_empty_pair(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments without an empty `text_pair`."""
    return {name: value for name, value in arguments.items() if name != "text_pair" or value}


def _mcp_server(access: ApiAccess) -> dict[str, Any]:
    server: dict[str, Any] = {"url": f"{access.url}/gradio_api/mcp/"}
    return server | {"headers": {TOKEN_HEADER: _MCP_TOKEN}} if access.token else server


def _token_comment(access: ApiAccess) -> list[str]:
    """Return comment lines that explain TOKEN, for a program that sends it."""
    if not access.token:
        return []
    return textwrap.wrap(
        _TOKEN_COMMENT, LINE_LENGTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False
    )


def _python(access: ApiAccess, calls: Sequence[ApiCall]) -> str:
    client_arguments = [literal(access.url)]
    if access.login:
        client_arguments.append('auth=("USER", "PASSWORD")')
    if access.token:
        client_arguments.append(f"headers={literal({TOKEN_HEADER: 'TOKEN'})}")
    lines = [*_token_comment(access), "from gradio_client import Client\n"]
    lines.append(_call("client", "Client", client_arguments))
    for variable, endpoint, arguments in calls:
        keywords = [assign(name, value, "=") for name, value in _without_empty_pair(arguments).items()]
        keywords.append(f'api_name="/{endpoint}"')
        lines += [_call(variable, "client.predict", keywords), f"print({variable})"]
    return "\n".join(lines) + "\n"


def _call(variable: str, function: str, arguments: list[str]) -> str:
    """Return `variable = function(arguments)`, with one argument per line if it exceeds `LINE_LENGTH`."""
    line = f"{variable} = {function}({', '.join(arguments)})"
    fits = len(line) <= LINE_LENGTH and "\n" not in line
    return line if fits else call(f"{variable} = {function}", arguments)


def _curl(access: ApiAccess, calls: Sequence[ApiCall]) -> str:
    """Return a shell script; Gradio takes two requests per call: POST gives an event id, GET the result."""
    blocks, curl = [], "curl -sS"
    if access.token:
        blocks.append("\n".join([*_token_comment(access), "token=TOKEN\n"]))
        curl += f' -H "{TOKEN_HEADER}: $token"'
    if access.login:
        form = "--data-urlencode username=USER --data-urlencode password=PASSWORD"
        blocks.append(f"{curl} -o /dev/null -c cookies.txt {form} {shlex.quote(f'{access.url}/login')}\n")
        curl += " -b cookies.txt"
    for _, endpoint, arguments in calls:
        url = shlex.quote(f"{access.url}/gradio_api/call/{endpoint}")
        data = shlex.quote(json.dumps({"data": list(arguments.values())}))
        header = "-H 'Content-Type: application/json'"
        blocks.append(
            f'id=$({curl} {url} {header} \\\n  -d {data} | cut -d \'"\' -f 4)\n{curl} {url}/"$id"\n'
        )
    return "\n".join(blocks)
