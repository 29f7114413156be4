"""n-grams of characters, counted in whole arrays: scikit-learn's vectorizers take one after the other, in Python."""

import re
from collections.abc import Iterator, Sequence

import numpy as np
from scipy.sparse import csr_array, hstack
from sklearn.base import BaseEstimator, TransformerMixin

CHARACTERS = 0x110000  # of Unicode


class CharNgrams(TransformerMixin, BaseEstimator):
    """What ``CountVectorizer(analyzer="char")`` counts, to the last bit of what is fitted on it.

    Attributes:
        alphabet: [characters] code points of the texts it was fitted on, sorted.
        codes: [n-grams] each as a number: its characters' places in the alphabet, counted from 1, are the digits. So
            sorted, they are in the order of the words.
    """

    def __init__(self, shortest: int = 1, longest: int = 4, min_df: int = 1) -> None:
        self.shortest, self.longest, self.min_df = shortest, longest, min_df

    def fit_transform(self, texts: Sequence[str], y=None) -> csr_array:
        """[texts, n-grams] how often each n-gram is in a text, of those that are in at least `min_df` texts.

        Raises:
            ValueError: there are none.
        """
        texts = plain(texts)
        self.alphabet = np.unique(_code_points(texts))
        blocks, codes, orders = [], [], []
        for length, (place, text, code) in enumerate(self._ngrams(texts)):
            distinct = np.sort(code)  # far faster than np.unique
            distinct = distinct[np.diff(distinct, prepend=-1) > 0]
            number = np.searchsorted(distinct, code)
            counts = _counted(text, number, (len(texts), len(distinct)))
            frequent = np.flatnonzero(np.bincount(counts.indices, minlength=len(distinct)) >= self.min_df)
            first = np.empty(len(distinct), dtype=np.int64)
            first[number[::-1]] = np.arange(len(code))[::-1]
            first = first[frequent]
            blocks.append(counts[:, frequent])
            codes.append(distinct[frequent])
            orders.append([place[first], np.full(len(first), length), text[first]])
        codes = np.concatenate(codes)
        if not len(codes):
            raise ValueError(f"no n-gram is in {self.min_df} texts")
        # Sums depend on their order: a text's n-grams stand as scikit-learn's do, in the order in which they were seen.
        seen = np.lexsort(np.concatenate(orders, axis=1))
        columns = np.argsort(codes)
        counts = hstack(blocks, format="csr")
        counts = _renumbered(counts, np.argsort(seen))
        counts.sort_indices()
        self.codes = codes[columns]
        return _renumbered(counts, np.argsort(columns)[seen])

    def transform(self, texts: Sequence[str]) -> csr_array:
        """[texts, n-grams] how often each of the n-grams that were fitted is in a text."""
        texts = plain(texts)
        rows, columns = [], []
        for _, text, code in self._ngrams(texts):
            column = np.searchsorted(self.codes, code).clip(max=len(self.codes) - 1)
            known = self.codes[column] == code
            rows.append(text[known])
            columns.append(column[known])
        return _counted(np.concatenate(rows), np.concatenate(columns), (len(texts), len(self.codes)))

    def name(self, column: int) -> str:
        """The n-gram of a column."""
        code, characters = int(self.codes[column]), []
        while code:
            code, digit = divmod(code, len(self.alphabet) + 1)
            characters.append(chr(self.alphabet[digit - 1]) if digit else "")  # shorter ones end in noughts
        return "".join(reversed(characters))

    def _ngrams(self, texts: Sequence[str]) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """(place in all characters, number of the text, code) of the n-grams of each length."""
        base = len(self.alphabet) + 1
        if base ** self.longest > np.iinfo(np.int64).max:
            raise ValueError(f"{base - 1} different characters are too many for n-grams of {self.longest}")
        digit_of = np.zeros(CHARACTERS, dtype=np.int64)
        digit_of[self.alphabet] = np.arange(1, base)
        digits = digit_of[_code_points(texts)]  # 0 for a character that is not in the alphabet
        text = np.repeat(np.arange(len(texts)), [len(one) for one in texts])
        code, whole = np.zeros_like(digits), np.ones(len(digits), dtype=bool)
        for length in range(1, self.longest + 1):
            last = digits[length - 1:]
            code = code[:len(last)] + last * base ** (self.longest - length)
            whole = whole[:len(last)] & (last > 0) & (text[:len(last)] == text[length - 1:])
            if length >= self.shortest:
                place = np.flatnonzero(whole)
                yield place, text[place], code[place]


def plain(texts: Sequence[str]) -> list[str]:
    """The texts as scikit-learn's vectorizers read them: in lower case, with one blank for several."""
    return [re.sub(r"\s\s+", " ", text.lower()) for text in texts]


def _code_points(texts: Sequence[str]) -> np.ndarray:
    return np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)


def _counted(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> csr_array:
    places = rows.astype(np.int32), columns.astype(np.int32)  # half the memory, and what scikit-learn has
    return csr_array((np.ones(len(rows), dtype=np.float32), places), shape=shape)


def _renumbered(counts: csr_array, columns: np.ndarray) -> csr_array:
    """`counts` with other numbers of its columns, each row in the order in which it was."""
    return csr_array((counts.data, columns[counts.indices].astype(counts.indices.dtype), counts.indptr), counts.shape)
