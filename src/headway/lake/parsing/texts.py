"""Text from bytes, and text that is safe to keep: no control characters, no invisible ones, one form of each letter."""

from __future__ import annotations

import re
import unicodedata

from headway.errors import UnreadableDocumentError

# What HTML and XML files declare and Python can decode without surprises.
_DECLARABLE = re.compile(
    r"(?:iso-8859-\d{1,2}|windows-125\d|cp125\d|koi8-[ru]|shift_jis|euc-(?:jp|kr)|gbk|gb2312|gb18030|big5|macintosh)\Z",
    re.IGNORECASE,
)
# Control characters, soft hyphens, zero-width spaces, byte order marks, lone surrogates, and the tag characters that
# hide text from a reader but not from a model.
_UNWANTED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u200b\u2060\ufeff\ud800-\udfff\U000e0000-\U000e007f]")
_CONTROL = re.compile("[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f-\x9f]")
_LINE_END = re.compile("\r\n?")
_BREAK = re.compile("\r\n?|[\u2028\u2029\x0b\x0c\x85]")
_BOMS = (
    (b"\xef\xbb\xbf", "utf-8"),
    (b"\xff\xfe\x00\x00", "utf-32-le"),
    (b"\x00\x00\xfe\xff", "utf-32-be"),
    (b"\xff\xfe", "utf-16-le"),
    (b"\xfe\xff", "utf-16-be"),
)
_CONTROL_SHARE = 0.01
_SAMPLE = 1 << 20


def decode(body: bytes, declared: str = "") -> str:
    """Decode a text file: by its byte order mark, as UTF-8, as it declares, else as Windows-1252 or Latin-1.

    Line ends become single line feeds.

    Raises:
        UnreadableDocumentError: It is empty, or no text.
    """
    if not body.strip():
        raise UnreadableDocumentError("is empty", code="document_empty")
    text = _decoded(body, declared)
    sample = text[:_SAMPLE]
    controls = len(_CONTROL.findall(sample))
    if controls > _CONTROL_SHARE * len(sample) + 1:
        if 0.3 < sample.count("\0") / len(sample) < 0.6:
            raise UnreadableDocumentError("seems to be UTF-16 without a byte order mark: save it as UTF-8")
        raise UnreadableDocumentError("is not text: it holds binary data")
    return _LINE_END.sub("\n", text)


def _decoded(body: bytes, declared: str) -> str:
    for mark, encoding in _BOMS:
        if body.startswith(mark):
            try:
                return body[len(mark) :].decode(encoding)
            except UnicodeDecodeError as error:
                message = (
                    f"its byte order mark says {encoding.upper()}, but byte {error.start:,} is not: save it as UTF-8"
                )
                raise UnreadableDocumentError(message) from None
    candidates = ["utf-8", "cp1252"]
    if _DECLARABLE.match(declared):
        candidates.insert(1, declared.lower())
    for encoding in candidates:
        try:
            return body.decode(encoding)
        except UnicodeDecodeError:
            continue
    return body.decode("latin-1")


def clean(text: str) -> str:
    """Drop what no reader sees, and compose accents (NFC); tabs and line ends stay."""
    if text.isascii() and text.isprintable():
        return text
    text = _UNWANTED.sub("", _BREAK.sub("\n", text))
    return text if unicodedata.is_normalized("NFC", text) else unicodedata.normalize("NFC", text)


def one_line(text: str) -> str:
    """Put a text on one line, single spaces between its words."""
    return " ".join(clean(text).split())
