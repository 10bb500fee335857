from __future__ import annotations

import pytest

from authws.decisions.passwords import PasswordError, check_password, normalize


def refusal(password: str, *, username: str = "alice", admin: bool = False) -> str:
    with pytest.raises(PasswordError) as refused:
        check_password(password, username=username, admin=admin)
    sentence = str(refused.value)
    assert password not in sentence
    assert sentence.endswith(".")
    return refused.value.slug


@pytest.mark.parametrize(
    "password",
    [
        pytest.param("correct horse battery staple", id="LOG-20 passphrase"),
        pytest.param("nine small letters", id="LOG-20 lower case"),
        pytest.param("\N{ROCKET}\N{CAT}\N{TACO} at nine sharp", id="LOG-20 emoji"),
        pytest.param("  spaces around it  ", id="LOG-06 outer spaces"),
        pytest.param("839204718263", id="digits alone"),
        pytest.param("8a392047182635", id="one letter"),
        pytest.param("kJ8#mQ2$vX9!", id="twelve characters"),
        pytest.param("x7" * 3 + "q" * 122, id="128 characters"),
        pytest.param("the alice in this story", id="a name among words"),
    ],
)
def test_good_password_may_be_set_as_typed(password: str) -> None:
    assert check_password(password, username="alice", admin=False) == password


@pytest.mark.parametrize("password", ["", "a", "pw-of-7", "kJ8#mQ2$vX9"])
def test_short_password_is_refused(password: str) -> None:  # LOG-19
    with pytest.raises(PasswordError, match="at least 12") as refused:
        check_password(password, username="alice", admin=False)
    assert refused.value.slug == "password_too_short"


def test_administrator_needs_a_longer_password() -> None:
    password = "kJ8#mQ2$vX9!pL"
    check_password(password, username="alice", admin=False)
    assert refusal(password, admin=True) == "password_too_short"
    check_password(password + "4", username="alice", admin=True)


def test_length_counts_characters_and_not_bytes() -> None:
    assert refusal("\N{ROCKET}" * 4) == "password_too_short"


@pytest.mark.parametrize(
    "password",
    [
        pytest.param("1234567890qwerty", id="LOG-19 listed"),
        pytest.param("password1234", id="digits after it"),
        pytest.param("Password2024!!", id="case and punctuation"),
        pytest.param("p@ssw0rd-2024", id="spelled cleverly"),
        pytest.param("passwordpassword", id="repeated"),
        pytest.param("letmeinletmein1!", id="repeated and decorated"),
        pytest.param("ｐａｓｓｗｏｒｄ１２３４", id="full width"),  # noqa: RUF001
        pytest.param("aaaaaaaaaaaa", id="one character"),
        pytest.param("111111111111", id="one digit"),
        pytest.param("............", id="one sign"),
        pytest.param("123456789012", id="count"),
        pytest.param("098765432109", id="count down"),
        pytest.param("abcdefghijkl", id="alphabet"),
        pytest.param("123123123123", id="repeated count"),
    ],
)
def test_common_password_is_refused(password: str) -> None:
    assert refusal(password) == "password_common"


@pytest.mark.parametrize(
    ("password", "username"),
    [
        ("annabelle-lee", "annabelle-lee"),
        ("alicealicealice", "alice"),
        ("Alice20242024", "alice"),
        ("2024-alice-2024", "alice"),
        ("alice1alice2alice3", "alice"),
        ("j.smith.12345", "j.smith"),
        ("jsmith1234567", "j.smith"),
        ("bobobobobobo", "bo"),
        ("4711471147114711", "4711"),
        ("authwsauthws", "alice"),
        ("AuthWS-2024-!", "alice"),
    ],
)
def test_password_made_of_a_name_is_refused(password: str, username: str) -> None:
    assert refusal(password, username=username) == "password_personal"


def test_letter_in_the_user_name_is_in_nobodys_way() -> None:
    check_password("8a392047182635", username="a1", admin=False)


def test_two_spellings_of_one_password_are_one() -> None:  # LOG-06
    composed, decomposed = "caf\u00e9 au lait noir", "cafe\u0301 au lait noir"
    assert normalize(composed) == normalize(decomposed) == composed


def test_case_and_spaces_are_kept() -> None:  # LOG-06
    assert normalize("  Case  matters ") == "  Case  matters "


def test_long_password_is_refused_before_any_work() -> None:  # LOG-07
    with pytest.raises(PasswordError) as refused:
        normalize("a" * 1024 * 1024)
    assert refused.value.slug == "password_too_long"


def test_password_that_grows_when_normalised_is_refused() -> None:
    # One Arabic ligature becomes eighteen characters.
    with pytest.raises(PasswordError) as refused:
        normalize("\N{ARABIC LIGATURE SALLALLAHOU ALAYHE WASALLAM}" * 128)
    assert refused.value.slug == "password_too_long"


def test_longest_password_is_kept_whole() -> None:  # LOG-04
    password = "\N{ROCKET}" * 127 + "a"
    assert normalize(password) == password


def test_surrogate_is_refused_without_quoting_the_password() -> None:
    with pytest.raises(PasswordError) as refused:
        normalize("hunter2-\ud800-hunter2")
    assert refused.value.slug == "password_not_text"
    assert refused.value.__suppress_context__
