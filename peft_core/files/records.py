"""Records on disk: JSON with typed fields, a schema version and a digest, validated by `read_record`.

Invalid bytes, JSON nested too deep, NaN, a field of a wrong type or a changed bit all raise DamagedError.
`upgrade` converts records of earlier versions.
"""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, NoReturn, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from peft_core.errors import DamagedError
from peft_core.files.atomic import Stamp, open_regular, stamp_of, write_json

SCHEMA_VERSION = 1  # of all records; 0 is the layout before records had a version
Finite = Annotated[float, Field(allow_inf_nan=False)]
Seconds = Annotated[float, Field(allow_inf_nan=False, ge=0, lt=1e11)]  # since the epoch
_DIGEST = "sha256"
_MAX_CACHED = 4096  # records
_cache: dict[tuple[str, type, bool], tuple[Stamp | None, Any]] = {}
AnyRecord = TypeVar("AnyRecord", bound="Record")


class Record(BaseModel):
    """Base class of the records: frozen, with strict types; unknown entries are ignored."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    schema_version: int = SCHEMA_VERSION

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Create a record from JSON types of this or an earlier schema version.

        Raises:
            DamagedError: A field is invalid.
        """
        try:
            return cls.model_validate_json(json.dumps(upgrade(cls.__name__, values)))
        except (ValidationError, ValueError, RecursionError) as error:
            raise DamagedError(_first_problem(error)) from error

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return self.model_dump(mode="json")

    def replace(self, **changes: Any) -> Self:
        """Return a validated copy with some fields changed."""
        return type(self).from_dict({**self.to_dict(), **changes})


def upgrade(kind: str, values: dict[str, Any]) -> dict[str, Any]:
    """Convert the entries of a record of an earlier schema version to the current version.

    Raises:
        ValueError: The version is unknown.
    """
    version = values.get("schema_version", 0)
    if isinstance(version, bool) or not isinstance(version, int) or not 0 <= version <= SCHEMA_VERSION:
        raise ValueError(f"its schema_version is {version!r}; this version supports 0 to {SCHEMA_VERSION}")
    if version == 0 and kind == "RunResult":
        values = {"problem_type": "single_label_classification", **values}
        if "majority" in values:  # earlier name of the baseline
            values["baseline"] = values.pop("majority")
    return {**values, "schema_version": SCHEMA_VERSION}


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        DamagedError: The file is missing, unreadable, or not a JSON object.
    """
    try:
        with open_regular(path) as file:
            content = json.loads(file.read().decode("utf-8"), parse_constant=_refuse_constant)
    except FileNotFoundError as error:
        raise DamagedError(f"{path.name} is missing.") from error
    except OSError as error:
        raise DamagedError(f"{path.name} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path.name} is damaged: it is not valid JSON.") from error
    if not isinstance(content, dict):
        raise DamagedError(f"{path.name} is damaged: it is not a JSON object.")
    return content


def read_record(path: Path | str, kind: type[AnyRecord], *, sealed: bool = False) -> AnyRecord:
    """Read a record from its file, cached until the file's time, size or inode changes.

    The cache matters since each page polls every second for every listed run.

    Args:
        path: The file, as a string where the creation of a `Path` would be too slow.
        kind: The record's class.
        sealed: Whether `write_sealed` wrote the file, so that it is damaged if its digest is missing.

    Raises:
        DamagedError: The file is missing or damaged; the message names it.
    """
    stamp, key = stamp_of(path), (str(path), kind, sealed)
    cached = _cache.get(key)
    if cached is None or stamp is None or cached[0] != stamp:
        cached = (stamp, _parse_record(Path(path), kind, sealed))
        if len(_cache) >= _MAX_CACHED:
            _cache.clear()
        _cache[key] = cached
    return cached[1]


def write_sealed(path: Path, record: Record) -> None:
    """Write a record atomically, with a digest of its entries, so that a changed bit is noticed."""
    values = record.to_dict()
    write_json(path, {**values, _DIGEST: _digest(values)})


def _parse_record(path: Path, kind: type[AnyRecord], sealed: bool) -> AnyRecord:
    values = read_json(path)
    if sealed and values.get("schema_version", 0) != 0 and _DIGEST not in values:
        raise DamagedError(f"{path.name} is damaged: its digest is missing.")
    if _DIGEST in values and values.pop(_DIGEST) != _digest(values):
        raise DamagedError(f"{path.name} is damaged: its content has changed.")
    try:
        return kind.from_dict(values)
    except DamagedError as error:
        raise DamagedError(f"{path.name} is damaged: {error}.") from error


def _digest(values: dict[str, Any]) -> str:
    canonical = json.dumps(values, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not valid JSON")


def _first_problem(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "it"
        return f"{where} is {str(first.get('input'))[:60]!r} ({first['msg']})"
    return str(error) or type(error).__name__
