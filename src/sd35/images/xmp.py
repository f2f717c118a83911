"""Write and read XMP packets. They hold in JPEG, WebP and AVIF files the texts that a PNG file has in chunks.

XMP is used instead of EXIF, because each text has a name, the encoding is UTF-8, all three formats support it, and a
packet may exceed the 64 KiB of a JPEG segment. Sources: the XMP specification (Adobe, 2012 and 2020), part 1 (ISO
16684-1) for packets, and part 3, section 1.1.3.1, for long packets in JPEG.
"""

import hashlib
import html
import re
import struct
from collections.abc import Iterable, Mapping
from typing import NamedTuple
from xml.parsers import expat

NAMESPACE = "urn:sd35:record#"
_PREFIX = "sd35."  # prefix of PNG keywords: `sd35.request` becomes the property `sd35:request`
_TOOL = "http://ns.adobe.com/xap/1.0/"
_NOTE = "http://ns.adobe.com/xmp/note/"
_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_NOT_IN_XML = re.compile("[\ufffe\uffff]")  # JSON escapes all other characters that XML does not allow
_ESCAPED = re.compile(r"(?<!\\)((?:\\\\)*)\\u(fffe|ffff)")  # a JSON escape follows an even number of backslashes

_STANDARD = b"http://ns.adobe.com/xap/1.0/\0"
_EXTENSION = b"http://ns.adobe.com/xmp/extension/\0"
_EXTENSION_HEADER_BYTES = len(_EXTENSION) + 40  # then the packet's MD5 (32), its size (4), the offset (4)
_SEGMENT_BYTES = 65_000  # of the packet; including its header, a segment may have 65,535 bytes


def to_xmp(text: Mapping[str, str]) -> bytes:
    """Return a packet with the texts of a record, by PNG keyword. The texts must be ASCII or JSON."""
    names = {"Software": "xmp:CreatorTool"}
    properties = {names.get(key) or key.replace(_PREFIX, "sd35:"): value for key, value in text.items()}
    return _packet(_meta(properties))


def from_xmp(packet: bytes) -> dict[str, str]:
    """Return the texts of a record in a packet, by PNG keyword; {} if the packet is damaged. Takes linear time.

    From a packet of another program, the only text is the program's name, as `Software`.
    """
    content = packet.decode("utf-8", "replace").strip("\0 \n\r\t\ufeff")
    if "<!DOCTYPE" in content:  # not part of XMP; its entities could expand a small file to a huge text
        return {}
    reader = _Reader()
    try:
        reader.parser.Parse(content, True)  # noqa: FBT003  the parser's own signature
    except expat.ExpatError:
        return {}
    return reader.text


class _OpenElement(NamedTuple):
    """An element whose end is not read yet.

    `outer_namespaces` has each prefix that the element binds, with the namespace to restore at its end.
    """

    is_description: bool
    outer_namespaces: list[tuple[str, str | None]]


class _Reader:
    """Collects the texts of a packet from the attributes and child elements of `rdf:Description`.

    This class resolves namespaces, because the parser would copy the namespace into every name: a namespace of 100 KB,
    used by 10,000 elements, would turn a packet of 200 KB into a gigabyte.
    """

    def __init__(self) -> None:
        self.text: dict[str, str] = {}
        self.parser = expat.ParserCreate()
        self.parser.buffer_text = True
        self.parser.StartElementHandler, self.parser.EndElementHandler = self._start_element, self._end_element
        self.parser.CharacterDataHandler = self._add_characters
        self._namespaces: dict[str, str] = {}  # by prefix; only the namespaces of a record
        self._open: list[_OpenElement] = []  # the outermost first
        self._key: str | None = None  # PNG keyword of the text that is being read
        self._parts: list[str] = []

    def _start_element(self, name: str, attributes: dict[str, str]) -> None:
        """Bind the prefixes of an element. Read its attributes if it is a Description, or its text if it is in one."""
        self._finish_text()
        outer_namespaces = []
        for attribute, value in attributes.items():
            xmlns, _, prefix = attribute.partition(":")
            if xmlns == "xmlns":
                outer_namespaces.append((prefix, self._namespaces.get(prefix)))
                self._bind(prefix, value)
        is_description = self._resolve(name) == (_RDF, "Description")
        if is_description:
            for attribute, value in attributes.items():
                if ":" in attribute and (key := _key_of(self._resolve(attribute))):
                    self.text[key] = _unescape(value)
        elif self._open and self._open[-1].is_description:
            self._key = _key_of(self._resolve(name))
        self._open.append(_OpenElement(is_description, outer_namespaces))

    def _end_element(self, _: str) -> None:
        """Store the text of an element, and restore the namespaces of the prefixes that it bound."""
        self._finish_text()
        for prefix, namespace in reversed(self._open.pop().outer_namespaces):
            self._bind(prefix, namespace)

    def _add_characters(self, characters: str) -> None:
        if self._key:
            self._parts.append(characters)

    def _finish_text(self) -> None:
        """Store the current text. It ends at the end of its element or at the first child element."""
        if self._key:
            self.text[self._key] = _unescape("".join(self._parts))
        self._key, self._parts = None, []

    def _bind(self, prefix: str, namespace: str | None) -> None:
        """Bind a prefix to a namespace. Remove its binding if a record does not use the namespace."""
        if namespace in {_RDF, _TOOL, NAMESPACE}:
            self._namespaces[prefix] = namespace
        else:
            self._namespaces.pop(prefix, None)

    def _resolve(self, name: str) -> tuple[str | None, str]:
        """Return the namespace of a name, None if a record does not use it, and the name without its prefix."""
        prefix, _, local = name.rpartition(":")
        return self._namespaces.get(prefix), local


def _key_of(name: tuple[str | None, str]) -> str | None:
    """Return the PNG keyword of a property (namespace, local name), or None if a record does not have the property."""
    namespace, local = name
    if namespace == NAMESPACE:
        return _PREFIX + local
    return "Software" if (namespace, local) == (_TOOL, "CreatorTool") else None


def to_segments(packet: bytes) -> bytes:
    """Split a packet into APP1 segments of a JPEG file. The first segment of a long packet refers to the others."""
    if len(packet) <= _SEGMENT_BYTES:
        return _segment(_STANDARD + packet)
    name = hashlib.md5(packet, usedforsecurity=False).hexdigest().upper()  # the specification requires MD5
    segments = [_segment(_STANDARD + _packet(_meta({"xmpNote:HasExtendedXMP": name})))]
    for start in range(0, len(packet), _SEGMENT_BYTES):
        header = _EXTENSION + name.encode() + struct.pack(">II", len(packet), start)
        segments.append(_segment(header + packet[start : start + _SEGMENT_BYTES]))
    return b"".join(segments)


def is_xmp(segment: bytes) -> bool:
    """Return whether an APP1 segment contains a packet or a part of one."""
    return segment.startswith((_STANDARD, _EXTENSION))


def from_segments(segments: Iterable[bytes]) -> bytes:
    """Return the packet in the APP1 segments of a JPEG file, joined from its parts if it is long; b"" if missing."""
    packet = b""
    parts: dict[int, bytes] = {}  # by offset in the packet
    for segment in segments:
        if segment.startswith(_STANDARD):
            packet = segment.removeprefix(_STANDARD)
        elif segment.startswith(_EXTENSION) and len(segment) >= _EXTENSION_HEADER_BYTES:
            (start,) = struct.unpack_from(">I", segment, _EXTENSION_HEADER_BYTES - 4)
            parts[start] = segment[_EXTENSION_HEADER_BYTES:]
    return b"".join(parts[start] for start in sorted(parts)) or packet


def _meta(properties: Mapping[str, str]) -> str:
    """Return the XML of properties, by name with a prefix such as `xmp:`."""
    lines = "".join(f"<{key}>{html.escape(_escape(text), quote=False)}</{key}>\n" for key, text in properties.items())
    return (
        f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{_RDF}"><rdf:Description rdf:about=""'
        f' xmlns:xmp="{_TOOL}" xmlns:xmpNote="{_NOTE}" xmlns:sd35="{NAMESPACE}">\n'
        f"{lines}</rdf:Description></rdf:RDF></x:xmpmeta>"
    )


def _escape(text: str) -> str:
    """Replace U+FFFE and U+FFFF, which XML does not allow, by their JSON escapes."""
    return _NOT_IN_XML.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _unescape(text: str) -> str:
    """Undo `_escape`, because the digest of a request depends on every byte."""
    return _ESCAPED.sub(lambda match: match[1] + chr(int(match[2], 16)), text)


def _packet(meta: str) -> bytes:
    """Return the packet with the XML of `_meta`."""
    # The identifier is a constant of the XMP specification. "r" means that the packet must not be edited in place.
    return f'<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>{meta}<?xpacket end="r"?>'.encode()


def _segment(content: bytes) -> bytes:
    """Return an APP1 segment: its marker, its size including the 2 bytes of the size, and its content."""
    return b"\xff\xe1" + struct.pack(">H", 2 + len(content)) + content
