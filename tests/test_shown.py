"""How lines show lists and texts that are too long for them."""

import pytest

from invarlock.shown import listed, shortened


@pytest.mark.parametrize(
    ("names", "given", "line"),
    [
        ([], {}, ""),
        (["a"], {}, "a"),
        (["a", "b"], {}, "a, b"),
        (["a", "b", "c"], {}, "a, b and 1 more"),
        (["a", "b", "c"], {"apart": "; "}, "a; b; and 1 more"),
        (["a", "b"], {"of": 5}, "a, b and 3 more"),
        (["a", "b", "c"], {"of": 5}, "a, b and 3 more"),
    ],
)
def test_a_list_names_the_first_and_counts_the_rest(names, given, line):
    """Whatever is left out is counted, also what was not handed over."""
    assert listed(names, 2, **given) == line


def test_a_text_is_marked_where_it_was_cut_and_never_longer_than_allowed():
    """A text that just fits stays whole."""
    assert shortened("abcdef", 6) == "abcdef"
    assert shortened("abcdefg", 6) == "abc..."
