"""The table of the messages that wait for each session."""

from asyncio import Queue

from peft_core.access.session_messages import SessionMessages


def filled(*sessions: str) -> SessionMessages:
    messages = SessionMessages(3)
    for session in sessions:
        messages[session] = Queue()
    return messages


def test_session_that_was_used_stays_and_the_longest_unused_goes() -> None:
    messages = filled("page", "a", "b")
    of_page = messages["page"]
    messages["c"] = Queue()
    assert list(messages) == ["b", "page", "c"] and messages["page"] is of_page
    assert "a" not in messages and messages.get("a") is None


def test_looking_through_all_sessions_is_no_use_of_them() -> None:
    messages = filled("a", "b", "c")
    assert len(list(messages.values())) == 3
    assert list(messages) == ["a", "b", "c"]


def test_session_that_is_gone_is_written_to_and_let_go_without_an_error() -> None:
    messages = filled("a")
    messages["gone"].put_nowait("nobody reads this")
    del messages["gone"]
    assert list(messages) == ["a"] and messages["gone"].empty()
    del messages["a"]
    assert len(messages) == 0
