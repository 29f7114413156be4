"""Measurements that anyone with a GPU can repeat; each writes one JSON under results/."""

import functools
import sys
from collections.abc import Callable, Sequence

from data.files import DataError


def refusing_in_a_line(main: Callable[[Sequence[str] | None], int]) -> Callable[[Sequence[str] | None], int]:
    """`main`, with a DataError as one line on standard error and exit code 2."""
    @functools.wraps(main)
    def refusing(argv: Sequence[str] | None = None) -> int:
        try:
            return main(argv)
        except DataError as error:
            print(error, file=sys.stderr)
            return 2
    return refusing
