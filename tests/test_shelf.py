"""Conversations put aside: the large ones in files, which go with them."""

from pathlib import Path

import pytest
from chats import chat, text_part

from quantkit.calibration.conversations import Conversation
from quantkit.calibration.sampling import Reservoir
from quantkit.calibration.shelf import LARGE, Conversations, Shelf
from quantkit.errors import QuantkitError


def conversation(number: int, length: int) -> Conversation:
    messages = chat(text_part("x" * length))
    messages[0]["content"].append({"type": "video", "video": ["a", "b"], "fps": 2.0})
    return Conversation(
        str(number), "video", "en", messages, "It is blue.", f"r:{number}", accepted=("It is blue.",), tags={"a": "b"}
    )


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_large_ones_come_back_as_they_were(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    small, large = conversation(1, 10), conversation(2, LARGE)
    kept = shelf.put(small)
    assert not files(tmp_path) and kept.load() is small
    both = Conversations([kept, shelf.put(large)])
    assert len(files(tmp_path)) == 1
    assert list(both) == [small, large] == [both[0], both[1]] and len(both) == 2
    del both
    assert not files(tmp_path)


def test_the_folder_outlives_the_shelf_and_goes_with_the_last_one(tmp_path: Path) -> None:
    kept = [Shelf(tmp_path).put(conversation(number, LARGE)) for number in range(2)]
    assert [one.load().id for one in kept] == ["0", "1"]
    kept.clear()
    assert not list(tmp_path.iterdir())


def test_what_a_stream_passes_by_leaves_no_file(tmp_path: Path) -> None:
    reservoir = Reservoir(0, 5, Shelf(tmp_path))
    reservoir.add((conversation(number, LARGE) for number in range(60)), 0, "s")
    assert len(files(tmp_path)) == 5
    (stratum,) = reservoir.sorted()
    first = stratum.draw(0)
    reservoir.refill(stratum, (conversation(number, LARGE) for number in range(60)), "s")
    assert len(files(tmp_path)) == 5 + 10 and stratum.left == 55
    second = stratum.draw(0)
    whole = Reservoir(0, None)
    whole.add((conversation(number, 10) for number in range(60)), 0, "s")
    ranks = sorted(candidate.priority for candidate in whole.sorted()[0].ordered(0))
    assert sorted(c.priority for c in first) == ranks[:5] and sorted(c.priority for c in second) == ranks[5:15]
    assert {c.position - 1 for c in first + second} == {int(c.conversation.id) for c in first + second}
    reservoir.refill(stratum, (), "s")
    assert stratum.left == 0


def test_without_room_they_stay_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    shelf = Shelf(tmp_path)
    monkeypatch.setattr(Path, "write_bytes", full)
    kept = [shelf.put(conversation(number, LARGE)) for number in range(3)]
    assert [one.load().id for one in kept] == ["0", "1", "2"]
    assert caplog.text.count("No space left on device") == 1


def test_a_file_that_is_gone_is_told(tmp_path: Path) -> None:
    kept = Shelf(tmp_path).put(conversation(7, LARGE))
    files(tmp_path)[0].unlink()
    with pytest.raises(QuantkitError, match=r"^r:7: its temporary file .* cannot be read"):
        kept.load()
