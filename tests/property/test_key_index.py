from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from c360_pipeline.core.kernels.sorted_hashes import find_sorted
from c360_pipeline.stores.delta import key_index
from c360_pipeline.stores.delta.key_index import Hashes, KeyIndex

HASHES = st.lists(st.integers(0, 40), max_size=30)


@given(HASHES, HASHES)
def test_every_wanted_hash_is_found_where_it_stands(held: list[int], wanted: list[int]) -> None:
    sorted_held, sorted_wanted = (np.array(sorted(x), np.uint64) for x in (held, wanted))
    first, count = find_sorted(sorted_held, sorted_wanted)
    for at, number, hash_ in zip(first, count, sorted_wanted, strict=True):
        assert number == held.count(int(hash_))
        assert (sorted_held[at : at + number] == hash_).all()


@given(st.lists(st.tuples(st.lists(HASHES, max_size=4), st.booleans(), st.booleans()), max_size=12), HASHES)
def test_the_index_names_every_file_that_holds_a_hash(
    steps: list[tuple[list[list[int]], bool, bool]], asked: list[int]
) -> None:
    """Files come, are told or have to be read, go; the index is lost now and then; runs are merged all the time."""
    files: dict[str, Hashes] = {}

    def read(names: list[str]) -> list[tuple[str, Hashes]]:
        return [(name, files[name]) for name in names]

    wanted = np.array(asked, np.uint64)
    with TemporaryDirectory() as folder, patch.multiple(key_index, MAX_RUN_ROWS=20, MAX_SMALL_RUNS=2, FILES_AT_ONCE=2):
        index = KeyIndex(Path(folder), read)
        for number, (contents, is_told, is_lost) in enumerate(steps):
            new = {f"{number}/{n}": np.array(content, np.uint64) for n, content in enumerate(contents)}
            files |= new
            if is_told:
                index.add(list(new.items()))
            if is_lost:
                index = KeyIndex(Path(folder) / str(number), read)
            if len(files) > 5:
                files.pop(next(iter(files)))
            found, where = index.find(wanted, set(files))
            holding = {name for name, held in files.items() if np.isin(wanted, held).any()}
            assert holding <= where <= set(files)
            held_anywhere = np.isin(wanted, np.concatenate([*files.values(), np.zeros(0, np.uint64)]))
            assert (found >= held_anywhere).all()
