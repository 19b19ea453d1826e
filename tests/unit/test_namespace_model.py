"""The namespace against a plain tree of dicts, under random operations, lost answers and repeats.

Every change goes through ``once`` as a service would send it: commits are lost, or applied with the
answer lost, by chance, and then repeated with the same request id; old requests are asked again at
any time. The tree knows nothing of that: each change happens to it once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from namespace_world import ROOT, TABLES, World

from fs3.errors import Code, Fs3Error
from fs3.metaserver import namespace
from fs3.metaserver.kv.interface import Transaction
from fs3.metaserver.kv.memory import Fault, MemoryEngine
from fs3.types import ROOT_INODE, FileKind, SetAttributes

CLIENT = 7
NAMES = st.sampled_from(["a", "b", "c", "d"])
LOST = st.lists(st.sampled_from([Fault.LOSE, Fault.LOSE_ANSWER, Fault.REFUSE]), max_size=3)


@dataclass(eq=False)
class Node:
    """An inode of the model."""

    kind: FileKind
    inode: int
    children: dict[str, Node] = field(default_factory=dict)
    links: int = 1
    length: int = 0
    sessions: set[int] = field(default_factory=set)

    def holds(self, other: Node) -> bool:
        return self is other or any(child.holds(other) for child in self.children.values())


class NamespaceMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.faults: list[Fault] = []
        engine = MemoryEngine(
            faults=lambda: self.faults.pop() if self.faults else Fault.NONE,
            pause=lambda attempt: None,
        )
        self.world = World(engine)
        self.root = Node(FileKind.DIRECTORY, ROOT_INODE)
        self.unnamed: list[Node] = []  # without a name, held open
        self.garbage: set[int] = set()
        self.answers: list[tuple[Callable[[Transaction], bytes], bytes]] = []

    # --- doing one change on both sides ---

    def change(
        self, faults: list[Fault], work: Callable[[Transaction], object], expected: Code | None
    ) -> int:
        """Run ``work`` exactly once whatever gets lost; the number it answered with."""
        request = len(self.answers) + 1
        now_ns = self.world.tick()

        def asked(txn: Transaction) -> bytes:
            return namespace.once(txn, CLIENT, request, now_ns, lambda: b"%d" % (work(txn) or 0))

        self.faults[:] = faults
        code, answer = None, b"0"
        while True:
            try:
                answer = self.world.run(asked)
            except Fs3Error as error:
                code = error.code
                if code is Code.MAYBE_APPLIED:
                    continue
            else:
                code = None
            break
        self.faults.clear()
        assert code is expected
        if code is None:
            self.answers.append((asked, answer))
        return int(answer)

    def directories(self) -> list[Node]:
        found, todo = [], [self.root]
        while todo:
            node = todo.pop()
            if node.kind is FileKind.DIRECTORY:
                found.append(node)
                todo += node.children.values()
        return found

    def directory(self, choice: int) -> Node:
        directories = self.directories()
        return directories[choice % len(directories)]

    def files(self) -> list[Node]:
        named = [n for d in self.directories() for n in d.children.values()]
        return [n for n in (*named, *self.unnamed) if n.kind is FileKind.FILE]

    def drop(self, node: Node) -> None:
        """Take one name from a node of the model."""
        node.links -= 1
        if node.links == 0 and node.kind is FileKind.FILE:
            if node.sessions:
                self.unnamed.append(node)
            else:
                self.garbage.add(node.inode)

    # --- rules ---

    where = st.integers(0, 20)

    @rule(
        where=where,
        name=NAMES,
        kind=st.sampled_from([FileKind.FILE, FileKind.DIRECTORY, FileKind.SYMLINK]),
        faults=LOST,
    )
    def make(self, where, name, kind, faults):
        parent = self.directory(where)
        new = self.world.new()

        def work(txn):
            if kind is FileKind.FILE:
                made = namespace.create(txn, parent.inode, name, new, TABLES, exclusive=True).inode
            elif kind is FileKind.DIRECTORY:
                made = namespace.mkdir(txn, parent.inode, name, new)
            else:
                made = namespace.symlink(txn, parent.inode, name, "x", new)
            return made.inode

        expected = Code.EXISTS if name in parent.children else None
        inode = self.change(faults, work, expected)
        if expected is None:
            parent.children[name] = Node(kind, inode)

    @rule(where=where, name=NAMES, faults=LOST)
    def unlink(self, where, name, faults):
        parent = self.directory(where)
        node = parent.children.get(name)
        expected = None
        if node is None:
            expected = Code.NOT_FOUND
        elif node.kind is FileKind.DIRECTORY:
            expected = Code.IS_DIRECTORY
        now_ns = self.world.tick()
        self.change(
            faults,
            lambda txn: namespace.unlink(txn, parent.inode, name, ROOT, now_ns).inode,
            expected,
        )
        if expected is None:
            self.drop(parent.children.pop(name))

    @rule(where=where, name=NAMES, faults=LOST)
    def rmdir(self, where, name, faults):
        parent = self.directory(where)
        node = parent.children.get(name)
        expected = None
        if node is None:
            expected = Code.NOT_FOUND
        elif node.kind is not FileKind.DIRECTORY:
            expected = Code.NOT_DIRECTORY
        elif node.children:
            expected = Code.NOT_EMPTY
        now_ns = self.world.tick()
        self.change(
            faults, lambda txn: namespace.rmdir(txn, parent.inode, name, ROOT, now_ns), expected
        )
        if expected is None:
            del parent.children[name]

    @precondition(lambda self: self.files())
    @rule(choice=where, where=where, name=NAMES, faults=LOST)
    def link(self, choice, where, name, faults):
        files = self.files()
        node, parent = files[choice % len(files)], self.directory(where)
        expected = None
        if node.links == 0:
            expected = Code.NOT_FOUND
        elif name in parent.children:
            expected = Code.EXISTS
        now_ns = self.world.tick()
        self.change(
            faults,
            lambda txn: namespace.link(txn, node.inode, parent.inode, name, ROOT, now_ns).inode,
            expected,
        )
        if expected is None:
            parent.children[name] = node
            node.links += 1

    @rule(
        where=where,
        name=NAMES,
        new_where=where,
        new_name=NAMES,
        flag=st.sampled_from(["", "", "no_replace", "exchange"]),
        faults=LOST,
    )
    def rename(self, where, name, new_where, new_name, flag, faults):
        parent, new_parent = self.directory(where), self.directory(new_where)
        flags = {flag: True} if flag else {}
        expected = self.rename_refusal(parent, name, new_parent, new_name, flag)
        now_ns = self.world.tick()
        ends = (parent.inode, name, new_parent.inode, new_name)
        self.change(
            faults, lambda txn: namespace.rename(txn, *ends, ROOT, now_ns, **flags).inode, expected
        )
        if expected is not None:
            return
        moved, other = parent.children[name], new_parent.children.get(new_name)
        if moved is other:
            return
        if flag == "exchange":
            parent.children[name] = other
        else:
            del parent.children[name]
            if other is not None:
                self.drop(other)
        new_parent.children[new_name] = moved

    def rename_refusal(self, parent, name, new_parent, new_name, flag) -> Code | None:
        moved, other = parent.children.get(name), new_parent.children.get(new_name)
        refusals = [
            (moved is None, Code.NOT_FOUND),
            (flag == "exchange" and other is None, Code.NOT_FOUND),
            (flag == "no_replace" and other is not None, Code.EXISTS),
        ]
        for wrong, code in refusals:
            if wrong:
                return code
        if moved.holds(new_parent) and parent is not new_parent:
            return Code.INVALID
        if other is None or other is moved:
            return None
        if flag == "exchange":
            within = parent is not new_parent and other.holds(parent)
            return Code.INVALID if within else None
        if other.kind is FileKind.DIRECTORY:
            if moved.kind is not FileKind.DIRECTORY:
                return Code.IS_DIRECTORY
            return Code.NOT_EMPTY if other.children else None
        return Code.NOT_DIRECTORY if moved.kind is FileKind.DIRECTORY else None

    @precondition(lambda self: self.files())
    @rule(choice=where, length=st.integers(0, 5), how=st.sampled_from(["set", "settle", "append"]))
    def resize(self, choice, length, how):
        files = self.files()
        node = files[choice % len(files)]
        inode = self.world.inode(node.inode)
        now_ns = self.world.tick()
        match how:
            case "set":
                change = SetAttributes(length_bytes=length)
                self.world.run(namespace.set_attributes, node.inode, change, ROOT, now_ns)
                node.length = length
            case "settle":
                wrote = namespace.Wrote(length, inode.truncate_version)
                self.world.run(namespace.settle_length, node.inode, wrote, now_ns)
                node.length = max(node.length, length)
            case _:
                got = self.world.run(namespace.reserve_append, node.inode, length + 1, now_ns)
                assert got[0] == node.length
                node.length += length + 1

    @precondition(lambda self: self.files())
    @rule(choice=where, session=st.integers(1, 3), write=st.booleans())
    def open(self, choice, session, write):
        files = self.files()
        node = files[choice % len(files)]
        mode = namespace.OpenMode(
            read=not write, write=write, handle=namespace.Handle(CLIENT, session)
        )
        self.world.run(namespace.open_file, node.inode, ROOT, mode, self.world.tick())
        node.sessions.add(session)

    @precondition(lambda self: self.files())
    @rule(choice=where, session=st.integers(1, 3))
    def close(self, choice, session):
        files = self.files()
        node = files[choice % len(files)]
        self.world.close(node.inode, namespace.Handle(CLIENT, session))
        node.sessions.discard(session)
        self.settle_unnamed()

    @rule()
    def lose_the_client(self):
        while self.world.run(namespace.prune_sessions, CLIENT, self.world.tick(), 2) == 2:
            pass
        for node in self.files():
            node.sessions.clear()
        self.settle_unnamed()

    def settle_unnamed(self) -> None:
        self.garbage |= {node.inode for node in self.unnamed if not node.sessions}
        self.unnamed = [node for node in self.unnamed if node.sessions]

    @rule()
    def collect_garbage(self):
        for garbage in self.world.run(namespace.gc_next, 100, self.world.now_ns):
            self.world.run(namespace.gc_done, garbage)
            self.garbage.remove(garbage.inode.inode)
        assert self.garbage == set()

    @precondition(lambda self: self.answers)
    @rule(choice=st.integers(0, 1000))
    def ask_again(self, choice):
        asked, answer = self.answers[choice % len(self.answers)]
        assert self.world.run(asked) == answer

    # --- what must hold ---

    @invariant()
    def trees_are_the_same(self):
        seen: set[int] = set()
        todo = [(self.root, ROOT_INODE)]
        while todo:
            node, parent = todo.pop()
            inode = self.world.inode(node.inode)
            seen.add(node.inode)
            assert inode.kind is node.kind
            if node.kind is not FileKind.DIRECTORY:
                assert inode.links == node.links
                if node.kind is FileKind.FILE:
                    assert inode.length_bytes == node.length
                continue
            assert inode.parent == parent
            below = [c for c in node.children.values() if c.kind is FileKind.DIRECTORY]
            assert inode.links == 2 + len(below)
            entries = self.world.run(namespace.read_directory, node.inode, ROOT).entries
            assert {e.name: (e.inode, e.kind) for e in entries} == {
                name: (child.inode, child.kind) for name, child in node.children.items()
            }
            todo += [(child, node.inode) for child in node.children.values()]
        assert set(self.world.garbage()) == self.garbage
        inodes = len(seen) + len(self.garbage) + len(self.unnamed)
        assert self.world.run(namespace.statfs, 0, 0).inodes == inodes
        rows = self.world.engine.transaction().range(b"INOD", b"INOE")
        assert len(rows) == inodes


NamespaceMachine.TestCase.settings = settings(
    max_examples=40,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestNamespaceAgainstModel = NamespaceMachine.TestCase
