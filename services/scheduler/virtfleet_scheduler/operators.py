"""The little language of extra specs: an operator and operands (`>= 4`, `<in> avx`, `<or> a <or> b`), or a plain text.

Source: Nova's extra_specs_ops. Note that `=` of numbers means "at least", as there.
"""

import operator
from collections.abc import Callable, Mapping

_NUMERIC: Mapping[str, Callable[[float, float], bool]] = {
    "=": operator.ge, "==": operator.eq, "!=": operator.ne, ">=": operator.ge, "<=": operator.le,
}  # fmt: skip
_TEXTUAL: Mapping[str, Callable[[str, str], bool]] = {
    "s==": operator.eq, "s!=": operator.ne, "s<": operator.lt, "s<=": operator.le, "s>": operator.gt,
    "s>=": operator.ge,
}  # fmt: skip


def matches(value: str, wanted: str) -> bool:
    """Whether a host's value is what the extra spec wants. A number operator on what is no number does not match."""
    words = wanted.split()
    if not words:
        return value == wanted
    head, rest = words[0], words[1:]
    if head == "<or>":
        return value in {word for word in rest if word != "<or>"}
    if head == "<in>":
        return all(word in value for word in rest)
    if head == "<all-in>":
        return all(word in value.replace(",", " ").split() for word in rest)
    if head in _TEXTUAL:
        return _TEXTUAL[head](value, " ".join(rest))
    if head in _NUMERIC:
        return _compared(head, value, " ".join(rest))
    return value == wanted


def _compared(name: str, value: str, wanted: str) -> bool:
    try:
        return _NUMERIC[name](float(value), float(wanted))
    except ValueError:
        return False
