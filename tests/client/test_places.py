"""What a client remembers of its rooms: decided without a connection."""

from __future__ import annotations

from typing import Any

from authws.client import Failure, Joined, Left, Message, Position, Resync
from authws.client.places import Places


def message(offset: int, epoch: str = "e", room: str = "lobby") -> Message:
    return Message(room, "bob", offset, 0.0, Position(epoch, offset))


def joined(offset: int | None = None, epoch: str = "e", **more: Any) -> Joined:
    position = None if offset is None else Position(epoch, offset)
    return Joined(**{"room": "lobby", "members": ("alice",), **more}, position=position)


def refusal(slug: str) -> Failure:
    return Failure(slug, "a sentence", None)


def inside(offset: int | None = 5, room: str = "lobby") -> Places:
    """In one room, and standing at an offset."""
    places = Places()
    places.want(room)
    places.ask(room)
    places.take(joined(offset, room=room))
    return places


def since(places: Places, room: str = "lobby") -> Position | None:
    """What would be asked after a loss."""
    places.lose()
    assert room in places.outstanding()
    return places.ask(room)


def test_a_first_join_asks_for_nothing() -> None:
    places = Places()
    places.want("lobby")
    assert list(places.outstanding()) == ["lobby"]
    assert places.ask("lobby") is None
    assert list(places.outstanding()) == []


def test_a_position_from_outside_is_asked_for() -> None:
    places = Places()
    places.want("lobby", Position("e", 3))
    assert places.ask("lobby") == Position("e", 3)


def test_a_room_is_joined_again_where_it_was_joined_and_heard() -> None:
    assert since(inside(5)) == Position("e", 5)
    places = inside(5)
    places.take(message(6))
    places.take(message(9))
    assert since(places) == Position("e", 9)


def test_what_was_handed_on_is_not_handed_on_again() -> None:
    places = inside(5)
    handed_on = [
        event.data
        for offset in (6, 6, 5, 7, 6, 7, 8)
        for event in places.take(message(offset))
        if isinstance(event, Message)
    ]
    assert handed_on == [6, 7, 8]


def test_another_epoch_replaces_the_position_whatever_its_offset() -> None:
    places = inside(50)
    assert places.take(message(1, "other"))
    assert since(places) == Position("other", 1)


def test_rooms_have_positions_of_their_own() -> None:
    places = inside(5)
    places.want("hall")
    places.ask("hall")
    places.take(joined(1, "h", room="hall"))
    assert places.take(message(2, "h", "hall"))
    assert since(places, "hall") == Position("h", 2)
    assert places.ask("lobby") == Position("e", 5)


def test_a_join_that_did_not_recover_replaces_the_position() -> None:
    places = inside(5)
    places.lose()
    places.ask("lobby")
    told = joined(2, "new", recovered=False)
    assert places.take(told) == (told,)
    assert since(places) == Position("new", 2)


def test_a_resync_replaces_the_position() -> None:
    places = inside(5)
    told = Resync("lobby", Position("e", 40))
    assert places.take(told) == (told,)
    assert places.take(message(39)) == ()
    assert since(places) == Position("e", 40)
    places.take(joined(40))
    places.take(Resync("lobby"))
    assert since(places) is None


def test_leaving_forgets_the_room_and_its_position() -> None:
    places = inside(5)
    places.leave("lobby")
    assert places.take(message(6))  # said before the server heard of it
    places.take(Left("lobby"))
    places.lose()
    assert list(places.outstanding()) == []
    places.want("lobby")
    assert places.ask("lobby") is None


def test_leaving_and_joining_at_once_is_another_stay() -> None:
    places = inside(5)
    places.leave("lobby")
    places.want("lobby")
    assert places.ask("lobby") is None
    places.take(message(6))
    places.take(Left("lobby"))
    assert since(places) is None
    places.take(joined(9))
    assert since(places) == Position("e", 9)


def test_joining_and_leaving_at_once_is_not_undone_by_the_answer() -> None:
    places = Places()
    places.want("lobby")
    places.ask("lobby")
    places.leave("lobby")
    places.take(joined(9))
    places.take(Left("lobby"))
    places.lose()
    assert list(places.outstanding()) == []


def test_a_scope_that_is_gone_ends_the_stay() -> None:
    places = inside(5)
    places.take(Left("lobby"))
    places.lose()
    assert list(places.outstanding()) == []


def test_what_a_room_without_history_said_meanwhile_is_told_to_be_missing() -> None:
    places = inside(None)
    assert since(places) is None
    (told,) = places.take(joined(None))
    assert told == joined(None, recovered=False)
    assert places.take(joined(None)) == (joined(None),)


def test_a_first_join_that_was_cut_off_misses_nothing() -> None:
    places = Places()
    places.want("lobby")
    places.ask("lobby")
    assert since(places) is None
    assert places.take(joined(None)) == (joined(None),)


def test_a_refused_join_is_not_asked_again() -> None:
    for slug in ("forbidden", "room_invalid", "too_many_rooms", "malformed"):
        places = Places()
        places.want("lobby")
        places.ask("lobby")
        assert places.take(refusal(slug)) == (refusal(slug),)
        places.lose()
        assert list(places.outstanding()) == []


def test_a_room_that_does_not_let_us_in_again_was_left() -> None:
    places = inside(5)
    places.want("hall")
    since(places)
    places.ask("hall")
    answers = places.take(refusal("forbidden"))
    assert answers == (refusal("forbidden"), Left("lobby"))
    places.take(joined(1, room="hall"))
    places.lose()
    assert list(places.outstanding()) == ["hall"]


def test_an_unavailable_join_is_still_outstanding_from_the_same_place() -> None:
    places = inside(5)
    since(places)
    places.take(refusal("unavailable"))
    assert list(places.outstanding()) == ["lobby"]
    assert places.ask("lobby") == Position("e", 5)


def test_a_refused_publish_is_no_refused_join() -> None:
    places = inside(5)
    since(places)
    for event in (Failure("forbidden", "", 7), refusal("not_joined")):
        assert places.take(event) == (event,)
    places.take(joined(5, recovered=True))
    assert since(places) == Position("e", 5)


def test_a_refusal_that_was_taken_for_a_join_is_mended_by_the_joined() -> None:
    places = inside(5)
    since(places)
    places.take(refusal("forbidden"))  # of a publish without an id
    places.take(joined(5, recovered=True))
    assert places.take(message(5)) == ()
    assert since(places) == Position("e", 5)
