from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from worker.lists import Listed, Lists
from worker.policy import Decision, HashList
from worker.types import digest_of

HASHES = st.integers(0, 2**256 - 1)


def hexed(value: int) -> str:
    return f"{value:064x}"


def bits_off(hash: str, count: int) -> str:
    return hexed(int(hash, 16) ^ (2**count - 1))


def list_of(
    *hashes: str, id: str = "bad", action: Decision = Decision.BLOCK, distance: int = 31
) -> HashList:
    return HashList(id, action, distance, "f", digest_of(sorted(hashes)), frozenset(hashes))


A = hexed(0x1234 << 128)
FAR = hexed(2**256 - 1)


def test_image_within_the_distance_is_on_the_list_and_one_beyond_it_is_not() -> None:
    lists = Lists([list_of(A, distance=5)])
    assert lists.match(bits_off(A, 5)) == Listed("bad", Decision.BLOCK, 5)
    assert lists.match(bits_off(A, 6)) is None


def test_hash_that_differs_in_all_bits_is_256_away() -> None:
    assert Lists([list_of(hexed(0), distance=255)]).match(FAR) is None
    assert Lists([list_of(hexed(0), distance=256)]).match(FAR) == Listed("bad", Decision.BLOCK, 256)


def test_image_without_a_hash_is_on_no_list() -> None:
    assert Lists([list_of(A, distance=256)]).match(None) is None


def test_policy_without_lists_and_empty_list_match_nothing() -> None:
    assert Lists(()).match(A) is None
    assert Lists([list_of(), list_of(A, id="other")]).match(A) == Listed("other", Decision.BLOCK, 0)


def test_first_frame_that_is_known_to_be_fine_vouches_for_no_others() -> None:
    allow = list_of(A, id="fine", action=Decision.ALLOW)
    assert Lists([allow]).match(A, frames=2) is None
    assert Lists([allow, list_of(A)]).match(A, frames=2) == Listed("bad", Decision.BLOCK, 0)


def test_block_beats_review_beats_allow_however_near_they_are() -> None:
    allow = list_of(A, id="fine", action=Decision.ALLOW)
    review = list_of(bits_off(A, 3), id="odd", action=Decision.REVIEW)
    block = list_of(bits_off(A, 9), id="bad")
    assert Lists([allow, review, block]).match(A) == Listed("bad", Decision.BLOCK, 9)
    assert Lists([allow, review]).match(A) == Listed("odd", Decision.REVIEW, 3)
    assert Lists([allow]).match(A) == Listed("fine", Decision.ALLOW, 0)


def test_of_lists_with_one_action_the_nearest_is_named_and_of_these_the_first() -> None:
    near, far = list_of(bits_off(A, 2), id="near"), list_of(bits_off(A, 4), id="far")
    matched = Lists([far, near, list_of(bits_off(A, 2), id="later")]).match(A)
    assert matched == Listed("near", Decision.BLOCK, 2)


def test_each_list_has_its_own_distance() -> None:
    strict, loose = list_of(A, id="strict", distance=0), list_of(A, id="loose", distance=31)
    assert Lists([strict, loose]).match(bits_off(A, 8)) == Listed("loose", Decision.BLOCK, 8)


def test_digest_changes_with_all_that_can_change_an_answer() -> None:
    one = list_of(A)
    others = [
        [list_of(A, distance=30)],
        [list_of(A, action=Decision.REVIEW)],
        [list_of(A, id="c")],
        [list_of(FAR)],
        [one, list_of(FAR)],
        [],
    ]
    assert len({Lists([one]).digest, *(Lists(other).digest for other in others)}) == 7
    assert Lists([one]).digest == Lists([list_of(A)]).digest


@given(asked=HASHES, lists=st.lists(st.tuples(st.sets(HASHES, max_size=5), st.integers(0, 256))))
def test_what_it_says_is_what_counting_bits_says(
    asked: int, lists: list[tuple[set[int], int]]
) -> None:
    written = [
        list_of(*map(hexed, hashes), id=str(number), distance=distance)
        for number, (hashes, distance) in enumerate(lists)
    ]
    nearest = [
        (min((asked ^ hash).bit_count() for hash in hashes), number, distance)
        for number, (hashes, distance) in enumerate(lists)
        if hashes
    ]
    within = [(bits, number) for bits, number, distance in nearest if bits <= distance]
    matched = Lists(written).match(hexed(asked))
    assert matched == (
        Listed(str(min(within)[1]), Decision.BLOCK, min(within)[0]) if within else None
    )


def test_long_list_finds_its_own_hashes_in_any_order() -> None:
    numbers = np.random.default_rng(3).integers(0, 256, (2000, 32), dtype=np.uint8)
    hashes = [row.tobytes().hex() for row in numbers]
    lists = Lists([list_of(*hashes, distance=0)])
    assert all(lists.match(hash) == Listed("bad", Decision.BLOCK, 0) for hash in hashes[::50])
