"""Patterns out of files: the answers of `re`, in a time that no pattern makes long."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtme._patterns import Pattern

ATOMS = (
    "a",
    "b",
    ".",
    r"\.",
    r"\w",
    "[ab]",
    "[^a.]",
    "(a|b)",
    "(?:ab|a)",
    "(?!b)",
    "(?=a)",
    "^",
    "$",
    "(a?)",
    "(b{1,3})",
)
PIECES = st.tuples(st.sampled_from(ATOMS), st.sampled_from(("", "", "*", "+", "?", "*?", "{0,2}", "|")))


@given(st.lists(PIECES, min_size=1, max_size=6), st.text("ab.", max_size=7))
def test_it_matches_what_re_matches(pieces: list[tuple[str, str]], text: str):
    pattern = "".join(f"(?:{atom}){sign}" if sign not in ("", "|") else atom + sign for atom, sign in pieces)
    assert Pattern(pattern).matches(text) == (re.fullmatch(pattern, text) is not None)


SLOW = (
    "((.|.)*)*!",
    "(((((.)*)*)*)*)*!",
    "(a|a)" * 150,
    "(.?){500}!",
    "((.{0,99}){0,99}){0,99}!",
    ".*" * 40 + "!",
    "(((a|b)+|c)*d?){5000}!",
)


@pytest.mark.parametrize("pattern", SLOW)
def test_no_pattern_takes_long(pattern: str):
    began = time.process_time()
    assert not Pattern(pattern).matches("encoder.layer.aaaaaaaa.attention.query_key_value" * 2)
    assert time.process_time() - began < 10


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        (r"(a)\1", "groupref"),
        ("(?<=a)b", "looks behind"),
        ("(?i:a)b", "flags for a part"),
        ("(?x) a", "sets flags"),
        (r"a\b", "boundary"),
        ("a{20000}", "20000 times"),
        ("(", "unterminated"),
        ("(" * 400 + ")" * 400, "too deep|Recursion|recursion"),
        ("a" * 1001, "1001 characters"),
        ("a{99999999999999999999}", "large"),
    ],
)
def test_what_is_not_matched_is_said(pattern: str, says: str):
    with pytest.raises(ValueError, match=says):
        Pattern(pattern)
