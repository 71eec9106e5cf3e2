"""Chains of causes, and error messages without local paths."""

import errno

import pytest

from peft_core.errors import causes, reason_of
from peft_core.files.atomic import describe_disk_error


def chained(*errors: BaseException) -> BaseException:
    """Return the first error, with each error caused by the next."""
    for error, cause in zip(errors, errors[1:], strict=False):
        error.__context__ = cause
    return errors[0]


def test_causes_of_a_chain_lists_nearest_first() -> None:
    errors = [ValueError(1), OSError(2), KeyError(3)]
    assert causes(chained(*errors)) == errors


def test_describe_disk_error_cyclic_chain_terminates() -> None:
    first, second = ValueError("first"), ValueError("second")
    chained(first, second, first)
    assert causes(first) == [first, second]
    assert describe_disk_error(first) is None


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/data/runs/x/train.log"), "Permission denied"),
        (OSError(errno.ENOENT, "Failed to open local file '/data/a.parquet'"), "No such file or directory"),
        (OSError("cannot read /data/a.csv"), "cannot read a.csv"),
        (TimeoutError(), "TimeoutError"),
        (ValueError("no header in /data/runs/x.y/a.safetensors: cut"), "no header in a.safetensors: cut"),
        (ValueError("'~/my runs/a b.csv' and './c/d.csv'"), "'a b.csv' and './c/d.csv'"),
        (ValueError("see https://huggingface.co/docs/peft, 3/4 of it"), None),
    ],
)
def test_reason_of_error_hides_folders(error: Exception, words: str | None) -> None:
    assert reason_of(error) == (str(error) if words is None else words)
