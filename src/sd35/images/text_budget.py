"""A limit on the amount of text that is read from one image file."""

import zlib

# The texts of every file that this project writes must fit. A PNG file can contain each of its two prompts twice: in
# the JSON of the request, and in the infotext, which is the text in AUTOMATIC1111's format. A prompt has at most 10,000
# characters. A character takes at most 8 bytes in both copies together: 4 and 4 for an emoji, 6 and 1 for a control
# character. So the prompts take at most 160,000 bytes.
MAX_TEXT_BYTES = 256 * 1024


class TextBudget:
    """The number of bytes of text that may still be read from a file.

    A text that exceeds the budget is skipped. Shorter texts after it can still be read.

    Attributes:
        left_out: The names of the skipped texts.
    """

    def __init__(self, max_bytes: int = MAX_TEXT_BYTES) -> None:
        self._left = max_bytes
        self.left_out: list[str] = []

    def allows(self, name: str, size_bytes: int) -> bool:
        """Subtract the size of a text if it fits, else add its name to `left_out`. Return whether it fits."""
        if size_bytes > self._left:
            self.left_out.append(name)
            return False
        self._left -= size_bytes
        return True

    def decompress(self, name: str, content: bytes) -> bytes | None:
        """Decompress a zlib stream. Returns None if it is damaged or exceeds the budget.

        Decompression stops when the text exceeds the budget. A stream that fails uses up the whole budget. Otherwise, a
        file with thousands of such streams would take the time to decompress a full budget of text for each.
        """
        if len(content) > self._left:
            self.left_out.append(name)
            return None
        stream = zlib.decompressobj()
        try:
            text = stream.decompress(content, self._left + 1)  # one byte more shows that the text exceeds the budget
        except zlib.error:
            text = b""
        if stream.eof and self.allows(name, len(text)):
            return text
        self._left = 0
        self.left_out.append(name)
        return None
