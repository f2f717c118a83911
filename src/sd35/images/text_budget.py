"""The limit on the text that is read from one image file."""

import zlib

# The largest record that this project writes must fit. Its PNG file can hold the prompts twice: in the request's JSON
# and in AUTOMATIC1111's text. A prompt has at most 10,000 characters, and one character takes at most 8 bytes in both
# together (an emoji 4 and 4, a control character 6 and 1). Two prompts make 160,000 bytes, so 64 KiB is not enough.
MAX_TEXT_BYTES = 256 * 1024


class TextBudget:
    """The remaining bytes of text that may be read from one file.

    A text that exceeds the budget is skipped. Shorter texts after it are still read.
    """

    def __init__(self, max_bytes: int = MAX_TEXT_BYTES) -> None:
        self._left = max_bytes
        self.left_out: list[str] = []

    def allows(self, name: str, size_bytes: int) -> bool:
        """Return whether a text fits the budget. Subtracts its size if so, else adds its name to `left_out`."""
        if size_bytes > self._left:
            self.left_out.append(name)
            return False
        self._left -= size_bytes
        return True

    def decompress(self, name: str, content: bytes) -> bytes | None:
        """Decompress a zlib stream. Return None if it is damaged or exceeds the budget.

        Decompression stops when the text is too long. A stream that fails uses up the budget, because a file may hold
        thousands of them and each costs the time to decompress a whole budget.
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
