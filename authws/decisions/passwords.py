"""Which passwords may be set: long enough, and not among the first an attacker tries.

Length and a block-list, and no rules about kinds of characters (NIST SP 800-63B): a
sentence in small letters is welcome, ``P@ssw0rd2024!`` is not.
"""

from __future__ import annotations

import unicodedata
from functools import cache
from itertools import pairwise

from zxcvbn.frequency_lists import FREQUENCY_LISTS

from authws.exceptions import AuthwsError

__all__ = [
    "MAX_PASSWORD_BYTES",
    "MAX_PASSWORD_LENGTH",
    "MIN_ADMIN_PASSWORD_LENGTH",
    "MIN_PASSWORD_LENGTH",
    "PasswordError",
    "check_password",
    "normalize",
]

MIN_PASSWORD_LENGTH = 12
MIN_ADMIN_PASSWORD_LENGTH = 15
"""What NIST SP 800-63B asks of a password that stands alone."""
MAX_PASSWORD_LENGTH = 128
"""Characters, before normalising: long enough for any sentence, and a bound on work."""
MAX_PASSWORD_BYTES = 1024
"""Bytes of UTF-8 after it: NFKC can make eighteen characters of one."""
PRODUCT = "authws"


class PasswordError(AuthwsError):
    """A password may not be set; the sentence may be shown to whoever chose it."""

    def __init__(self, slug: str, sentence: str) -> None:
        super().__init__(sentence)
        self.slug = slug


def normalize(password: str) -> str:
    """Return the password in NFKC, the form that is hashed, and otherwise verbatim.

    Two keyboards may spell one word in two ways; case and spaces stay as typed.

    Raises:
        PasswordError: it is longer than anyone's password, or is not Unicode text.
    """
    if len(password) > MAX_PASSWORD_LENGTH:
        raise _too_long()
    normal = unicodedata.normalize("NFKC", password)
    try:
        size = len(normal.encode())
    except UnicodeEncodeError:  # a lone surrogate; its message quotes the password
        raise PasswordError(
            "password_not_text", "This password holds something that is not text."
        ) from None
    if size > MAX_PASSWORD_BYTES:
        raise _too_long()
    return normal


def check_password(password: str, *, username: str, admin: bool) -> str:
    """Return the normalised password if it may be set.

    Args:
        password: as typed.
        username: whose it will be.
        admin: whether that user administers others, and so needs a longer one.

    Raises:
        PasswordError: it is too short or too long, commonly used, or made of the
            user's or the product's name.
    """
    password = normalize(password)
    shortest = MIN_ADMIN_PASSWORD_LENGTH if admin else MIN_PASSWORD_LENGTH
    if len(password) < shortest:
        raise PasswordError(
            "password_too_short",
            f"Please use at least {shortest} characters; a short sentence is fine.",
        )
    plain, undecorated, letters = _forms(password)
    if _names(username, PRODUCT) & {_unit(plain), _unit(undecorated), _unit(letters)}:
        raise PasswordError(
            "password_personal",
            "Please choose something other than your user name or ours.",
        )
    # Digits alone may be a good password: what is left of one is then empty.
    if _counts(_unit(plain)) or _listed() & {plain, _unit(plain), _unit(undecorated)}:
        raise PasswordError(
            "password_common",
            "This password is among the first that an attacker tries: "
            "please choose another.",
        )
    return password


def _too_long() -> PasswordError:
    return PasswordError(
        "password_too_long",
        f"Please use at most {MAX_PASSWORD_LENGTH} characters.",
    )


@cache
def _listed() -> frozenset[str]:
    """Return the 30 000 passwords that leaked most often, in lower case."""
    return frozenset(FREQUENCY_LISTS["passwords"])


def _forms(text: str) -> tuple[str, str, str]:
    """Return the text without case, then without the decorations people add.

    The second lacks what follows the last letter, the third all that is no letter.
    """
    plain = unicodedata.normalize("NFKC", text).casefold()
    letters = "".join(c for c in plain if c.isalpha())
    undecorated = plain[: plain.rfind(letters[-1]) + 1] if letters else ""
    return plain, undecorated, letters


def _names(*names: str) -> set[str]:
    """Return what a password made of a name comes down to."""
    forms = {form for name in names for form in _forms(name)}
    # One or two letters are in nobody's way, unless they are the whole name.
    whole = {name.casefold() for name in names}
    return {_unit(form) for form in forms if form in whole or len(form) > 2}


def _unit(text: str) -> str:
    """Return the shortest piece that makes the text when repeated."""
    return text[: (text + text).find(text, 1)] if text else ""


def _counts(text: str) -> bool:
    """Tell whether the text only counts, as ``0123456789012``, or is one character."""
    steps = {ord(b) - ord(a) for a, b in pairwise(text)}
    # 9 and 0 are neighbours on a keyboard and to whoever counts on.
    return steps <= {1, -9} or steps <= {-1, 9}
