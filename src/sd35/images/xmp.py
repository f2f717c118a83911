"""XMP packets: how JPEG, WebP and AVIF files carry the text that a PNG file has in its chunks.

XMP and not EXIF: each text keeps its name, all is UTF-8, the three formats have a place for it, and it may be longer
than the 64 KiB of a JPEG segment. Sources: the XMP specification (Adobe, 2012 and 2020), part 1 (ISO 16684-1) for
packets, part 3 section 1.1.3.1 for long ones in JPEG.
"""

import hashlib
import html
import re
import struct
from collections.abc import Iterable, Mapping
from xml.parsers import expat

NAMESPACE = "urn:sd35:record#"
_PREFIX = "sd35."  # of the PNG file's keys: `sd35.request` is the property `sd35:request`
_TOOL = "http://ns.adobe.com/xap/1.0/"
_NOTE = "http://ns.adobe.com/xmp/note/"
_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_NO_XML = re.compile("[\ufffe\uffff]")  # in JSON, everything else that XML does not allow is escaped anyhow
_ESCAPED = re.compile(r"(?<!\\)((?:\\\\)*)\\u(fffe|ffff)")  # as JSON has it: after an even number of backslashes

_STANDARD = b"http://ns.adobe.com/xap/1.0/\0"
_EXTENSION = b"http://ns.adobe.com/xmp/extension/\0"
_SEGMENT_BYTES = 65_000  # of a packet; with what stands before it, a segment has 65,535 at most


def to_xmp(text: Mapping[str, str]) -> bytes:
    """The packet that carries a record's texts: ASCII, or JSON."""
    names = {"Software": "xmp:CreatorTool"}
    return _packet(_meta({names.get(key) or key.replace(_PREFIX, "sd35:"): value for key, value in text.items()}))


def from_xmp(packet: bytes) -> dict[str, str]:
    """The texts in a packet; none if it is damaged or another program's. Takes time in proportion to its size."""
    content = packet.decode("utf-8", "replace").strip("\0 \n\r\t\ufeff")
    if "<!DOCTYPE" in content:  # no packet has one; entities could make a small file large
        return {}
    reader = _Reader()
    try:
        reader.parser.Parse(content, True)  # noqa: FBT003  the parser's own signature
    except expat.ExpatError:
        return {}
    return reader.text


class _Reader:
    """Collects the texts of a packet, from the attributes and the child elements of `rdf:Description`.

    Names are resolved here. The parser would write the whole namespace into each name: a namespace of 100 KB, used by
    10,000 elements, makes a gigabyte of a packet of 200 KB.
    """

    def __init__(self) -> None:
        self.text: dict[str, str] = {}
        self.parser = expat.ParserCreate()
        self.parser.buffer_text = True
        self.parser.StartElementHandler, self.parser.EndElementHandler = self._start, self._end
        self.parser.CharacterDataHandler = self._characters
        self._namespaces: dict[str, str] = {}  # those of interest, by the prefix that stands for them here
        self._open: list[tuple[bool, list[tuple[str, str | None]]]] = []  # is it a Description; what its prefixes were
        self._key: str | None = None  # of the text that is being read
        self._parts: list[str] = []

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._finish_text()
        before = []
        for attribute, value in attributes.items():
            xmlns, _, prefix = attribute.partition(":")
            if xmlns == "xmlns":
                before.append((prefix, self._namespaces.get(prefix)))
                self._bind(prefix, value)
        is_description = self._resolve(name) == (_RDF, "Description")
        if is_description:
            for attribute, value in attributes.items():
                if ":" in attribute and (key := _key_of(self._resolve(attribute))):
                    self.text[key] = _unescape(value)
        elif self._open and self._open[-1][0]:
            self._key = _key_of(self._resolve(name))
        self._open.append((is_description, before))

    def _end(self, _: str) -> None:
        self._finish_text()
        for prefix, namespace in reversed(self._open.pop()[1]):
            self._bind(prefix, namespace)

    def _characters(self, characters: str) -> None:
        if self._key:
            self._parts.append(characters)

    def _finish_text(self) -> None:
        """An element's text ends with the element, or where another begins in it."""
        if self._key:
            self.text[self._key] = _unescape("".join(self._parts))
        self._key, self._parts = None, []

    def _bind(self, prefix: str, namespace: str | None) -> None:
        if namespace in {_RDF, _TOOL, NAMESPACE}:
            self._namespaces[prefix] = namespace
        else:
            self._namespaces.pop(prefix, None)

    def _resolve(self, name: str) -> tuple[str | None, str]:
        prefix, _, local = name.rpartition(":")
        return self._namespaces.get(prefix), local


def _key_of(name: tuple[str | None, str]) -> str | None:
    """The key of a text in a PNG file, by its name in a packet; None if the text is none of a record's."""
    namespace, local = name
    if namespace == NAMESPACE:
        return _PREFIX + local
    return "Software" if (namespace, local) == (_TOOL, "CreatorTool") else None


def to_segments(packet: bytes) -> bytes:
    """A packet as a JPEG file's APP1 segments: one, or where it is longer, one that announces it and its parts."""
    if len(packet) <= _SEGMENT_BYTES:
        return _segment(_STANDARD + packet)
    name = hashlib.md5(packet, usedforsecurity=False).hexdigest().upper()
    parts = [
        _segment(_EXTENSION + name.encode() + struct.pack(">II", len(packet), start) + packet[start:][:_SEGMENT_BYTES])
        for start in range(0, len(packet), _SEGMENT_BYTES)
    ]
    return b"".join([_segment(_STANDARD + _packet(_meta({"xmpNote:HasExtendedXMP": name}))), *parts])


def is_xmp(segment: bytes) -> bool:
    """Whether an APP1 segment is a packet or a part of one."""
    return segment.startswith((_STANDARD, _EXTENSION))


def from_segments(segments: Iterable[bytes]) -> bytes:
    """The packet in the contents of a JPEG file's APP1 segments; b"" where there is none."""
    whole = b""
    parts: dict[int, bytes] = {}
    for segment in segments:
        if segment.startswith(_STANDARD):
            whole = segment.removeprefix(_STANDARD)
        elif segment.startswith(_EXTENSION) and len(segment) >= len(_EXTENSION) + 40:
            parts[struct.unpack_from(">I", segment, len(_EXTENSION) + 36)[0]] = segment[len(_EXTENSION) + 40 :]
    return b"".join(parts[start] for start in sorted(parts)) or whole


def _meta(properties: Mapping[str, str]) -> str:
    lines = "".join(
        f"<{name}>{html.escape(_escape(value), quote=False)}</{name}>\n" for name, value in properties.items()
    )
    return (
        f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{_RDF}"><rdf:Description rdf:about=""'
        f' xmlns:xmp="{_TOOL}" xmlns:xmpNote="{_NOTE}" xmlns:sd35="{NAMESPACE}">\n'
        f"{lines}</rdf:Description></rdf:RDF></x:xmpmeta>"
    )


def _escape(text: str) -> str:
    return _NO_XML.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _unescape(text: str) -> str:
    return _ESCAPED.sub(lambda found: found[1] + chr(int(found[2], 16)), text)


def _packet(meta: str) -> bytes:
    return f'<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>{meta}<?xpacket end="r"?>'.encode()


def _segment(content: bytes) -> bytes:
    return b"\xff\xe1" + struct.pack(">H", 2 + len(content)) + content
