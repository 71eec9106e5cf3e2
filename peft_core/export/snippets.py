"""The app's own endpoints as Python, curl and MCP, with a run's id and a text filled in."""

import json
import shlex
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from peft_core.config import TrainConfig
from peft_core.errors import ConfigError
from peft_core.export.script.source import assign, call, literal

SERVER = "peft-workbench"
SHORT = 88  # characters that a line of a copied text may have
_DEFAULTS = TrainConfig().to_dict()


def snippets(
    url: str,
    run_id: str,
    text: str,
    *,
    text_pair: str = "",
    variant: str = "adapter",
    auth: bool = False,
    tool_prefix: str = "",
) -> dict[str, str]:
    """How a program asks a run for its answer to a text, and how the run stands.

    `python` and `curl` are whole programs; `mcp` is what an MCP client's settings take (JSON) where the app
    is served with `--mcp`, and `mcp_call` the request (JSON-RPC) that such a client makes. `url` is where
    the app is served; with `auth` it asks for a name and a password, which stand as USER and PASSWORD.
    `tool_prefix` is what a Space puts before the names of its tools. Every value is quoted for the language
    that it stands in. Raises ConfigError for a `url` that is none.
    """
    asked = {"text": text, "run_id": run_id, "variant": variant, "text_pair": text_pair}
    steps = [("answer", "predict", asked), ("state", "status", {"run_id": run_id})]
    return _in_every_language(url, steps, auth, tool_prefix)


def train_snippets(
    url: str, settings: Mapping[str, Any], *, auth: bool = False, tool_prefix: str = ""
) -> dict[str, str]:
    """How a program starts a training with these settings: the same four texts. Raises as `snippets`.

    Settings that would come by themselves are left out.
    """
    return _in_every_language(url, [("run", "train", {"settings": _chosen(settings)})], auth, tool_prefix)


def _chosen(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without those that TrainConfig has for this method and these modules anyway."""
    wanted = TrainConfig.from_dict(settings).to_dict()
    first = {name: wanted[name] for name in ("method", "target_modules") if wanted[name] != _DEFAULTS[name]}
    usual = TrainConfig.from_dict(first).to_dict()
    return first | {name: value for name, value in wanted.items() if value != usual[name]}


def _in_every_language(
    url: str, steps: list[tuple[str, str, dict[str, Any]]], auth: bool, tool_prefix: str
) -> dict[str, str]:
    url = _checked(url)
    _, endpoint, arguments = steps[0]
    tool = {"name": f"{tool_prefix}{endpoint}", "arguments": _given(arguments)}
    request = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": tool}
    server = {"mcpServers": {SERVER: {"url": f"{url}/gradio_api/mcp/"}}}
    return {
        "python": _python(url, steps, auth),
        "curl": _curl(url, steps, auth),
        "mcp": json.dumps(server, indent=2) + "\n",
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


def _python(url: str, steps: list[tuple[str, str, dict[str, Any]]], auth: bool) -> str:
    login = ', auth=("USER", "PASSWORD")' if auth else ""
    blocks = ["from gradio_client import Client\n", f"client = Client({literal(url)}{login})"]
    for name, endpoint, arguments in steps:
        given = [assign(key, value, "=") for key, value in _given(arguments).items()]
        given.append(f'api_name="/{endpoint}"')
        line = f"{name} = client.predict({', '.join(given)})"
        fits = len(line) <= SHORT and "\n" not in line
        blocks += [line if fits else call(f"{name} = client.predict", given), f"print({name})"]
    return "\n".join(blocks) + "\n"


def _curl(url: str, steps: list[tuple[str, str, dict[str, Any]]], auth: bool) -> str:
    """Each endpoint is asked in two steps: the question gives a number, under which the answer comes."""
    blocks, cookies = [], ""
    if auth:
        cookies = " -b cookies.txt"
        form = "--data-urlencode username=USER --data-urlencode password=PASSWORD"
        blocks.append(f"curl -sS -o /dev/null -c cookies.txt {form} {shlex.quote(f'{url}/login')}\n")
    for _, endpoint, arguments in steps:
        where = shlex.quote(f"{url}/gradio_api/call/{endpoint}")
        data = shlex.quote(json.dumps({"data": list(arguments.values())}))
        header = "-H 'Content-Type: application/json'"
        blocks.append(
            f"id=$(curl -sS{cookies} {where} {header} \\\n"
            f"  -d {data} | cut -d '\"' -f 4)\n"
            f'curl -sS{cookies} {where}/"$id"\n'
        )
    return "\n".join(blocks)
