"""The console log is rotated, never truncated, and read as plain text."""

from pathlib import Path

import pytest
from virtfleet_compute_agent.hypervisor import console


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "console.log"


def boot(log: Path, text: bytes) -> None:
    console.rotate(log)
    log.write_bytes(text)


def test_rotation_keeps_three_and_the_output_reads_across_them(log: Path) -> None:
    for number in range(6):
        boot(log, f"boot {number}\n".encode())
    assert sorted(path.name for path in log.parent.iterdir()) == [
        "console.log",
        *(f"console.log.{n}" for n in (1, 2, 3)),
    ]
    assert console.read_tail(log, None) == "boot 2\nboot 3\nboot 4\nboot 5"


def test_an_empty_log_is_not_rotated(log: Path) -> None:
    boot(log, b"kept")
    boot(log, b"")
    console.rotate(log)
    assert console.read_tail(log, None) == "kept"


def test_boots_do_not_share_a_line(log: Path) -> None:
    boot(log, b"login: ")
    boot(log, b"boot")
    assert console.read_tail(log, None) == "login: \nboot"


@pytest.mark.parametrize(("length", "expected"), [(0, ""), (1, "c"), (2, "b\nc"), (9, "a\nb\nc"), (-1, "a\nb\nc")])
def test_the_last_lines(log: Path, length: int, expected: str) -> None:
    log.write_bytes(b"a\nb\nc\n")
    assert console.read_tail(log, length) == expected


def test_without_a_length_it_is_the_last_100_kib(log: Path) -> None:
    boot(log, b"old\n" * 50_000)
    boot(log, b"new\n" * 10)
    assert len(console.read_tail(log, None)) == pytest.approx(console.DEFAULT_BYTES, abs=4)


def test_no_log_is_no_output(log: Path) -> None:
    assert console.read_tail(log, 10) == ""


def test_control_characters_and_escape_sequences_go() -> None:
    raw = b"\x1b[2J\x1b[1;31mred\x1b[0m\x07\r\n\ttab\x00 \xc3\xa9 \xff\n\n"
    assert console.clean(raw) == "red\n\ttab é \ufffd"
