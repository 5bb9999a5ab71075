package store

import (
	"fmt"
	"testing"

	"github.com/baton-cluster/baton/wire"
)

func TestBegin(t *testing.T) {
	h := newHarness(t).attached()
	before := h.row("s").Change
	c := h.beginCmd("s", "w2", "nonce")
	m := h.ok(c).Migration
	r := h.row("s")
	if m.Id != h.index<<12 || m.Phase != wire.Phase_PHASE_BEGUN || r.Migration != m.Id || r.Change != before {
		t.Fatalf("migration %v, row %v", m, r)
	}
	// Idempotent by nonce, for as long as it is remembered (S10).
	if got := h.duplicate(c).Migration; got.Id != m.Id {
		t.Fatalf("a retried Begin began another: %v", got)
	}
	h.refuse(wire.Code_MIGRATION_ACTIVE, h.beginCmd("s", "w3", "other"))
	h.ok(abortCmd(m.Id))
	if got := h.duplicate(c).Migration; got.Id != m.Id || got.Phase != wire.Phase_PHASE_ABORTED {
		t.Fatalf("a delayed Begin revives an aborted migration: %v", got)
	}
	h.ok(h.beginCmd("s", "w3", "other"))
}

func TestBeginRefusals(t *testing.T) {
	for name, tc := range map[string]struct {
		code    wire.Code
		prepare func(h *harness)
		change  func(h *harness, b *wire.BeginMigration)
	}{
		"session":      {wire.Code_UNKNOWN_SESSION, nil, func(_ *harness, b *wire.BeginMigration) { b.Session = "x" }},
		"no nonce":     {wire.Code_BAD_REQUEST, nil, func(_ *harness, b *wire.BeginMigration) { b.Nonce = nil }},
		"epoch":        {wire.Code_STALE_EPOCH, nil, func(_ *harness, b *wire.BeginMigration) { b.SourceEpoch-- }},
		"source":       {wire.Code_SOURCE_STALE, nil, func(h *harness, b *wire.BeginMigration) { b.Source = h.owner("w3") }},
		"incarnation":  {wire.Code_SOURCE_STALE, nil, func(_ *harness, b *wire.BeginMigration) { b.Source.Incarnation++ }},
		"fenced":       {wire.Code_NO_OWNER, func(h *harness) { h.ok(fenceCmd(h.owner("w1"))) }, nil},
		"target":       {wire.Code_TARGET_STALE, nil, func(_ *harness, b *wire.BeginMigration) { b.Target.Incarnation++ }},
		"target dead":  {wire.Code_TARGET_STALE, func(h *harness) { h.ok(fenceCmd(h.owner("w2"))) }, nil},
		"draining":     {wire.Code_TARGET_DRAINING, func(h *harness) { h.ok(drainCmd("w2", false)) }, nil},
		"same":         {wire.Code_SAME_NODE, nil, func(h *harness, b *wire.BeginMigration) { b.Target = h.owner("w1") }},
		"deadline now": {wire.Code_DEADLINE_PASSED, nil, func(h *harness, b *wire.BeginMigration) { b.DeadlineUs = h.time }},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t).attached()
			if tc.prepare != nil {
				tc.prepare(h)
			}
			c := h.beginCmd("s", "w2", "nonce")
			if tc.change != nil {
				tc.change(h, c.GetBegin())
			}
			h.refuse(tc.code, c)
		})
	}
	// A draining source is what a drain is for.
	h := newHarness(t).attached()
	h.ok(drainCmd("w1", false))
	h.begin("s", "w2")
}

func TestPivot(t *testing.T) {
	h := newHarness(t).attached()
	h.ok(h.writeCmd("s", "c", 1, 0, put("k", "v")))
	m := h.begin("s", "w2")
	old := h.row("s")
	pivot := h.pivotCmd(m, "c", "stranger")
	res := h.ok(pivot)
	r := res.Row
	switch {
	case r.Epoch <= old.Epoch || r.Owner.Worker != "w2" || res.Epoch != r.Epoch || r.Migration != 0:
		t.Fatalf("row %v", r)
	case len(r.Attachments) != 1 || r.Attachments[0].Number != 1 || string(r.Attachments[0].Client) != "c" ||
		r.AttachHigh != 1 || r.ExpiresUs != 0:
		t.Fatalf("S7: attachment 1 of the new epoch is the warm client's: %v", r.Attachments)
	case res.Migration.Phase != wire.Phase_PHASE_PIVOTED || res.Migration.TargetEpoch != r.Epoch || res.Migration.Digest != 77:
		t.Fatalf("migration %v", res.Migration)
	case res.Before != old.Change || res.After != res.Position || r.Change != res.Position:
		t.Fatalf("result %v", res)
	}
	last := r.History[len(r.History)-1]
	if last.Migration != m.Id || last.From != "w1" || last.Reason != "load_balancing" || last.By != "operator" {
		t.Fatalf("history %v", last)
	}
	dup := h.duplicate(pivot)
	if dup.Row.GetEpoch() != r.Epoch {
		t.Fatalf("a retried pivot returns the row: %v", dup)
	}
	other := with(pivot, func(c *wire.Command) { c.GetPivot().Digest++ })
	h.refuse(wire.Code_MIGRATION_PIVOTED, other)
	h.refuse(wire.Code_MIGRATION_PIVOTED, abortCmd(m.Id))
	// The source writes no more, the target does.
	h.refuse(wire.Code_STALE_EPOCH, with(h.writeCmd("s", "c", 2, 1), func(c *wire.Command) {
		c.GetWrite().Epoch, c.GetWrite().Owner = old.Epoch, old.Owner
	}))
	h.duplicate(h.writeCmd("s", "c", 1, 0, put("k", "v")))
	h.ok(h.writeCmd("s", "c", 2, 1))
	h.refuse(wire.Code_MIGRATION_PIVOTED, other)

	// H3: a pivoted migration blocks no new Begin, and a late pivot of the first
	// does not return a row that is not its own.
	m2 := h.begin("s", "w3")
	if active := h.s.ActiveMigrations(); len(active) != 2 {
		t.Fatalf("active %v", active)
	}
	h.ok(h.pivotCmd(m2, "c"))
	h.refuse(wire.Code_MIGRATION_PIVOTED, pivot)

	end := endCmd(m.Id, 1234)
	change := h.row("s").Change
	if got := h.ok(end).Migration; got.Phase != wire.Phase_PHASE_COMPLETED || got.PauseUs != 1234 {
		t.Fatalf("migration %v", got)
	}
	h.duplicate(end)
	r = h.row("s")
	if r.Change != change {
		t.Fatal("EndMigration moved the change position")
	}
	for _, c := range r.History {
		if want := map[bool]uint64{true: 1234}[c.Migration == m.Id]; c.PauseUs != want {
			t.Fatalf("history %v", c)
		}
	}
}

// H2, one row for each condition: with it broken, the pivot must be refused.
func TestPivotConditions(t *testing.T) {
	for name, tc := range map[string]struct {
		code   wire.Code
		change func(h *harness, m *wire.Migration, p *wire.CommitPivot)
	}{
		"unknown": {wire.Code_UNKNOWN_MIGRATION, func(_ *harness, _ *wire.Migration, p *wire.CommitPivot) { p.Migration++ }},
		"aborted": {wire.Code_MIGRATION_ENDED, func(h *harness, m *wire.Migration, _ *wire.CommitPivot) { h.ok(abortCmd(m.Id)) }},
		"late": {wire.Code_DEADLINE_PASSED, func(h *harness, m *wire.Migration, _ *wire.CommitPivot) {
			h.tick(m.DeadlineUs - h.time + 1)
		}},
		"not attested":         {wire.Code_NOT_ATTESTED, func(_ *harness, _ *wire.Migration, p *wire.CommitPivot) { p.Attested = 0 }},
		"attested for another": {wire.Code_NOT_ATTESTED, func(_ *harness, _ *wire.Migration, p *wire.CommitPivot) { p.Attested-- }},
		"target fenced": {wire.Code_TARGET_STALE, func(h *harness, _ *wire.Migration, _ *wire.CommitPivot) {
			h.ok(fenceCmd(h.owner("w2")))
		}},
		"target restarted": {wire.Code_TARGET_STALE, func(h *harness, _ *wire.Migration, _ *wire.CommitPivot) {
			h.register("w2", "restart", h.owner("w2").Incarnation)
		}},
		"written since": {wire.Code_CHANGE_MISMATCH, func(h *harness, _ *wire.Migration, _ *wire.CommitPivot) {
			h.ok(h.writeCmd("s", "c", 1, 0))
		}},
		"detached since": {wire.Code_CHANGE_MISMATCH, func(h *harness, _ *wire.Migration, _ *wire.CommitPivot) {
			h.ok(h.detachCmd("s", 1))
		}},
		"change of another": {wire.Code_CHANGE_MISMATCH, func(_ *harness, _ *wire.Migration, p *wire.CommitPivot) { p.Change++ }},
		"closed": {wire.Code_MIGRATION_ENDED, func(h *harness, _ *wire.Migration, _ *wire.CommitPivot) {
			h.ok(h.closeCmd("s"))
		}},
		"reassigned": {wire.Code_MIGRATION_ENDED, func(h *harness, _ *wire.Migration, p *wire.CommitPivot) {
			h.ok(fenceCmd(h.owner("w1")))
			p.Change = h.ok(h.assignCmd("s", "w3")).After
		}},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t).attached()
			m := h.begin("s", "w2")
			c := h.pivotCmd(m, "c")
			tc.change(h, m, c.GetPivot())
			h.refuse(tc.code, c)
		})
	}
}

// The last condition of H2 that the tables themselves uphold: should a row ever
// have left the source epoch or owner with its migration still active, the
// pivot is refused all the same.
func TestPivotChecksEpochAndOwner(t *testing.T) {
	h := newHarness(t).attached()
	m := h.begin("s", "w2")
	p := h.pivotCmd(m).GetPivot()
	row := *h.s.row("s")
	row.epoch++
	if code := h.s.checkPivot(h.s.migration(m.Id), &row, p); code != wire.Code_STALE_EPOCH {
		t.Errorf("epoch: %v", code)
	}
	row = *h.s.row("s")
	row.owner = ownerOf(h.owner("w3"))
	if code := h.s.checkPivot(h.s.migration(m.Id), &row, p); code != wire.Code_SOURCE_STALE {
		t.Errorf("owner: %v", code)
	}
	if code := h.s.checkPivot(h.s.migration(m.Id), nil, p); code != wire.Code_UNKNOWN_SESSION {
		t.Errorf("no row: %v", code)
	}
}

func TestPivotAtTheDeadline(t *testing.T) {
	h := newHarness(t).attached()
	m := h.begin("s", "w2")
	h.tick(m.DeadlineUs - h.time)
	h.ok(h.pivotCmd(m))
}

// The freeze is needless only if the source's incarnation is no longer valid.
func TestPivotOfADeadSource(t *testing.T) {
	for name, end := range map[string]func(h *harness){
		"fenced":    func(h *harness) { h.ok(fenceCmd(h.owner("w1"))) },
		"restarted": func(h *harness) { h.register("w1", "restart", h.owner("w1").Incarnation) },
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t).attached()
			m := h.begin("s", "w2")
			end(h)
			h.ok(with(h.pivotCmd(m, "c"), func(c *wire.Command) { c.GetPivot().Attested = 0 }))
			// The session has a valid owner again: nobody may reassign it.
			h.refuse(wire.Code_OWNER_VALID, h.assignCmd("s", "w3"))
		})
	}
}

// A freeze of an aborted attempt must not pivot a later one.
func TestAttestationNamesTheMigration(t *testing.T) {
	h := newHarness(t).attached()
	first := h.begin("s", "w2")
	h.ok(abortCmd(first.Id))
	second := h.begin("s", "w3")
	h.refuse(wire.Code_NOT_ATTESTED, with(h.pivotCmd(second), func(c *wire.Command) { c.GetPivot().Attested = first.Id }))
}

func TestPivotAttachments(t *testing.T) {
	h := newHarness(t)
	h.open("detached", "w1")
	want := h.row("detached").ExpiresUs
	h.tick(second)
	m := h.begin("detached", "w2")
	if r := h.ok(h.pivotCmd(m)).Row; r.ExpiresUs != want || len(r.Attachments) != 0 {
		t.Fatalf("H5, S8: a detached session moves, its TTL running on: %v", r)
	}

	h.attached()
	m = h.begin("s", "w2")
	if r := h.ok(h.pivotCmd(m)).Row; r.ExpiresUs != h.time+ttl || len(r.Attachments) != 0 || r.AttachHigh != 0 {
		t.Fatalf("no client is warm, so it is detached, and TTL starts: %v", r)
	}
	// A displaced instance stays displaced.
	h.ok(h.attachCmd("s", "d", 1))
	m = h.begin("s", "w1")
	if r := h.ok(h.pivotCmd(m, "c", "d", "c")).Row; len(r.Attachments) != 1 || string(r.Attachments[0].Client) != "d" ||
		r.Attachments[0].Number != 1 {
		t.Fatalf("attachments %v", r.Attachments)
	}
	m = h.begin("s", "w3")
	if r := h.ok(h.pivotCmd(m, "d", "c")).Row; len(r.Attachments) != 1 || string(r.Attachments[0].Client) != "d" {
		t.Fatalf("attachments %v", r.Attachments)
	}

	h.openShared("shared", "w1")
	h.ok(h.attachCmd("shared", "x", 5))
	h.ok(h.attachCmd("shared", "y", 6))
	m = h.begin("shared", "w2")
	r := h.ok(h.pivotCmd(m, "y", "x", "y", "nobody")).Row
	if len(r.Attachments) != 2 || string(r.Attachments[0].Client) != "y" || r.Attachments[1].Number != 2 || r.AttachHigh != 2 {
		t.Fatalf("attachments %v", r.Attachments)
	}
}

func TestAbortAndEnd(t *testing.T) {
	h := newHarness(t).attached()
	h.refuse(wire.Code_UNKNOWN_MIGRATION, abortCmd(5))
	h.refuse(wire.Code_UNKNOWN_MIGRATION, endCmd(5, 0))
	m := h.begin("s", "w2")
	if res := h.do(endCmd(m.Id, 0)); res.Code != wire.Code_MIGRATION_ENDED {
		t.Fatalf("ending what has not pivoted: %v", res)
	}
	change := h.row("s").Change
	res := h.ok(abortCmd(m.Id))
	if res.Migration.Phase != wire.Phase_PHASE_ABORTED || res.Migration.Why != "why" || res.Before != change || res.After != change {
		t.Fatalf("result %v", res)
	}
	if got := h.duplicate(abortCmd(m.Id)).Migration; got.Phase != wire.Phase_PHASE_ABORTED {
		t.Fatalf("migration %v", got)
	}
	h.refuse(wire.Code_MIGRATION_ENDED, endCmd(m.Id, 0))
	h.ok(h.writeCmd("s", "c", 1, 0)) // back at the source
	if active := h.s.ActiveMigrations(); len(active) != 0 {
		t.Fatalf("active %v", active)
	}
}

// Commit 3 needs neither the client nor the session.
func TestEndWithoutSession(t *testing.T) {
	h := newHarness(t).attached()
	m := h.begin("s", "w2")
	h.ok(h.pivotCmd(m))
	h.ok(h.closeCmd("s"))
	if got := h.s.Migration(m.Id).Phase; got != wire.Phase_PHASE_PIVOTED {
		t.Fatalf("closing ends active migrations only: %v", got)
	}
	h.ok(endCmd(m.Id, 1))
}

func TestMigrationEvents(t *testing.T) {
	h := newHarness(t).attached()
	m := h.begin("s", "w2")
	want := []Event{{Kind: EventSession, Session: "s", Worker: "w1", Migration: m.Id}, {Kind: EventMigration, Session: "s", Worker: "w1", Migration: m.Id}}
	if fmt.Sprint(h.events) != fmt.Sprint(want) {
		t.Fatalf("events %v", h.events)
	}
	h.ok(h.pivotCmd(m))
	want = []Event{{Kind: EventSession, Session: "s", Worker: "w2"}, {Kind: EventMigration, Session: "s", Worker: "w2", Migration: m.Id}}
	if fmt.Sprint(h.events) != fmt.Sprint(want) {
		t.Fatalf("events %v", h.events)
	}
}

// Many begins and pivots in one entry (H8).
func TestBatchedMigrations(t *testing.T) {
	h := newHarness(t)
	var begins, pivots []*wire.Command
	for i := range 5 {
		id := fmt.Sprint(i)
		h.open(id, "w1")
		begins = append(begins, h.beginCmd(id, "w2", "nonce "+id))
	}
	seen := map[uint64]bool{}
	for _, res := range h.entry(begins...) {
		seen[res.Migration.GetId()] = true
		pivots = append(pivots, h.pivotCmd(res.Migration))
	}
	epochs := map[uint64]bool{}
	for _, res := range h.entry(pivots...) {
		if res.Code != wire.Code_OK {
			t.Fatalf("pivot: %v", res)
		}
		epochs[res.Epoch] = true
	}
	if len(seen) != 5 || len(epochs) != 5 {
		t.Fatalf("ids %v, epochs %v", seen, epochs)
	}
}

func TestEndedMigrationsAreBounded(t *testing.T) {
	h := newHarness(t)
	h.open("s", "w1")
	first := h.begin("s", "w2")
	h.ok(abortCmd(first.Id))
	for i := range wire.EndedMigrationsMax {
		nonce := fmt.Sprint(i)
		h.index++
		res, _ := h.s.Apply(h.index, &wire.Entry{Commands: []*wire.Command{h.beginCmd("s", "w2", nonce)}})
		h.index++
		h.s.Apply(h.index, &wire.Entry{Commands: []*wire.Command{abortCmd(res[0].Migration.Id)}})
	}
	if h.s.Migration(first.Id) != nil {
		t.Fatal("the oldest is still there")
	}
	checkInvariants(t, h.s)
	newest := h.s.Migrations(2)
	if len(newest) != 2 || newest[0].Id <= newest[1].Id {
		t.Fatalf("newest first: %v", newest)
	}
}

// TestSlowMigrationIsRemembered: who was moved slowly, while many others were, is asked
// about once more: the log's answer to its end may be lost.
func TestSlowMigrationIsRemembered(t *testing.T) {
	h := newHarness(t)
	h.open("slow", "w1")
	h.open("s", "w1")
	slow := h.begin("slow", "w2")
	for i := range wire.EndedMigrationsMax {
		h.index++
		res, _ := h.s.Apply(h.index, &wire.Entry{Commands: []*wire.Command{h.beginCmd("s", "w2", fmt.Sprint(i))}})
		h.index++
		h.s.Apply(h.index, &wire.Entry{Commands: []*wire.Command{abortCmd(res[0].Migration.Id)}})
	}
	h.time += second
	h.ok(abortCmd(slow.Id))
	if m := h.s.Migration(slow.Id); m.GetPhase() != wire.Phase_PHASE_ABORTED {
		t.Fatalf("the last to end is forgotten: %v", m)
	}
	checkInvariants(t, h.s)
}
