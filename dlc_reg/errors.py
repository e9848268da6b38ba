"""The one exception for input that cannot be used."""

from __future__ import annotations


class InputError(ValueError, RuntimeError):
    """Bad input: says which argument, what was given, and what is expected (or the remedy).

    It is a `ValueError` for Python code and a `RuntimeError` for code written against Open3D, which raises that.
    """

    def __init__(self, argument: str, given: str, expected: str) -> None:
        super().__init__(argument, given, expected)  # all three, so that it pickles
        self.argument, self.given, self.expected = argument, given, expected

    def __str__(self) -> str:
        return f"{self.argument}: got {self.given}; expected {self.expected}"
