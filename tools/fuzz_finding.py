"""What `fuzz.py` looks for."""

from __future__ import annotations


class Finding(Exception):
    """What should not have happened; `content` and `suffix` are the file's, where there is one."""

    def __init__(self, reason: str, content: bytes = b"", suffix: str = "") -> None:
        super().__init__(reason)
        self.content, self.suffix = content, suffix
