"""Tests that read as sentences, on real parts."""

import pytest

pytest.register_assert_rewrite("tests.world", "tests.witness", "tests.faults.mixture")
