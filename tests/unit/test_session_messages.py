"""Pending messages of each session."""

from asyncio import Queue

from peft_core.access.session_messages import SessionMessages


def messages_of(*sessions: str) -> SessionMessages:
    messages = SessionMessages(3)
    for session in sessions:
        messages[session] = Queue()
    return messages


def test_session_messages_over_limit_drop_least_recently_used() -> None:
    messages = messages_of("page", "a", "b")
    page_queue = messages["page"]
    messages["c"] = Queue()
    assert list(messages) == ["b", "page", "c"] and messages["page"] is page_queue
    assert "a" not in messages and messages.get("a") is None


def test_session_messages_iteration_does_not_count_as_use() -> None:
    messages = messages_of("a", "b", "c")
    assert len(list(messages.values())) == 3
    assert list(messages) == ["a", "b", "c"]


def test_session_messages_of_missing_session_accept_put_and_delete() -> None:
    messages = messages_of("a")
    messages["gone"].put_nowait("nobody reads this")
    del messages["gone"]
    assert list(messages) == ["a"] and messages["gone"].empty()
    del messages["a"]
    assert len(messages) == 0
