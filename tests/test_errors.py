"""What an error came of, and what it says without the machine's paths."""

import errno

import pytest

from peft_core.errors import causes, reason_of
from peft_core.files.atomic import describe_disk_error


def chained(*errors: BaseException) -> BaseException:
    """The first error, each made from the next."""
    for error, cause in zip(errors, errors[1:], strict=False):
        error.__context__ = cause
    return errors[0]


def test_causes_of_a_chain_are_the_nearest_first() -> None:
    errors = [ValueError(1), OSError(2), KeyError(3)]
    assert causes(chained(*errors)) == errors


def test_describe_disk_error_of_errors_in_a_cycle_ends() -> None:
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
def test_reason_of_an_error_names_no_folder(error: Exception, words: str | None) -> None:
    assert reason_of(error) == (str(error) if words is None else words)
