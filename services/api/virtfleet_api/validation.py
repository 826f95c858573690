"""Bodies and query arguments: strict models, and messages that name the field, its value and the rule, as Nova's do."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError
from virtfleet_common.errors import BadRequest

M = TypeVar("M", bound=BaseModel)
_LONGEST_SHOWN = 100


class Body(BaseModel):
    """A part of a request's body: nothing is converted, unknown fields are refused.

    `SINCE` and `UNTIL` name the microversions of fields that were not, or are no longer, in every one; `NEEDED_UNTIL`
    of those that had to be there.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    SINCE: ClassVar[Mapping[str, int]] = {}
    UNTIL: ClassVar[Mapping[str, int]] = {}
    NEEDED_UNTIL: ClassVar[Mapping[str, int]] = {}

    @model_validator(mode="before")
    @classmethod
    def _check_versions(cls, data: Any, info: ValidationInfo) -> Any:
        if (cls.SINCE or cls.UNTIL) and isinstance(data, dict) and info.context:
            version = info.context["version"]
            for name, until in cls.NEEDED_UNTIL.items():
                if version <= until and name not in data:
                    raise PydanticCustomError("missing", "{name}", {"name": name})
            for name in data:
                if not cls.SINCE.get(name, 0) <= version <= cls.UNTIL.get(name, version):
                    raise PydanticCustomError("extra_forbidden", "{name}", {"name": name})
        return data


def _from_digits(value: Any) -> Any:
    if isinstance(value, str) and value.removeprefix("-").isdecimal() and len(value) <= 20:
        return int(value)
    return value


_TRUE = {"1", "t", "true", "on", "y", "yes"}
_FALSE = {"0", "f", "false", "off", "n", "no"}


def _from_word(value: Any) -> Any:
    if isinstance(value, str):
        return True if value.lower() in _TRUE else False if value.lower() in _FALSE else value
    return value


Whole = Annotated[int, BeforeValidator(_from_digits), Field(le=2**31 - 1)]
"""A whole number; digits in quotes are one too, as Nova's clients write them."""
Flag = Annotated[bool, BeforeValidator(_from_word)]
"""A boolean; its usual words are one too."""
Name = Annotated[str, Field(min_length=1, max_length=255, pattern=r"\S")]
MetaKey = Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[a-zA-Z0-9-_:. ]+$")]
MetaValue = Annotated[str, Field(max_length=255)]
Metadata = dict[MetaKey, MetaValue]


def validated(model: type[M], content: Any, version: int) -> M:
    """`content` as `model`. Raises BadRequest with Nova's words."""
    try:
        return model.model_validate(content, context={"version": version})
    except ValidationError as error:
        raise BadRequest(_complaint(error.errors()[0]), rule="body.schema") from None


def _complaint(error: ErrorDetails) -> str:
    *_, last = error["loc"] or ("",)
    name = error.get("ctx", {}).get("name", last)
    if error["type"] == "extra_forbidden":
        return f"Additional properties are not allowed ('{name}' was unexpected)."
    if error["type"] == "missing":
        return f"'{name}' is a required property{_inside(error['loc'])}."
    where = "/".join(str(part) for part in error["loc"])
    value = repr(error["input"])[:_LONGEST_SHOWN]
    return f"Invalid input for field/attribute {where or 'body'}. Value: {value}. {error['msg']}."


def _inside(loc: tuple[int | str, ...]) -> str:
    return f" of '{'/'.join(str(part) for part in loc[:-1])}'" if len(loc) > 1 else ""


def whole_argument(name: str, value: str | None, default: int) -> int:
    """A query argument that is a whole number >= 0. Raises BadRequest."""
    if value is None:
        return default
    if not value.isdecimal() or len(value) > 10:
        raise _bad_argument(name, value, "number", "It must be a number >= 0.")
    return int(value)


def flag_argument(name: str, value: str | None, default: bool = False) -> bool:
    """A query argument that is a boolean; present and empty means yes, as in Nova. Raises BadRequest."""
    if value is None:
        return default
    word = _from_word(value)
    if value and not isinstance(word, bool):
        raise _bad_argument(name, value, "boolean", "It must be a boolean.")
    return word is not False


def time_argument(name: str, value: str | None) -> datetime | None:
    """A query argument that is an ISO 8601 time, UTC where it names no zone. Raises BadRequest."""
    if value is None:
        return None
    try:
        # A plus sign that the client did not quote arrives as a space.
        at = datetime.fromisoformat(value.replace(" ", "+") if "T" in value else value)
    except ValueError:
        raise _bad_argument(name, value, "time", "It is not an ISO 8601 time.") from None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _bad_argument(name: str, value: str, kind: str, why: str) -> BadRequest:
    message = f"Invalid input for query parameters {name}. Value: {value[:_LONGEST_SHOWN]}. {why}"
    return BadRequest(message, rule=f"query.{kind}")
