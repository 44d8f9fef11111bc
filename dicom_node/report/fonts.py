"""Text for the summary image: Pillow's bundled font, and a system font for scripts that it lacks."""

import unicodedata
from functools import cache, lru_cache
from pathlib import Path

from PIL import ImageFont

Font = ImageFont.FreeTypeFont

_NOT_SHOWN = "(see header)"
_MOST_CHARACTERS = 200
# Where Linux distributions put fonts with Chinese, Japanese, Korean, Greek and Cyrillic.
_SYSTEM_FONTS = (
    "/usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc",
    "/usr/share/fonts/google-noto-cjk/NotoSansCJK-Regular.ttc",
    "/usr/share/fonts/noto-cjk/NotoSansCJK-Regular.ttc",
    "/usr/share/fonts/truetype/wqy/wqy-microhei.ttc",
    "/usr/share/fonts/truetype/wqy/wqy-zenhei.ttc",
    "/usr/share/fonts/truetype/arphic/uming.ttc",
    "/usr/share/fonts/truetype/droid/DroidSansFallbackFull.ttf",
    "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf",
    "/usr/share/fonts/dejavu-sans-fonts/DejaVuSans.ttf",
)


@cache
def bundled(size_px: int) -> Font:
    """Pillow's own font."""
    font = ImageFont.load_default(size_px)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("Pillow was built without FreeType, which the summary image needs")
    return font


@cache
def _system(path: str, size_px: int) -> Font:
    return ImageFont.truetype(path, size_px)


def font_for(text: str, size_px: int) -> Font | None:
    """A font that has every character of the text, or None if this machine has none."""
    if _covers(bundled(size_px), text):
        return bundled(size_px)
    for path in _SYSTEM_FONTS:
        if Path(path).is_file():
            font = _system(path, size_px)
            if _covers(font, text):
                return font
    return None


def showable_name(name: str, size_px: int) -> tuple[str, Font]:
    """A person's name as this machine can draw it, and the font.

    name: PN with its component groups (alphabetic=ideographic=phonetic). The alphabetic and ideographic groups
        are shown if there are glyphs for them, if need be without their accents. A name that cannot be drawn is left to
        the header.
    """
    groups = [" ".join(group.replace("^", " ").split()) for group in name[:_MOST_CHARACTERS].split("=")[:2]]
    candidates = [" ".join(filter(None, groups)), *filter(None, groups)]
    candidates += [_without_accents(candidate) for candidate in candidates]
    for candidate in candidates:
        font = font_for(candidate, size_px)
        if candidate and font is not None:
            return candidate, font
    return (_NOT_SHOWN if any(groups) else "no name"), bundled(size_px)


def _without_accents(text: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFD", text) if not unicodedata.combining(c))


def _covers(font: Font, text: str) -> bool:
    return all(c.isspace() or _has_glyph(font, c) for c in set(text))


@lru_cache(maxsize=4096)
def _has_glyph(font: Font, character: str) -> bool:
    """Remembered: the layout of a page asks for the same characters thousands of times."""
    return character.isprintable() and bytes(font.getmask(character)) != bytes(font.getmask("\uffff"))
