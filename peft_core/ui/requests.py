"""Who sent the request that is being answered."""

from gradio.context import LocalContext


def may_name_files() -> bool:
    """Whether the sender may name files of this machine in settings: the page, or anyone who logged in.

    The guard refuses an `Origin` and a `Sec-Fetch-Site` that are not the app's own, so a request that has one
    came from the page, or from a program that imitates it. Outside a request it is the app itself that asks.
    """
    request = LocalContext.request.get(None)  # gradio sets it for each call of a handler
    if request is None:
        return LocalContext.blocks.get(None) is None
    if getattr(request, "username", None):
        return True
    return "origin" in request.headers or request.headers.get("sec-fetch-site") == "same-origin"
