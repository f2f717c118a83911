"""A limit on the amount of text that is read from one image file."""

import zlib

# The largest record that this project writes must fit. Its PNG file can contain the prompts twice: in the request's
# JSON and in the infotext. A prompt has at most 10,000 characters. A character takes at most 8 bytes in both together:
# 4 and 4 for an emoji, 6 and 1 for a control character. Two prompts take 160,000 bytes, so 64 KiB would not be enough.
MAX_TEXT_BYTES = 256 * 1024


class TextBudget:
    """The number of bytes of text that may still be read from a file.

    A text that exceeds the budget is skipped. Shorter texts after it can still be read. `left_out` has the names of
    skipped texts.
    """

    def __init__(self, max_bytes: int = MAX_TEXT_BYTES) -> None:
        self._left = max_bytes
        self.left_out: list[str] = []

    def allows(self, name: str, size_bytes: int) -> bool:
        """Return whether a text fits the budget. If so, subtract its size; otherwise, add its name to `left_out`."""
        if size_bytes > self._left:
            self.left_out.append(name)
            return False
        self._left -= size_bytes
        return True

    def decompress(self, name: str, content: bytes) -> bytes | None:
        """Decompress a zlib stream. Returns None if it is damaged or exceeds the budget.

        Decompression stops when the text exceeds the budget. A stream that fails uses up the budget: a file may contain
        thousands of them, and each would otherwise take the time to decompress as much text as the budget allows.
        """
        if len(content) > self._left:
            self.left_out.append(name)
            return None
        stream = zlib.decompressobj()
        try:
            text = stream.decompress(content, self._left + 1)
        except zlib.error:
            text = b""
        if stream.eof and self.allows(name, len(text)):
            return text
        self._left = 0
        self.left_out.append(name)
        return None
