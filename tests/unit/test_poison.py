"""Records that kill their processes."""

from __future__ import annotations

import pytest

from tests.fakes_broker import FakePublisher
from tests.rig import FIRST, Rig, World, until
from worker.errors import MalformedReason
from worker.poison import Journal, Note, Standing
from worker.types import Message, OffsetAndMetadata


def journal(offset: int, note: Note) -> Journal:
    return Journal(OffsetAndMetadata(offset, str(note)), max_deaths=3)


# ---------------------------------------------------------------- what a commit tells


def test_note_that_tells_nothing_is_empty() -> None:
    assert str(Note()) == ""


def test_note_survives_its_way_through_a_commit() -> None:
    note = Note(reserved=12, deaths=(8, 9), alone=7, poison=(5, 6))
    assert Note.parse(str(note)) == note


def test_metadata_of_others_tells_nothing() -> None:
    for metadata in (
        "",
        "by hand",
        "[1]",
        "3",
        '{"reserved": "x"}',
        '{"other": 1}',
        "[" * 9999,
        '{"poison": 3}',
    ):
        assert Note.parse(metadata) == Note()


# ---------------------------------------------------------------- standing


def test_nothing_may_be_worked_on_before_it_is_reserved() -> None:
    fresh = journal(5, Note())
    assert fresh.standing(5) is Standing.UNMARKED
    note = fresh.note(5, 6, idle=False)
    fresh.written(note)
    assert fresh.standing(6) is Standing.FREE
    assert fresh.standing(note.reserved + 1) is Standing.UNMARKED


def test_commit_that_closes_a_partition_lets_nothing_begin_while_it_is_under_way() -> None:
    fresh = journal(5, Note())
    fresh.written(fresh.note(5, 6, idle=False))
    fresh.writing(fresh.note(7, 6, idle=True), 6)
    assert fresh.standing(7) is Standing.UNMARKED


def test_death_that_was_just_counted_is_committed_before_anything_begins() -> None:
    assert journal(5, Note(reserved=9)).standing(5) is Standing.UNMARKED


def test_end_of_an_owner_with_work_in_flight_is_counted() -> None:
    assert journal(5, Note(reserved=9)).note(5, 5, idle=False).deaths == (9,)
    assert journal(5, Note(reserved=7, deaths=(9,))).note(5, 5, idle=False).deaths == (7, 9)


def test_end_of_an_owner_with_nothing_in_flight_is_not_counted() -> None:
    assert journal(10, Note(reserved=9)).note(10, 10, idle=False).deaths == ()
    assert journal(5, Note(deaths=(9,))).note(5, 5, idle=False).deaths == (9,)


def test_suspicion_ends_when_the_watermark_has_passed_it() -> None:
    suspicious = journal(5, Note(reserved=7, deaths=(9,)))
    assert suspicious.note(9, 20, idle=False).deaths == (9,)
    assert suspicious.note(10, 20, idle=False).deaths == ()


def test_after_three_deaths_suspects_are_tried_alone_and_others_are_not() -> None:
    suspicious = journal(5, Note(reserved=12, deaths=(9, 11)))
    suspicious.written(suspicious.note(5, 12, idle=False))
    assert suspicious.standing(9) is Standing.SUSPECT
    assert suspicious.standing(10) is Standing.FREE  # of which only two are known to have died


def test_record_whose_process_died_while_it_was_tried_alone_is_poison() -> None:
    assert journal(5, Note(9, (9, 9), alone=7)).standing(7) is Standing.POISON


def test_poison_is_remembered_through_owners_that_give_the_partition_up() -> None:
    first = journal(5, Note(9, (9, 9), alone=7))
    second = journal(5, first.note(5, 8, idle=True))
    assert second.standing(7) is Standing.POISON


# ---------------------------------------------------------------- in the pipeline


async def died_with(world: World, name: str, times: int) -> None:
    """Processes that die each time the image of ``name`` is in work."""
    for _ in range(times):
        rig = await world.start()
        asked = len(world.fetcher.asked)
        await until(lambda n=asked: world.url(name) in [url for url, _ in world.fetcher.asked[n:]])
        await rig.died()


async def test_nothing_is_begun_before_a_commit_tells_of_it(world: World) -> None:
    record = world.ask("a", hold=True)
    rig = await world.start()
    await until(lambda: world.fetcher.active == 1)
    assert Note.parse(rig.note()).reserved >= record.offset
    world.release("a")
    await until(lambda: rig.note() == "" and rig.committed() == 1)


async def test_record_that_kills_every_process_becomes_a_dead_letter_and_the_rest_is_answered(
    world: World,
) -> None:
    for name in ("before", "killer", "after"):
        world.ask(name, hold=name == "killer")
    await died_with(world, "killer", 4)  # three with others, one alone
    rig = await world.start()
    await until(lambda: rig.committed() == 3)
    assert [(d.reason, d.source.offset) for d in rig.dead_letters()] == [
        (MalformedReason.POISON, 1)
    ]
    assert set(rig.verdicts()) == {"before", "after"}
    assert len([url for url, _ in world.fetcher.asked if url == world.url("killer")]) == 4


async def test_poison_behind_other_suspects_of_its_item_holds_nobody_up(world: World) -> None:
    for name in ("first", "killer", "last"):
        world.ask(name, hold=name != "last", key=b"item")
    for _ in range(3):
        rig = await world.start()
        await until(lambda: world.fetcher.active == 2)
        await rig.died()
    rig = await world.start()  # the first is tried alone, and hangs: it looks like the killer
    await until(lambda: world.fetcher.active == 1)
    await rig.died()
    world.release("first")
    await died_with(world, "killer", 1)
    rig = await world.start()
    await until(lambda: rig.committed() == 3)
    assert [d.source.offset for d in rig.dead_letters()] == [0, 1]
    assert set(rig.verdicts()) == {"last"}


async def test_suspect_is_tried_while_nothing_else_is_in_work(world: World) -> None:
    for name in "abc":
        world.ask(name, hold=True)
    for _ in range(3):
        rig = await world.start()
        await until(lambda: world.fetcher.active == 3)
        await rig.died()
    rig = await world.start()
    for name in "abc":
        await until(lambda: world.fetcher.active == 1)
        await rig.polled_on()
        assert world.fetcher.active == 1
        world.release(name)
    await until(lambda: rig.committed() == 3)
    assert rig.dead_letters() == []


@pytest.mark.parametrize("exactly_once", [False, True])
async def test_record_that_ends_every_process_with_a_bug_becomes_a_dead_letter(
    world: World, exactly_once: bool
) -> None:
    world.ask("killer", ZeroDivisionError("a bug"))
    world.ask("after")
    for _ in range(4):
        rig = await world.start(exactly_once=exactly_once)
        with pytest.raises(ExceptionGroup) as ended:
            await rig.running
        assert ended.group_contains(ZeroDivisionError)
        await rig.source.close()  # in good order, as far as the group can tell
    rig = await world.start(exactly_once=exactly_once)
    await until(lambda: set(rig.verdicts()) == {"after"})
    assert [(d.reason, d.source.offset) for d in rig.dead_letters()] == [
        (MalformedReason.POISON, 0)
    ]


async def test_process_that_ends_for_what_no_record_is_to_blame_for_is_no_death(
    world: World,
) -> None:
    class Broken(FakePublisher):
        async def publish(self, message: Message) -> None:
            raise ConnectionError("no broker")

    world.ask("a")
    for _ in range(5):
        rig = await world.start(publisher=Broken)
        with pytest.raises(ExceptionGroup):
            await rig.running
        await rig.source.close()
    assert Note.parse(rig.note()).deaths == ()


async def test_innocent_deaths_leave_nothing_behind(world: World) -> None:
    world.ask("a", hold=True)
    await died_with(world, "a", 2)
    rig: Rig = await world.start()
    world.release("a")
    await until(lambda: rig.committed() == 1)
    await rig.stopped()
    await rig.source.close()
    # the reservation reached further than the record, so the suspicion does, but it counts on
    assert Note.parse(rig.note(FIRST)).reserved == -1


async def test_stopping_in_good_order_is_no_death(world: World) -> None:
    world.ask("a", hold=True)
    for _ in range(5):
        rig = await world.start(drain_seconds=0.001)
        await until(lambda: world.fetcher.active == 1)
        await rig.stopped()
        await rig.source.close()
    assert Note.parse(rig.note()).deaths == ()
