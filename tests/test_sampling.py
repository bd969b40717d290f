"""Which conversations are taken: shares, seeds, streams; all without a processor."""

import random
from collections import Counter

import pytest

from quantkit.calibration.conversations import Conversation
from quantkit.calibration.sampling import BINS, Reservoir, furthest_behind, shares


def conversation(number: int, modality: str = "text", length: int = 10) -> Conversation:
    messages = [{"role": "user", "content": [{"type": "text", "text": "x" * length}]}]
    return Conversation(str(number), modality, "en", messages, None, f"rows:{number}")


def take(
    reservoir: Reservoir, weights: list[float], count: int, cost=lambda candidate: 1.0
) -> list[tuple[int, str, str]]:
    """The order of choice, as (source, modality, id), without any processor."""
    strata = reservoir.sorted()
    share, taken = shares(strata, weights), [0.0] * len(strata)
    queues = [stratum.ordered(reservoir.seed) for stratum in strata]
    order = []
    for _ in range(count):
        index = furthest_behind(taken, share, [bool(queue) for queue in queues])
        if index is None:
            break
        candidate = queues[index].pop(0)
        taken[index] += cost(candidate)
        order.append((strata[index].source, strata[index].modality, candidate.conversation.id))
    return order


def mixed(seed: int = 0, most: int | None = None) -> Reservoir:
    reservoir = Reservoir(seed, most)
    reservoir.add((conversation(n, "text" if n % 4 else "image") for n in range(400)), 0, "a")
    reservoir.add((conversation(n, "video") for n in range(40)), 1, "b")
    return reservoir


@pytest.mark.parametrize("count", [3, 10, 37, 120])
def test_every_prefix_keeps_weights_and_modalities(count: int) -> None:
    found = Counter((source, modality) for source, modality, _ in take(mixed(), [3.0, 1.0], count))
    for key, share in {(0, "text"): 0.75 * 0.75, (0, "image"): 0.75 * 0.25, (1, "video"): 0.25}.items():
        assert abs(found[key] - share * count) < 1


def test_a_source_that_runs_out_leaves_its_place_to_the_others() -> None:
    found = Counter(source for source, _, _ in take(mixed(), [1.0, 1.0], 200))
    assert found == {0: 160, 1: 40}


def test_a_token_budget_shares_tokens_not_conversations() -> None:
    reservoir = Reservoir(0, None)
    reservoir.add((conversation(n, "text", 35) for n in range(200)), 0, "a")
    reservoir.add((conversation(n, "text", 350) for n in range(200)), 1, "b")
    found = Counter(source for source, _, _ in take(reservoir, [1.0, 1.0], 110, cost=lambda one: one.length))
    assert found == {0: 100, 1: 10}


@pytest.mark.parametrize("seed", range(5))
def test_short_and_long_conversations_take_turns(seed: int) -> None:
    reservoir = Reservoir(seed, None)
    reservoir.add((conversation(n, "text", 10 + n) for n in range(120)), 0, "a")
    chosen = [int(name) for _, _, name in take(reservoir, [1.0], 24)]
    for end in (3, 12, 24):
        assert [sum(n // 40 == third for n in chosen[:end]) for third in range(BINS)] == [end // BINS] * BINS


def test_the_seed_alone_decides() -> None:
    first, again, other = (take(mixed(seed), [1.0, 1.0], 30) for seed in (5, 5, 6))
    assert first == again
    assert set(first) != set(other)


def test_a_source_beside_it_changes_nothing_of_what_comes_first_in_a_source() -> None:
    alone = Reservoir(0, None)
    alone.add((conversation(n, "video") for n in range(40)), 0, "b")
    beside = [name for source, _, name in take(mixed(), [1.0, 1.0], 40) if source == 1]
    assert [name for _, _, name in take(alone, [1.0], len(beside))] == beside


@pytest.mark.parametrize("most", [5, 50])
def test_a_bounded_reservoir_chooses_what_an_unbounded_one_would_keep(most: int) -> None:
    whole, bounded = mixed(3), mixed(3, most)
    for left, right in zip(whole.sorted(), bounded.sorted(), strict=True):
        kept = sorted(entry[2].priority for entry in left.kept)[:most]
        assert sorted(entry[2].priority for entry in right.kept) == kept
        assert left.rows == right.rows


def test_a_stream_is_never_held(monkeypatch: pytest.MonkeyPatch) -> None:
    alive = Counter()

    class Tracked(Conversation):
        def __del__(self) -> None:
            alive["now"] -= 1

    def stream():
        for number in range(5_000):
            one = conversation(number)
            alive["now"] += 1
            alive["most"] = max(alive["most"], alive["now"])
            yield Tracked(**vars(one))

    reservoir = Reservoir(0, 20)
    assert reservoir.add(stream(), 0, "s") == 5_000
    assert alive["most"] <= 25


def test_priorities_do_not_favour_the_beginning() -> None:
    rows = [int(name) for seed in range(40) for _, _, name in take(_numbers(seed), [1.0], 10)]
    assert 430 < sum(rows) / len(rows) < 570
    assert len(set(rows)) > 300


def _numbers(seed: int) -> Reservoir:
    reservoir = Reservoir(seed, 10)
    lengths = random.Random(0)
    reservoir.add((conversation(n, length=lengths.randrange(5, 500)) for n in range(1000)), 0, "s")
    return reservoir
