"""Conformance kits: tests that a plug-in inherits. They need pytest, and nothing else in the package loads them."""

import pytest

pytest.register_assert_rewrite("ambient_sci.testing.operators")  # failures then show both sides of an assertion

from ambient_sci.testing.operators import OperatorTests

__all__ = ["OperatorTests"]
