"""Any sequence of requests, releases, scopes and changes of the machine keeps the governor's promises."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from pycauset.governor import Scope, Ticket, budgets
from pycauset.governor.ticket import KINDS, Kind
from tests.governor.fakes import governed

kinds = st.sampled_from(KINDS)
sizes = st.one_of(st.integers(0, 400), st.integers(0, 5_000))


class GovernorMachine(RuleBasedStateMachine):
    """A model beside the governor: the list of what was granted, and nothing else."""

    tickets = Bundle("tickets")
    scopes = Bundle("scopes")

    @initialize(total=st.integers(0, 20_000), share=st.floats(0, 1))
    def start(self, total: int, share: float) -> None:
        self.governor, self.memory = governed(total, int(total * share))
        self.held: dict[Ticket, Scope | None] = {}
        self.kept: list[Ticket] = []
        self.chosen: int | None = None
        self.governor.add_reclaimer(self.reclaim)

    def reclaim(self, kind: Kind, nbytes: int) -> int:
        freed = 0
        while freed < nbytes and (mine := [t for t in self.kept if t.kind == kind]):
            self.kept.remove(mine[0])
            del self.held[mine[0]]
            mine[0].release()
            freed += mine[0].nbytes
        return freed

    def bytes_of(self, *wanted: Kind, scope: Scope | None = None) -> int:
        return sum(t.nbytes for t, s in self.held.items() if t.kind in wanted and (scope is None or s is scope))

    def granted(self, ticket: Ticket, scope: Scope | None) -> None:
        self.held[ticket] = scope
        ceiling = budgets.ram_ceiling(self.governor._reachable)
        if ticket.kind != "device" and ticket.nbytes:
            assert self.bytes_of("host", "pinned") <= ceiling
        limited = scope is not None and scope._limits["host"] is not None
        if ticket.nbytes and not (ticket.kind == "host" and limited):
            assert self.bytes_of(ticket.kind) <= self.governor.budget(ticket.kind)
        if scope is not None:
            limit = scope._limits[ticket.kind]
            shared: tuple[Kind, ...] = ("device",) if ticket.kind == "device" else ("host", "pinned")
            assert limit is None or self.bytes_of(*shared, scope=scope) <= limit

    @rule(target=tickets, kind=kinds, nbytes=sizes, keep=st.booleans())
    def request(self, kind: Kind, nbytes: int, keep: bool) -> Ticket | None:
        ticket = self.governor.request(kind, nbytes, owner="t")
        if ticket is not None:
            self.granted(ticket, None)
            if keep:
                self.kept.append(ticket)
        return ticket

    @rule(target=scopes, host=st.none() | sizes, device=st.none() | sizes)
    def open_scope(self, host: int | None, device: int | None) -> Scope:
        return self.governor.scope(host=host, device=device, owner="s")

    @rule(target=tickets, scope=scopes, kind=kinds, nbytes=sizes)
    def request_in_scope(self, scope: Scope, kind: Kind, nbytes: int) -> Ticket | None:
        if scope._closed:
            return None
        room = scope.available(kind)
        ticket = scope.request(kind, nbytes)
        assert ticket is not None or nbytes > room
        if ticket is not None:
            self.granted(ticket, scope)
        return ticket

    @rule(scope=consumes(scopes))
    def close_scope(self, scope: Scope) -> None:
        left = {t for t, s in self.held.items() if s is scope}
        assert len(scope.close()) == len(left)
        for ticket in left:
            assert ticket.released
            del self.held[ticket]

    @rule(ticket=tickets)
    def release(self, ticket: Ticket | None) -> None:
        if ticket is not None:
            ticket.release()
            self.held.pop(ticket, None)
            if ticket in self.kept:
                self.kept.remove(ticket)

    @rule(ticket=tickets, part=st.floats(0, 1))
    def shrink(self, ticket: Ticket | None, part: float) -> None:
        if ticket is not None and not ticket.released:
            ticket.shrink(int(ticket.nbytes * part))

    @rule(ticket=tickets, scope=scopes)
    def move(self, ticket: Ticket | None, scope: Scope) -> None:
        if ticket is None or ticket.released or scope._closed:
            return
        if self.held[ticket] is None:
            if scope.adopt(ticket):
                self.held[ticket] = scope
                if ticket in self.kept:
                    self.kept.remove(ticket)
        elif self.held[ticket] is scope:
            scope.detach(ticket)
            self.held[ticket] = None

    @rule(nbytes=st.none() | sizes)
    def choose_pinning(self, nbytes: int | None) -> None:
        self.governor.set_pinning_budget(nbytes)

    @rule(free=st.integers(0, 20_000))
    def others_move(self, free: int) -> None:
        self.memory.free = min(free, self.memory.total)

    @rule(total=st.integers(0, 20_000), share=st.floats(0, 1))
    def device(self, total: int, share: float) -> None:
        self.governor.set_device_memory(total, int(total * share))

    @invariant()
    def accounts_match(self) -> None:
        if not hasattr(self, "governor"):
            return
        for kind in KINDS:
            assert self.governor.in_use(kind) == self.bytes_of(kind)
        assert len(self.governor.outstanding()) == len(self.held)
        for scope in {s for s in self.held.values() if s is not None}:
            assert scope.in_use("host") == self.bytes_of("host", "pinned", scope=scope)
            assert scope.in_use("device") == self.bytes_of("device", scope=scope) <= scope.peak("device")

    def teardown(self) -> None:
        if hasattr(self, "governor"):
            for ticket in list(self.held):
                ticket.release()
            assert [self.governor.in_use(kind) for kind in KINDS] == [0, 0, 0]


TestGovernor = GovernorMachine.TestCase
TestGovernor.settings = settings(max_examples=60, stateful_step_count=40)
