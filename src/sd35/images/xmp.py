"""XMP packets: JPEG, WebP and AVIF files store in them the texts that a PNG file has in chunks.

XMP is used instead of EXIF, because each text has a name, the encoding is UTF-8, all three formats support it, and a
packet may exceed the 64 KiB of a JPEG segment. Sources: the XMP specification (Adobe, 2012 and 2020), part 1 (ISO
16684-1) for packets, and part 3, section 1.1.3.1, for long packets in JPEG.
"""

import hashlib
import html
import re
import struct
from collections.abc import Iterable, Mapping
from xml.parsers import expat

NAMESPACE = "urn:sd35:record#"
_PREFIX = "sd35."  # prefix of PNG keywords: `sd35.request` becomes the property `sd35:request`
_TOOL = "http://ns.adobe.com/xap/1.0/"
_NOTE = "http://ns.adobe.com/xmp/note/"
_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_NO_XML = re.compile("[\ufffe\uffff]")  # JSON escapes all other characters that XML does not allow
_ESCAPED = re.compile(r"(?<!\\)((?:\\\\)*)\\u(fffe|ffff)")  # a JSON escape follows an even number of backslashes

_STANDARD = b"http://ns.adobe.com/xap/1.0/\0"
_EXTENSION = b"http://ns.adobe.com/xmp/extension/\0"
_SEGMENT_BYTES = 65_000  # of the packet; including its header, a segment may have 65,535 bytes


def to_xmp(text: Mapping[str, str]) -> bytes:
    """Return a packet with the texts of a record, which are ASCII or JSON."""
    names = {"Software": "xmp:CreatorTool"}
    return _packet(_meta({names.get(key) or key.replace(_PREFIX, "sd35:"): value for key, value in text.items()}))


def from_xmp(packet: bytes) -> dict[str, str]:
    """Read the texts of a packet in linear time. Returns {} if it is damaged or another program wrote it."""
    content = packet.decode("utf-8", "replace").strip("\0 \n\r\t\ufeff")
    if "<!DOCTYPE" in content:  # not part of XMP; its entities could expand a small file to a huge text
        return {}
    reader = _Reader()
    try:
        reader.parser.Parse(content, True)  # noqa: FBT003  the parser's own signature
    except expat.ExpatError:
        return {}
    return reader.text


class _Reader:
    """Collects the texts of a packet from the attributes and child elements of `rdf:Description`.

    It resolves namespaces itself. The parser would copy the namespace into every name: a namespace of 100 KB, used by
    10,000 elements, would turn a packet of 200 KB into a gigabyte.
    """

    def __init__(self) -> None:
        self.text: dict[str, str] = {}
        self.parser = expat.ParserCreate()
        self.parser.buffer_text = True
        self.parser.StartElementHandler, self.parser.EndElementHandler = self._start, self._end
        self.parser.CharacterDataHandler = self._characters
        self._namespaces: dict[str, str] = {}  # the known namespaces, by their current prefix
        self._open: list[tuple[bool, list[tuple[str, str | None]]]] = []  # is a Description; prefixes to restore
        self._key: str | None = None  # PNG keyword of the text that is being read
        self._parts: list[str] = []

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._finish_text()
        rebound = []
        for attribute, value in attributes.items():
            xmlns, _, prefix = attribute.partition(":")
            if xmlns == "xmlns":
                rebound.append((prefix, self._namespaces.get(prefix)))
                self._bind(prefix, value)
        is_description = self._resolve(name) == (_RDF, "Description")
        if is_description:
            for attribute, value in attributes.items():
                if ":" in attribute and (key := _key_of(self._resolve(attribute))):
                    self.text[key] = _unescape(value)
        elif self._open and self._open[-1][0]:
            self._key = _key_of(self._resolve(name))
        self._open.append((is_description, rebound))

    def _end(self, _: str) -> None:
        self._finish_text()
        for prefix, namespace in reversed(self._open.pop()[1]):
            self._bind(prefix, namespace)

    def _characters(self, characters: str) -> None:
        if self._key:
            self._parts.append(characters)

    def _finish_text(self) -> None:
        """Store the current text. It ends at the end of its element or at the first child element."""
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
    """Return the PNG keyword of a property, or None if the property is not part of a record."""
    namespace, local = name
    if namespace == NAMESPACE:
        return _PREFIX + local
    return "Software" if (namespace, local) == (_TOOL, "CreatorTool") else None


def to_segments(packet: bytes) -> bytes:
    """Split a packet into APP1 segments of a JPEG file. The first segment of a long packet refers to the others."""
    if len(packet) <= _SEGMENT_BYTES:
        return _segment(_STANDARD + packet)
    name = hashlib.md5(packet, usedforsecurity=False).hexdigest().upper()
    parts = [
        _segment(_EXTENSION + name.encode() + struct.pack(">II", len(packet), start) + packet[start:][:_SEGMENT_BYTES])
        for start in range(0, len(packet), _SEGMENT_BYTES)
    ]
    return b"".join([_segment(_STANDARD + _packet(_meta({"xmpNote:HasExtendedXMP": name}))), *parts])


def is_xmp(segment: bytes) -> bool:
    """Return whether an APP1 segment contains a packet or a part of one."""
    return segment.startswith((_STANDARD, _EXTENSION))


def from_segments(segments: Iterable[bytes]) -> bytes:
    """Join the packet in the APP1 segments of a JPEG file. Returns b"" if they contain none."""
    packet = b""
    parts: dict[int, bytes] = {}
    for segment in segments:
        if segment.startswith(_STANDARD):
            packet = segment.removeprefix(_STANDARD)
        elif segment.startswith(_EXTENSION) and len(segment) >= len(_EXTENSION) + 40:
            parts[struct.unpack_from(">I", segment, len(_EXTENSION) + 36)[0]] = segment[len(_EXTENSION) + 40 :]
    return b"".join(parts[start] for start in sorted(parts)) or packet


def _meta(properties: Mapping[str, str]) -> str:
    lines = "".join(f"<{key}>{html.escape(_escape(text), quote=False)}</{key}>\n" for key, text in properties.items())
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
