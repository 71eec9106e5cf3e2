"""What the request that is being answered shows of who sent it."""

from gradio.context import LocalContext


def may_name_files() -> bool:
    """Whether the sender may name files of this machine in settings: the app's own page, or after a login.

    The guard has refused every `Origin` and `Sec-Fetch-Site` that is not the app's own, so that their mere
    presence tells its page from a program. Outside a request it is the app itself that asks.
    """
    request = LocalContext.request.get(None)  # gradio sets it for each call of a handler
    if request is None or request.username:
        return True
    return "origin" in request.headers or request.headers.get("sec-fetch-site") == "same-origin"
