"""Grants of places in data files: each token comes back exactly once, whatever ends its grant."""

from __future__ import annotations

import random

import pytest

from fs3.core.grants import Grants


@pytest.fixture
def grants() -> Grants[str]:
    return Grants(500, per_holder_max=3)


def test_a_grant_stands_until_its_lease_is_over(grants):
    grants.give("client", ["a"], 1000)
    assert grants.expire(1499) == []
    assert len(grants) == 1
    assert grants.expire(1500) == ["a"]
    assert len(grants) == 0


def test_what_a_holder_has_read_is_released_and_later_grants_stand(grants):
    first, second = grants.give("x", ["a", "b"], 0), grants.give("x", ["c"], 1)
    assert grants.release("x", first) == ["a", "b"]
    assert grants.release("x", first) == []
    assert grants.release("x", second) == ["c"]


def test_a_holder_releases_nobody_elses_grants(grants):
    grants.give("x", ["a"], 0)
    number = grants.give("y", ["b"], 0)
    assert grants.release("y", number) == ["b"]
    assert grants.release("z", number) == []
    assert len(grants) == 1


def test_releasing_what_was_never_granted_releases_nothing_later(grants):
    assert grants.release("x", 1 << 63) == []
    grants.give("x", ["a"], 0)
    assert len(grants) == 1


def test_a_holder_that_is_gone_leaves_nothing(grants):
    grants.give("x", ["a"], 0)
    grants.give("y", ["b"], 0)
    grants.give("x", ["c"], 0)
    assert grants.drop("x") == ["a", "c"]
    assert grants.drop("x") == []
    assert grants.expire(10_000) == ["b"]


def test_tokens_added_at_once_belong_to_the_grant(grants):
    tokens: list[str] = []
    number = grants.give("x", tokens, 0)
    tokens += ["a", "b"]
    assert grants.release("x", number) == ["a", "b"]


def test_a_holder_has_room_for_so_many(grants):
    for moment in range(3):
        assert grants.room("x")
        grants.give("x", [], moment)
    assert not grants.room("x")
    assert grants.room("y")
    grants.expire(500)
    assert grants.room("x")


@pytest.mark.parametrize("seed", range(20))
def test_every_token_comes_back_exactly_once(seed):
    rng = random.Random(seed)
    grants: Grants[int] = Grants(50, per_holder_max=1000)
    given: dict[int, tuple[str, int, int]] = {}  # token: holder, number, given at
    out: set[int] = set()
    now_ms = 0

    def ended(tokens: list[int]) -> None:
        assert len(set(tokens)) == len(tokens)
        assert set(tokens) <= out
        out.difference_update(tokens)

    for token in range(2000):
        now_ms += rng.randrange(5)
        holder = rng.choice("abc")
        match rng.randrange(5):
            case 0 | 1 | 2:
                given[token] = holder, grants.give(holder, [token], now_ms), now_ms
                out.add(token)
            case 3:
                through = rng.choice(list(given.values()))[1] if given else 0
                ended(grants.release(holder, through))
                assert not [t for t in out if given[t][0] == holder and given[t][1] <= through]
            case _:
                ended(grants.drop(holder) if rng.random() < 0.3 else grants.expire(now_ms))
        for left in out & set(grants.expire(now_ms)):
            out.remove(left)
        assert all(given[t][2] + 50 > now_ms for t in out)
    assert len(grants) == len(out)
