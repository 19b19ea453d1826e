"""Bugs planted on purpose: a simulator that does not find them cannot be trusted to find others.

Each mutant patches the code under test for as long as its context lasts. ``FOUND_BY`` remembers a
seed that finds each, to be tried first; when a change of the simulator makes it tell another story,
``python -m tests.sim --mutants`` finds new ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from fs3.core import messages as m
from fs3.core import resync, updates
from fs3.core.chunks import UpdateKind
from fs3.core.codes import Code
from fs3.core.dirty_reads import DirtyReads
from fs3.core.feeding import Feeder
from fs3.core.lane import Operation, Phase
from fs3.core.limits import Limits
from fs3.core.link import IncomingLink
from fs3.core.reach import Cuts
from fs3.core.replica import Replica
from fs3.core.resync import Resync
from fs3.core.syncing import Syncing

from .manager import Grant, Manager
from .simulation import simulate
from .swarm import Settings, draw

Patches = list[tuple[Any, str, Any]]
SEEDS = 1000

# mutant: a seed that finds it
FOUND_BY: dict[str, int] = {
    "successor_to_the_tail_shows_the_old": 17,
    "resync_without_channels": 212,
    "lease_without_a_version": 38,
    "forward_meets_a_copy": 1,
    "late_readers_share_the_answer": 66,
    "resync_compares_versions": 65,
    "acks_by_version": 17,
    "refusals_are_forgotten": 11,
    "resync_trusts_what_is_on_its_way": 12,
    "sync_is_ignored": 0,
    "up_to_date_before_the_flush": 23,
    "retries_are_new": 0,
    "retries_are_answered_early": 0,
    "the_cut_off_leaves_at_once": 26,
    "cuts_do_not_count": 1,
    "create_overwrites": 0,
    "vain_creates_leave_no_record": 2,
    "any_chain_version": 11,
    "commit_before_the_ack": 0,
    "serve_past_the_lease": 45,
    "channels_stay_at_the_head": 55,
    "dirty_read": 9,
    "old_read": 1,
    "forwards_are_forgotten": 0,
    "resync_forgets_last_steps": 13,
    "resync_keeps_junk": 55,
}

# Some need odd worlds: what is set for them, beside what the seed draws.
_BAD_WIRE = {"delay_max_ms": 150, "straggle": 0.05, "duplicate": 0.3}
_CRASHES = {"crashes": 0.4, "snipes": 0.05, "replicas": 3}
_BUSY = {"chunks": 1, "think_ms_max": 1, "operations": 100, "clients": 4}
_POWER = {"power": True, "sync": 1.0, "disk_ms_max": 60}
_SLOW_ANSWERS = {
    "straggle": 0.2,
    "delay_max_ms": 5,
    "disk_ms_max": 400,
    "limits": Limits(query_ms=5000, resend_ms=50),
}
_NEVER_HEARD = {"cuts": 0.5, "pauses": 0.5, "deaf": 0.9, "fresh": 0.0, "push": 0.0, "lease_ms": 600}
_SLOW_COMMITS = {"disk_ms_max": 400, "fresh": 1.0, "push": 1.0, "delay_max_ms": 5, "reads": 0.7}
_RIFT = {"rift": True, "replicas": 3, "reads": 0.8, "push": 0.0, "fresh": 0.0}
FOCUS: dict[str, dict[str, Any]] = {
    "cuts_do_not_count": {"rift": True, "replicas": 3},
    "the_cut_off_leaves_at_once": {**_RIFT, **_BUSY},
    "acks_by_version": {**_BAD_WIRE, **_BUSY, "odd_updates": 0.5},
    "forward_meets_a_copy": {**_CRASHES, **_BUSY, "chunks": 4, "delay_max_ms": 30},
    "late_readers_share_the_answer": {**_SLOW_ANSWERS, **_BUSY, "replicas": 3},
    "lease_without_a_version": {**_BAD_WIRE, **_BUSY, **_NEVER_HEARD, "replicas": 3},
    "successor_to_the_tail_shows_the_old": {**_CRASHES, **_BUSY, **_SLOW_COMMITS},
    "refusals_are_forgotten": {**_BAD_WIRE, **_BUSY, "full_disks": 0.5, "replicas": 3},
    "resync_compares_versions": {**_CRASHES, **_BUSY, "odd_updates": 0.5},
    "resync_trusts_what_is_on_its_way": {**_CRASHES, **_BUSY, "drop": 0.1},
    "resync_without_channels": {**_CRASHES, "replicas": 2, "drop": 0.1, "give_up_ms": 25_000},
    "sync_is_ignored": {**_CRASHES, **_POWER, "replicas": 2},
    "up_to_date_before_the_flush": {**_CRASHES, **_POWER, "replicas": 2},
    # Nobody reads meanwhile: it is for the look at each acknowledgement to find.
    "retries_are_answered_early": {"replicas": 3, "try_ms": 100, "drop": 0.1, "reads": 0.0},
    "create_overwrites": {**_BUSY, "creates": 0.8},
    "vain_creates_leave_no_record": {**_BAD_WIRE, **_BUSY, "creates": 0.8, "try_ms": 100},
}


def any_chain_version() -> Patches:
    """A message of an older chain version is acted on."""
    real = Replica._on_message

    def on_message(self: Replica, message: Any, now_ms: int) -> Any:
        route = message.route
        if route.chain_version < self.chain.version:
            message = message._replace(route=route._replace(chain_version=self.chain.version))
        return real(self, message, now_ms)

    return [(Replica, "_on_message", on_message)]


def commit_before_the_ack() -> Patches:
    """An update is committed as soon as it is forwarded."""
    real = Replica._pass_on

    def pass_on(self: Replica, op: Operation, now_ms: int) -> Any:
        effects = real(self, op, now_ms)
        if op.phase is Phase.FORWARDED:
            op.phase = Phase.COMMITTING
            effects = [*effects, m.Commit(op.chunk, op.version, self.chain.version)]
        return effects

    return [(Replica, "_pass_on", pass_on)]


def serve_past_the_lease() -> Patches:
    """Reads are answered for as long as the replica thinks that it serves."""

    def serves(self: Replica, now_ms: int) -> bool:
        return self.place.last_serving is not None and self.place.state == 1 and self._joined

    return [(Replica, "serves", serves)]


def channels_stay_at_the_head() -> Patches:
    """Forwards carry no tag, so a new head does not know what was done before."""
    real = Operation.forward

    def forward(self: Operation, *args: Any, **kwargs: Any) -> Any:
        return real(self, *args, **kwargs)._replace(tag=None)

    return [(Operation, "forward", forward)]


def resync_without_channels() -> Patches:
    """Exactly-once records are not brought to a syncing replica."""
    return [
        (
            Syncing,
            "on_channels",
            lambda self, message, place: [
                m.Send(m.SyncChannels(place.route(message.route.source), message.after, ()))
            ],
        )
    ]


def resync_compares_versions() -> Patches:
    """Chunks with one version are taken as equal."""
    return [(resync, "_same", lambda a, b: b is not None and a.version == b.version)]


def lease_without_a_version() -> Patches:
    """The manager grants a lease to every node it hears, and the replica takes it as it is."""
    real_hear, real_step = Manager.hear, Replica.step

    def hear(self: Manager, report: Any) -> Grant:
        grant = real_hear(self, report)
        return grant if grant.unknown else Grant(self.chain.version, grant.chain)

    def step(self: Replica, event: Any, now_ms: int) -> Any:
        if isinstance(event, m.LeaseRenewed):
            event = event._replace(chain_version=self.chain.version)
        return real_step(self, event, now_ms)

    return [(Manager, "hear", hear), (Replica, "step", step)]


def dirty_read() -> Patches:
    """A read of a dirty chunk is answered with the pending version."""

    def read(self: DirtyReads, read: m.Read, place: Any, now_ms: int) -> Any:
        return [m.ServeRead(read.request, read.chunk, True)]

    return [(DirtyReads, "read", read)]


def old_read() -> Patches:
    """A read of a dirty chunk is answered with the committed version, without asking."""

    def read(self: DirtyReads, read: m.Read, place: Any, now_ms: int) -> Any:
        return [m.ServeRead(read.request, read.chunk, False)]

    return [(DirtyReads, "read", read)]


def late_readers_share_the_answer() -> Patches:
    """A reader that came after the question was put is answered with it."""

    def read(self: DirtyReads, read: m.Read, place: Any, now_ms: int) -> Any:
        question = self._questions.get(read.chunk)
        if question is not None:
            question.readers.append(read)
            return []
        return real(self, read, place, now_ms)

    real = DirtyReads.read
    return [(DirtyReads, "read", read)]


def successor_to_the_tail_shows_the_old() -> Patches:
    """Who takes over as the last serving replica shows what is committed, whatever was shown."""
    return [(Replica, "_is_being_settled", lambda self, chunk: False)]


def acks_by_version() -> Patches:
    """An acknowledgement counts if chunk and version fit."""
    real = Replica._on_ack

    def on_ack(self: Replica, ack: m.Ack, now_ms: int) -> Any:
        lane = self.lanes.get(ack.chunk)
        op = lane.operation if lane is not None else None
        if op is not None and op.version == ack.version:
            ack = ack._replace(link_sequence=op.link_sequence)
        return real(self, ack, now_ms)

    return [(Replica, "_on_ack", on_ack)]


def forwards_are_forgotten() -> Patches:
    """A forward that comes again after its answer is taken as new."""

    def answered(self: IncomingLink, sequence: int, ack: m.Ack) -> None:
        self._answers.pop(sequence, None)

    return [
        (IncomingLink, "answered", answered),
        (IncomingLink, "known", lambda self, sequence: sequence in self._answers),
    ]


def refusals_are_forgotten() -> Patches:
    """A refused update that comes again is tried again, though its sender may have dropped it."""
    real = IncomingLink.answered

    def answered(self: IncomingLink, sequence: int, ack: m.Ack) -> None:
        if ack.code is Code.OK:
            real(self, sequence, ack)
        else:
            self.forget(sequence)

    return [(IncomingLink, "answered", answered)]


def resync_forgets_last_steps() -> Patches:
    """Comparing begins while updates of the chain before are being committed."""
    real = Feeder.pump

    def pump(self: Feeder, now_ms: int) -> Any:
        self._passed_before = []
        return real(self, now_ms)

    return [(Feeder, "pump", pump)]


def resync_trusts_what_is_on_its_way() -> Patches:
    """A resync ends though an update it counts on has not arrived."""
    real = Resync.messages

    def messages(self: Resync, route: Any, table: Any, now_ms: int) -> Any:
        self._awaited.clear()
        return real(self, route, table, now_ms)

    return [(Resync, "messages", messages)]


def resync_keeps_junk() -> Patches:
    """Chunks that only the syncing replica has are left there."""
    real = resync.differing

    def differing(mine: Any, theirs: Any) -> Any:
        return [chunk for chunk in real(mine, theirs) if chunk in dict(mine)]

    return [(resync, "differing", differing)]


def sync_is_ignored() -> Patches:
    """An update that wants stable storage is acknowledged before it is there."""
    real = Operation.stage

    def stage(self: Operation, chain_version: Any) -> Any:
        return real(self, chain_version)._replace(sync=False)

    return [(Operation, "stage", stage)]


def up_to_date_before_the_flush() -> Patches:
    """A syncing replica is promoted with copies that no stable storage has."""

    def on_done(self: Syncing) -> Any:
        if self.uptodate:
            return []
        self.uptodate = True
        return [m.StateChanged(1)]

    return [(Syncing, "on_done", on_done)]


def forward_meets_a_copy() -> Patches:
    """A forward that meets a copy for the syncing successor is answered, and lost."""
    real = Replica._on_forward

    def on_forward(self: Replica, message: m.Forward) -> Any:
        lane = self.lanes.get(message.chunk)
        op = lane.operation if lane is not None else None
        if op is None or not op.resync:
            return real(self, message)
        return [
            self._ack(message.link_sequence, message, Code.OK, message.length, message.checksum)
        ]

    return [(Replica, "_on_forward", on_forward)]


def retries_are_new() -> Patches:
    """A retry of an update is another update."""
    real = updates.known_result

    def known_result(write: m.Write, table: Any) -> Any:
        return real(write._replace(tag=None), table)

    return [(updates, "known_result", known_result)]


def retries_are_answered_early() -> Patches:
    """A client that asks again while its update is on its way down is told that it is done."""
    real = Replica._on_write

    def on_write(self: Replica, write: m.Write, now_ms: int) -> Any:
        lane = self.lanes.get(write.chunk)
        op = lane.operation if lane is not None else None
        if op is None or op.phase is not Phase.FORWARDED or op.tag != write.tag:
            return real(self, write, now_ms)
        result = (op.version, op.staged_length, op.staged_checksum, "")
        return [m.Reply(write.request, Code.OK, *result)]

    return [(Replica, "_on_write", on_write)]


def create_overwrites() -> Patches:
    """What is to be created takes the place of what is there."""

    def settle_create(write: m.Write, meta: Any) -> m.Write:
        return write._replace(kind=UpdateKind.WRITE)

    return [(updates, "settle_create", settle_create)]


def vain_creates_leave_no_record() -> Patches:
    """A late copy of a create that found its chunk there is judged anew."""
    real = updates.known_result

    def known_result(write: m.Write, table: Any) -> Any:
        meta = table.meta(write.chunk)
        if write.kind is UpdateKind.CREATE and meta is not None and meta.version:
            result = (meta.version, meta.length, meta.checksum, "")
            return m.Reply(write.request, Code.OK, *result)
        return real(write, table)

    return [(updates, "known_result", known_result)]


def cuts_do_not_count() -> Patches:
    """Neighbours that do not reach each other stay neighbours."""
    return [(Cuts, "are_cut", lambda self, one, other: False)]


def the_cut_off_leaves_at_once() -> Patches:
    """Who is cut off is taken out before its lease is over."""
    real = Cuts.local_states

    def local_states(self: Cuts, chain: Any, local: Any, now_ms: int, ended_ms: Any) -> Any:
        return real(self, chain, local, now_ms, lambda node: now_ms)

    return [(Cuts, "local_states", local_states)]


MUTANTS: dict[str, Callable[[], Patches]] = {
    mutant.__name__: mutant
    for mutant in (
        any_chain_version,
        commit_before_the_ack,
        serve_past_the_lease,
        channels_stay_at_the_head,
        resync_without_channels,
        resync_compares_versions,
        lease_without_a_version,
        dirty_read,
        old_read,
        late_readers_share_the_answer,
        successor_to_the_tail_shows_the_old,
        acks_by_version,
        forwards_are_forgotten,
        refusals_are_forgotten,
        resync_forgets_last_steps,
        resync_trusts_what_is_on_its_way,
        resync_keeps_junk,
        sync_is_ignored,
        up_to_date_before_the_flush,
        forward_meets_a_copy,
        retries_are_new,
        retries_are_answered_early,
        create_overwrites,
        vain_creates_leave_no_record,
        the_cut_off_leaves_at_once,
        cuts_do_not_count,
    )
}


def settings_of(name: str, seed: int) -> Settings:
    """The world in which ``seed`` looks for this mutant.

    Without what few bugs are about, and which hides others: creates mostly find a chunk there.
    """
    return replace(draw(seed), **{"rift": False, "creates": 0.0, **FOCUS.get(name, {})})


@contextmanager
def planted(name: str) -> Iterator[None]:
    """The bug is there inside."""
    with ExitStack() as stack:
        for owner, attribute, value in MUTANTS[name]():
            stack.enter_context(patch.object(owner, attribute, value))
        yield


def first_seed(name: str) -> int | None:
    """A seed that finds the mutant: the one that found it before, or the first of all."""
    with planted(name):
        for seed in [FOUND_BY.get(name, 0), *range(SEEDS)]:
            if simulate(seed, settings=settings_of(name, seed)).problem is not None:
                return seed
    return None
