"""n-grams counted in whole arrays are those that scikit-learn counts, in its order."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.feature_extraction.text import CountVectorizer

from antifraud.evaluation.ngrams import CharNgrams

TEXTS = st.lists(st.text("甲乙丙Ab \n\t😀\x00", max_size=12), min_size=1, max_size=6)


def assert_same(ours, theirs):
    for name in ("indptr", "indices", "data"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))


@given(TEXTS, TEXTS, st.sampled_from([(1, 4), (2, 3), (1, 1)]), st.integers(1, 2))
def test_they_are_what_scikit_learn_counts(texts, others, lengths, min_df):
    theirs, ours = CountVectorizer(analyzer="char", ngram_range=lengths, min_df=min_df), CharNgrams(*lengths, min_df)
    try:
        counts = theirs.fit_transform(texts)
    except ValueError:
        with pytest.raises(ValueError):
            ours.fit_transform(texts)
        return
    assert_same(ours.fit_transform(texts), counts)
    assert [ours.name(column) for column in range(counts.shape[1])] == theirs.get_feature_names_out().tolist()
    assert_same(ours.transform(others), theirs.transform(others))


def test_by_hand():
    ngrams = CharNgrams(1, 2, min_df=2)
    assert ngrams.fit_transform(["abab", "ab", "c"]).toarray().tolist() == [[2, 2, 2], [1, 1, 1], [0, 0, 0]]
    assert [ngrams.name(column) for column in range(3)] == ["a", "ab", "b"]
    assert ngrams.transform(["", "a丙b"]).toarray().tolist() == [[0, 0, 0], [1, 0, 1]]


def test_more_characters_than_a_code_can_hold_are_refused():
    with pytest.raises(ValueError, match="60000"):
        CharNgrams(1, 4).fit_transform(["".join(map(chr, range(0x20000, 0x20000 + 60000)))])
