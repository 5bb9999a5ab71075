package store

import (
	"bytes"
	"fmt"
	"slices"
	"testing"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/baton-cluster/baton/wire"
)

// fataler is *testing.T or *rapid.T.
type fataler interface {
	Helper()
	Fatalf(format string, args ...any)
}

// checkInvariants recomputes everything that the store keeps incrementally, and
// checks what the comments call invariants. It takes no snapshot, so that rows
// go on being modified in place.
func checkInvariants(t fataler, s *Store) {
	t.Helper()
	fresh := New()
	fresh.gen = s.gen
	fresh.timeUS = s.timeUS
	s.workers.Scan(func(w *worker) bool {
		if w.incarnation > s.epochs {
			t.Fatalf("worker %s: incarnation above the counter", w.id)
		}
		fresh.setWorker(workerOf(w.proto()))
		return true
	})
	s.sessions.Scan(func(e slot) bool {
		r := s.unpacked(e)
		if e.live == nil {
			r.rehashAll(&fresh.h)
		}
		checkSlot(t, s, e, r)
		checkRow(t, s, r)
		again, err := loadRow(&fresh.h, proto.Clone(r.proto()).(*wire.SessionRow))
		if err != nil {
			t.Fatalf("session %s: %v", r.id, err)
		}
		if again.parts != r.parts || fresh.h.row(again) != r.hash {
			t.Fatalf("session %s: its hash is not that of its content", r.id)
		}
		if again.stateBytes != r.stateBytes || again.replyBytes != r.replyBytes ||
			again.replyCount != r.replyCount || again.outboxBytes != r.outboxBytes {
			t.Fatalf("session %s: its sizes are not those of its content", r.id)
		}
		fresh.insert(again)
		return true
	})
	active := map[string]uint64{}
	s.migrations.Scan(func(m *migration) bool {
		fresh.setMigration(migrationOf(m.proto()))
		if m.phase == wire.Phase_PHASE_BEGUN {
			if active[m.session] != 0 {
				t.Fatalf("session %s: two active migrations", m.session)
			}
			active[m.session] = m.id
			if r := s.row(m.session); r == nil || r.migration != m.id {
				t.Fatalf("migration %d is active, its session does not know", m.id)
			}
		}
		return true
	})
	s.sessions.Scan(func(e slot) bool {
		r := s.unpacked(e)
		if active[r.id] != r.migration {
			t.Fatalf("session %s: migration %d is not active", r.id, r.migration)
		}
		return true
	})
	s.closed.Scan(func(c *closed) bool {
		fresh.remember(closedOf(c.proto()))
		return true
	})
	s.jobs.Scan(func(j *job) bool {
		checkJob(t, s, j)
		again, ok := fresh.h.jobOf(j.proto())
		if !ok {
			t.Fatalf("job %d could not be loaded", j.id)
		}
		fresh.setJob(again)
		return true
	})
	if keys, ok := ringOf(s.Keys()); !ok || len(keys) != len(s.keys) {
		t.Fatalf("the key ring could not be loaded: %v", s.Keys())
	}
	if tokens, ok := joinTokensOf(s.JoinTokens()); !ok || len(tokens) != len(s.joinTokens) {
		t.Fatalf("the join tokens could not be loaded: %v", s.JoinTokens())
	}
	if fresh.sum != s.sum || fresh.used != s.used {
		t.Fatalf("hash %x or bytes used %d, recomputed %x and %d", s.sum, s.used, fresh.sum, fresh.used)
	}
	if diff := cmp.Diff(dumpIndexes(fresh), dumpIndexes(s)); diff != "" {
		t.Fatalf("indexes (- recomputed, + kept):\n%s", diff)
	}
	if n := s.jobs.Len() - s.openJobs.Len(); n > wire.EndedJobsMax {
		t.Fatalf("%d ended jobs", n)
	}
	if s.ended.Len() > wire.EndedMigrationsMax {
		t.Fatalf("%d ended migrations", s.ended.Len())
	}
}

func checkJob(t fataler, s *Store, j *job) {
	t.Helper()
	w := s.worker(j.worker)
	drain := j.kind == wire.JobKind_JOB_KIND_DRAIN
	switch {
	case j.open() && drain && (w == nil || w.job != j.id || w.state == wire.WorkerState_WORKER_STATE_ACTIVE):
		t.Fatalf("job %d drains a worker that does not know: %+v", j.id, w)
	case !j.open() && (len(j.plan) > 0 || j.planSum != 0):
		t.Fatalf("job %d has ended and keeps its plan", j.id)
	case j.open() != (j.endedUS == 0) && s.timeUS > 0 && j.open():
		t.Fatalf("job %d is open and has an end", j.id)
	}
}

// checkSlot: what is at rest and small is packed, all else is not; and the indexes
// have no memory of their own for the id of what is packed, nor that of a former row.
func checkSlot(t fataler, s *Store, e slot, r *row) {
	t.Helper()
	small := r.bytes <= wire.SessionBytesFixed+packedMax
	if packed := e.live == nil; packed != (small && !r.attached()) {
		t.Fatalf("session %s: packed %v, of %d bytes, attached %v", r.id, packed, r.bytes, r.attached())
	}
	if e.id() != r.id {
		t.Fatalf("session %s: found as %s", r.id, e.id())
	}
	if e.live != nil {
		return
	}
	inGroup, _ := s.groups[r.owner].ids.Get(r.id)
	inExpiry, expires := s.expiry.Get(deadline{r.expiresUS, r.id})
	if !same(inGroup, e.id()) || expires && !same(inExpiry.id, e.id()) {
		t.Fatalf("session %s: its row and the indexes do not share the id", r.id)
	}
}

// same reports whether two strings are one piece of memory.
func same(a, b string) bool { return unsafe.StringData(a) == unsafe.StringData(b) }

func checkRow(t fataler, s *Store, r *row) {
	t.Helper()
	switch {
	case r.epoch > s.epochs:
		t.Fatalf("session %s: epoch above the counter", r.id)
	case r.gen > s.gen:
		t.Fatalf("session %s: generation from the future", r.id)
	case r.change > s.position:
		t.Fatalf("session %s: change position from the future", r.id)
	case r.attached() == (r.expiresUS != 0):
		t.Fatalf("session %s: TTL must run exactly while it is detached", r.id)
	case !r.shared && len(r.attachments) > 1:
		t.Fatalf("session %s: it is not shared and has %d attachments", r.id, len(r.attachments))
	case r.stateBytes > wire.StateBytesMax, r.replyBytes > wire.ReplyBytesMax, r.replyCount > cancelsMax+wire.RepliesMax,
		len(r.outbox) > wire.OutboxMax, r.outboxBytes > wire.OutboxBytesMax,
		len(r.windows) > wire.ClientWindowsMax, len(r.history) > wire.HistoryMax:
		t.Fatalf("session %s: past a limit", r.id)
	}
	if h := r.history[len(r.history)-1]; h.epoch != r.epoch || h.owner != r.owner {
		t.Fatalf("session %s: the history's last entry is not its owner", r.id)
	}
	for i, h := range r.history {
		if i > 0 && h.epoch <= r.history[i-1].epoch {
			t.Fatalf("session %s: epochs do not rise", r.id)
		}
	}
}

// dumpIndexes writes the indexes as text.
func dumpIndexes(s *Store) []string {
	var lines []string
	for o, g := range s.groups {
		lines = append(lines, fmt.Sprintf("group %v %v attached %v", o, g.ids.Items(), g.live.Items()))
	}
	slices.Sort(lines)
	lines = append(lines, fmt.Sprintf("attached %d", s.attached))
	lines = append(lines, fmt.Sprintf("expiry %v", s.expiry.Items()))
	lines = append(lines, fmt.Sprintf("begun %v open %v ended %v", s.begun.Items(), s.open.Items(), s.ended.Items()))
	lines = append(lines, fmt.Sprintf("nonces %v", s.nonces))
	lines = append(lines, fmt.Sprintf("open jobs %v nonces %v", s.openJobs.Items(), s.jobNonces))
	s.forget.Scan(func(c *closed) bool {
		lines = append(lines, fmt.Sprintf("forget %d %s %s", c.untilUS, c.session, c.nonce))
		return true
	})
	return lines
}

// records collects a snapshot.
func records(t fataler, p *Snapshot) []*wire.SnapshotRecord {
	t.Helper()
	var list []*wire.SnapshotRecord
	err := p.Records(func(b []byte) error {
		rec := &wire.SnapshotRecord{}
		list = append(list, rec)
		return proto.Unmarshal(b, rec)
	})
	if err != nil {
		t.Fatalf("records: %v", err)
	}
	return list
}

func diffRecords(want, got []*wire.SnapshotRecord) string {
	return cmp.Diff(want, got, protocmp.Transform(), cmpopts.EquateEmpty())
}

func TestInvariantsCheckerSeesDamage(t *testing.T) {
	damage := map[string]func(s *Store, r *row){
		"value":   func(_ *Store, r *row) { r.state[0].value = []byte("other") },
		"bytes":   func(_ *Store, r *row) { r.bytes++ },
		"change":  func(_ *Store, r *row) { r.change-- },
		"window":  func(_ *Store, r *row) { r.windows[0].last++ },
		"expiry":  func(s *Store, _ *row) { s.expiry.Set(deadline{1, "x"}) },
		"counter": func(s *Store, _ *row) { s.epochs = 0 },
		"sum":     func(s *Store, _ *row) { s.sum++ },
	}
	for name, f := range damage {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t).attached()
			h.ok(h.writeCmd("s", "c", 1, 0, put("k", "v")))
			f(h.s, h.s.row("s"))
			var seen catcher
			func() {
				defer func() { _ = recover() }()
				checkInvariants(&seen, h.s)
			}()
			if !seen {
				t.Fatal("the damage went unnoticed")
			}
		})
	}
}

// catcher notes a failure instead of failing.
type catcher bool

func (c *catcher) Helper() {}
func (c *catcher) Fatalf(string, ...any) {
	*c = true
	panic("stop")
}

func equalBytes(t *testing.T, got, want []byte) {
	t.Helper()
	if !bytes.Equal(got, want) {
		t.Fatalf("got %q, want %q", got, want)
	}
}
