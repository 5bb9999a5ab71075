package store

import (
	"math"
	"reflect"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/baton-cluster/baton/wire"
)

func TestAppliersComplete(t *testing.T) {
	kinds := (&wire.Command{}).ProtoReflect().Descriptor().Oneofs().ByName("kind").Fields()
	for i := range kinds.Len() {
		c := &wire.Command{}
		m := c.ProtoReflect()
		m.Set(kinds.Get(i), protoreflect.ValueOfMessage(m.NewField(kinds.Get(i)).Message()))
		if !Known(c) {
			t.Errorf("no applier for %s", kinds.Get(i).Name())
		}
	}
	if kinds.Len() != len(appliers) {
		t.Errorf("%d appliers for %d kinds", len(appliers), kinds.Len())
	}
	if Known(&wire.Command{}) {
		t.Error("a command without a kind is known")
	}
}

// Every command must be harmless when all its fields are empty, before and after
// the cluster has its identity: the log may hold anything that decodes.
func TestEmptyCommands(t *testing.T) {
	kinds := (&wire.Command{}).ProtoReflect().Descriptor().Oneofs().ByName("kind").Fields()
	for i := range kinds.Len() {
		c := &wire.Command{}
		m := c.ProtoReflect()
		m.Set(kinds.Get(i), protoreflect.ValueOfMessage(m.NewField(kinds.Get(i)).Message()))
		fresh := &harness{t: t, s: New()}
		res := fresh.do(c)
		if needsCluster(c) && res.Code != wire.Code_NOT_INITIALISED {
			t.Errorf("%s before the cluster: %v", kinds.Get(i).Name(), res.Code)
		}
		switch h := newHarness(t); c.Kind.(type) {
		case *wire.Command_Tick, *wire.Command_Locate:
			h.ok(c)
		default:
			if res := h.do(c); res.Code == wire.Code_OK {
				t.Errorf("%s without fields is accepted", kinds.Get(i).Name())
			}
		}
	}
}

func TestApplyPanicsOnMisuse(t *testing.T) {
	h := newHarness(t)
	for name, f := range map[string]func(){
		"same index":   func() { h.s.Apply(h.index, &wire.Entry{}) },
		"no kind":      func() { h.s.Apply(h.index+1, &wire.Entry{Commands: []*wire.Command{{}}}) },
		"too many":     func() { h.s.Apply(h.index+9, &wire.Entry{Commands: make([]*wire.Command, wire.EntryCommandsMax+1)}) },
		"nil commands": func() { h.s.Apply(h.index+10, &wire.Entry{Commands: make([]*wire.Command, 1)}) },
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Fatal("no panic")
				}
			}()
			f()
		})
	}
}

func TestPositionsAndGroup(t *testing.T) {
	h := newHarness(t)
	results := h.entry(h.openCmd("a", "w1"), h.openCmd("b", "w1"), h.openCmd("a", "w1"))
	for i, res := range results {
		if res.Position != h.index<<12|uint64(i) {
			t.Errorf("command %d has position %d", i, res.Position)
		}
	}
	if !results[2].Duplicate || results[2].After != results[0].After {
		t.Errorf("a retry in the same entry: %v", results[2])
	}
	h.refuse(wire.Code_WRONG_GROUP, with(h.openCmd("c", "w1"), func(c *wire.Command) { c.Group = 1 }))
}

func TestInitClusterOnce(t *testing.T) {
	h := newHarness(t)
	h.refuse(wire.Code_ALREADY_INITIALISED, &wire.Command{Kind: &wire.Command_InitCluster{InitCluster: &wire.InitCluster{ClusterId: []byte("other")}}})
	if got := h.s.Cluster(); string(got.ClusterId) != "cluster" || got.ByteBudget != 1<<30 {
		t.Fatalf("cluster row %v", got)
	}
}

// S4: log time only rises, whatever the entries say.
func TestLogTimeRises(t *testing.T) {
	h := newHarness(t)
	h.tick(50)
	h.time = 10
	h.tick(0)
	if h.s.TimeUS() != 50 {
		t.Fatalf("log time %d, want 50", h.s.TimeUS())
	}
}

// S1: epochs and incarnations come from one counter and rise for a session
// across deletion, re-creation and moves back to the same node, also when all
// of it is in one entry.
func TestEpochsRise(t *testing.T) {
	h := newHarness(t)
	seen := h.s.Worker("w3").Incarnation
	next := func(epoch uint64) {
		t.Helper()
		if epoch <= seen {
			t.Fatalf("epoch %d after %d", epoch, seen)
		}
		seen = epoch
	}
	next(h.open("s", "w1").Epoch)
	m := h.begin("s", "w2")
	next(h.ok(h.pivotCmd(m)).Epoch)
	m = h.begin("s", "w1")
	next(h.ok(h.pivotCmd(m)).Epoch)
	h.ok(h.closeCmd("s"))
	next(h.ok(with(h.openCmd("s", "w1"), func(c *wire.Command) { c.GetOpen().Nonce = []byte("again") })).Epoch)
	next(h.register("w1", "restart", h.owner("w1").Incarnation))
	next(h.ok(h.assignCmd("s", "w1")).Epoch)
	for _, res := range h.entry(h.openCmd("a", "w1"), h.openCmd("b", "w1"), registerCmd("w4", "first", 0)) {
		next(res.Epoch)
	}
}

func TestOpen(t *testing.T) {
	h := newHarness(t)
	h.wall = 99
	row := h.open("s", "w1")
	if row.ExpiresUs != h.time+ttl || len(row.Attachments) != 0 || row.Bytes != wire.SessionBytesFixed+1 {
		t.Errorf("a new session counts as detached and is charged beforehand: %v", row)
	}
	if len(row.History) != 1 || row.History[0].Epoch != row.Epoch || row.History[0].WallUs != 99 || row.History[0].By != "client" {
		t.Errorf("history %v", row.History)
	}
	if h.events[0] != (Event{Kind: EventSession, Session: "s", Worker: "w1"}) {
		t.Errorf("events %v", h.events)
	}
	if res := h.duplicate(h.openCmd("s", "w2")); res.Row.Owner.Worker != "w1" || res.Epoch != row.Epoch {
		t.Errorf("a retried Open must return the row on record: %v", res)
	}

	other := func(change func(*wire.OpenSession)) *wire.Command {
		return with(h.openCmd("t", "w1"), func(c *wire.Command) { change(c.GetOpen()) })
	}
	for name, tc := range map[string]struct {
		code   wire.Code
		change func(*wire.OpenSession)
	}{
		"exists":       {wire.Code_SESSION_EXISTS, func(o *wire.OpenSession) { o.Session = "s" }},
		"late":         {wire.Code_OPEN_TOO_LATE, func(o *wire.OpenSession) { o.DeadlineUs = h.time - 1 }},
		"incarnation":  {wire.Code_STALE_INCARNATION, func(o *wire.OpenSession) { o.Owner.Incarnation++ }},
		"no owner":     {wire.Code_STALE_INCARNATION, func(o *wire.OpenSession) { o.Owner = nil }},
		"no nonce":     {wire.Code_BAD_REQUEST, func(o *wire.OpenSession) { o.Nonce = nil }},
		"no secret":    {wire.Code_BAD_REQUEST, func(o *wire.OpenSession) { o.SecretHash = nil }},
		"short TTL":    {wire.Code_BAD_REQUEST, func(o *wire.OpenSession) { o.TtlUs = second - 1 }},
		"long TTL":     {wire.Code_BAD_REQUEST, func(o *wire.OpenSession) { o.TtlUs = math.MaxUint64 }},
		"empty id":     {wire.Code_BAD_SESSION_ID, func(o *wire.OpenSession) { o.Session = "" }},
		"control rune": {wire.Code_BAD_SESSION_ID, func(o *wire.OpenSession) { o.Session = "a\x00" }},
		"long id":      {wire.Code_BAD_SESSION_ID, func(o *wire.OpenSession) { o.Session = strings.Repeat("x", 129) }},
	} {
		t.Run(name, func(t *testing.T) {
			h.t = t
			h.tick(1)
			h.refuse(tc.code, other(tc.change))
		})
	}
}

// Every session command of an owner is conditional on (epoch, owner,
// incarnation) (S2), in this order.
func TestGate(t *testing.T) {
	commands := map[string]func(h *harness) *wire.Command{
		"Attach": func(h *harness) *wire.Command { return h.attachCmd("s", "c", 2) },
		"Detach": func(h *harness) *wire.Command { return h.detachCmd("s", 1) },
		"Claim":  func(h *harness) *wire.Command { return h.claimCmd("s") },
		"Write":  func(h *harness) *wire.Command { return h.writeCmd("s", "c", 1, 0, put("k", "v")) },
		"Cancel": func(h *harness) *wire.Command { return h.cancelCmd("s", "c", 1, 0) },
		"Ack":    func(h *harness) *wire.Command { return h.ackCmd("s", "c", 1, 0) },
		"Close":  func(h *harness) *wire.Command { return h.closeCmd("s") },
	}
	for name, command := range commands {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t).attached()
			c := command(h)
			h.refuse(wire.Code_UNKNOWN_SESSION, edited(c, "session", func(m protoreflect.Message, f protoreflect.FieldDescriptor) {
				m.Set(f, protoreflect.ValueOfString("nobody"))
			}))
			for _, d := range []int64{-1, 1} {
				h.refuse(wire.Code_STALE_EPOCH, edited(c, "epoch", func(m protoreflect.Message, f protoreflect.FieldDescriptor) {
					m.Set(f, protoreflect.ValueOfUint64(uint64(int64(m.Get(f).Uint())+d)))
				}))
			}
			for _, o := range []*wire.Owner{h.owner("w2"), {Worker: "w1", Incarnation: 77}, {}} {
				h.refuse(wire.Code_STALE_INCARNATION, edited(c, "owner", func(m protoreflect.Message, f protoreflect.FieldDescriptor) {
					m.Set(f, protoreflect.ValueOfMessage(o.ProtoReflect()))
				}))
			}

			// Fencing and restarting each end the incarnation with one small command.
			fenced := newHarness(t).attached()
			c = command(fenced)
			fenced.ok(fenceCmd(fenced.owner("w1")))
			fenced.refuse(wire.Code_STALE_INCARNATION, c)

			restarted := newHarness(t).attached()
			c = command(restarted)
			restarted.register("w1", "restart", restarted.owner("w1").Incarnation)
			restarted.refuse(wire.Code_STALE_INCARNATION, c)

			// Accepted as it stands.
			h.ok(command(h))
		})
	}
	if kinds := reflect.TypeOf(commands); kinds == nil || len(commands) != 7 {
		t.Fatal("an owner's command is missing here")
	}
}

// edited clones a command and changes a field of its inner message.
func edited(c *wire.Command, field protoreflect.Name, change func(protoreflect.Message, protoreflect.FieldDescriptor)) *wire.Command {
	return with(c, func(c *wire.Command) {
		m := c.ProtoReflect()
		inner := m.Mutable(m.WhichOneof(m.Descriptor().Oneofs().ByName("kind"))).Message()
		change(inner, inner.Descriptor().Fields().ByName(field))
	})
}

func TestClaimChangesNothing(t *testing.T) {
	h := newHarness(t).attached()
	before := h.s.sum
	res := h.ok(h.claimCmd("s"))
	if res.Row == nil || res.Before != res.After || res.Epoch != res.Row.Epoch || h.s.sum != before {
		t.Fatalf("claim: %v", res)
	}
}

func TestClose(t *testing.T) {
	h := newHarness(t).attached()
	open := h.openCmd("s", "w1")
	open.GetOpen().DeadlineUs = 200 * second // reused after the close: the first one's row is gone
	closing := h.closeCmd("s")
	m := h.begin("s", "w2")
	h.ok(closing)
	if got := h.s.Migration(m.Id); got.Phase != wire.Phase_PHASE_ABORTED || got.Why != "session closed" {
		t.Errorf("H5: closing ends the migration: %v", got)
	}
	h.refuse(wire.Code_SESSION_CLOSED, closing)
	if l := h.s.Location("s"); l.Found || l.Gone != wire.Code_SESSION_CLOSED {
		t.Errorf("location %v", l)
	}
	h.refuse(wire.Code_SESSION_CLOSED, open)
	// Another Open may have the id.
	h.ok(with(open, func(c *wire.Command) { c.GetOpen().Nonce = []byte("another") }))
}

// S10: closed ids are remembered until their Open's deadline has passed, so that
// a delayed Open does not bring the session back.
func TestDelayedOpenDoesNotRevive(t *testing.T) {
	h := newHarness(t)
	open := h.openCmd("s", "w1")
	open.GetOpen().DeadlineUs = 500 * second
	h.ok(open)
	h.ok(h.closeCmd("s"))
	for h.time < 500*second {
		h.tick(50 * second)
		h.refuse(wire.Code_SESSION_CLOSED, open)
	}
	h.tick(1)
	if h.s.closed.Len() != 0 {
		t.Fatal("it is remembered for longer than needed")
	}
	h.refuse(wire.Code_OPEN_TOO_LATE, open)
	h.refuse(wire.Code_UNKNOWN_SESSION, &wire.Command{Kind: &wire.Command_Expire{Expire: &wire.Expire{Session: "s"}}})
}

func TestGoneCodeKeepsIdsApart(t *testing.T) {
	h := newHarness(t)
	for _, id := range []string{"b", "bb"} {
		h.open(id, "w1")
		h.ok(h.closeCmd(id))
	}
	for id, want := range map[string]wire.Code{
		"a": wire.Code_UNKNOWN_SESSION, "b": wire.Code_SESSION_CLOSED, "bb": wire.Code_SESSION_CLOSED,
		"bbb": wire.Code_UNKNOWN_SESSION, "": wire.Code_UNKNOWN_SESSION, "c": wire.Code_UNKNOWN_SESSION,
	} {
		if got := h.s.Location(id).Gone; got != want {
			t.Errorf("%q: %v, want %v", id, got, want)
		}
	}
}

// S6: one entry forgets a bounded number of records.
func TestSweepIsBounded(t *testing.T) {
	h := newHarness(t)
	for i := range closedSweepMax + 10 {
		h.s.remember(&closed{session: "s", nonce: string(rune('a' + i)), untilUS: 1})
	}
	h.time = 2
	h.index++
	h.s.Apply(h.index, &wire.Entry{TimeUs: 2})
	if got := h.s.closed.Len(); got != 10 {
		t.Fatalf("%d records left, want 10", got)
	}
	h.tick(0)
	if got := h.s.closed.Len(); got != 0 {
		t.Fatalf("%d records left", got)
	}
}

// S8: TTL runs only while a session is detached, with or without a valid owner;
// the leader's proposal is checked again.
func TestExpire(t *testing.T) {
	h := newHarness(t).attached()
	if _, ok := h.s.NextDeadline(); ok {
		t.Error("nothing is pending while the only session is attached")
	}
	h.tick(10 * ttl)
	h.refuse(wire.Code_RETRY, h.expireCmd("s"))
	h.ok(h.detachCmd("s", 1))
	at, ok := h.s.NextDeadline()
	if !ok || at != h.time+ttl {
		t.Fatalf("next deadline %d %v, want %d", at, ok, h.time+ttl)
	}
	m := h.begin("s", "w2")
	h.tick(ttl - 1)
	h.refuse(wire.Code_RETRY, h.expireCmd("s"))
	if len(h.s.Expired(10)) != 0 {
		t.Error("listed as expired too early")
	}
	h.ok(fenceCmd(h.owner("w1")))
	h.tick(1)
	if list := h.s.Expired(10); len(list) != 1 || list[0].ID != "s" {
		t.Fatalf("expired %v", list)
	}
	stale := with(h.expireCmd("s"), func(c *wire.Command) { c.GetExpire().Epoch-- })
	h.refuse(wire.Code_STALE_EPOCH, stale)
	expire := h.expireCmd("s")
	h.ok(expire)
	if got := h.s.Migration(m.Id); got.Phase != wire.Phase_PHASE_ABORTED {
		t.Errorf("H5: expiry ends the migration: %v", got)
	}
	h.refuse(wire.Code_SESSION_EXPIRED, expire)
	if h.s.Location("s").Gone != wire.Code_SESSION_EXPIRED {
		t.Error("expiry is not remembered")
	}
}

func TestAssign(t *testing.T) {
	h := newHarness(t).attached()
	h.refuse(wire.Code_OWNER_VALID, h.assignCmd("s", "w2"))
	m := h.begin("s", "w3")
	h.ok(fenceCmd(h.owner("w1")))
	h.refuse(wire.Code_TARGET_STALE, h.assignCmd("s", "w1"))
	h.refuse(wire.Code_TARGET_STALE, with(h.assignCmd("s", "w2"), func(c *wire.Command) { c.GetAssign().Owner.Incarnation-- }))
	h.refuse(wire.Code_STALE_EPOCH, with(h.assignCmd("s", "w2"), func(c *wire.Command) { c.GetAssign().Replaces-- }))
	pivot := h.pivotCmd(m)
	old := h.row("s")
	h.tick(5)
	assign := h.assignCmd("s", "w2")
	res := h.ok(assign)
	row := res.Row
	switch {
	case row.Epoch <= old.Epoch || row.Owner.Worker != "w2" || res.Epoch != row.Epoch:
		t.Errorf("row %v", row)
	case len(row.Attachments) != 0 || row.AttachHigh != 0 || row.ExpiresUs != h.time+ttl:
		t.Errorf("S7: a change of owner detaches, and TTL starts: %v", row)
	case row.Change != res.Position || res.Before != old.Change || res.After != res.Position:
		t.Errorf("change %d", row.Change)
	}
	last := row.History[len(row.History)-1]
	if last.From != "w1" || last.Owner.Worker != "w2" || last.Reason != "failover" || last.By != "director" || last.Index != h.index {
		t.Errorf("history %v", last)
	}
	// It ends the migration in the same command: a late pivot cannot take it back.
	if got := h.s.Migration(m.Id); got.Phase != wire.Phase_PHASE_ABORTED || row.Migration != 0 {
		t.Errorf("migration %v", got)
	}
	h.refuse(wire.Code_MIGRATION_ENDED, pivot)
	h.refuse(wire.Code_STALE_EPOCH, assign)
}

// A session that was detached already keeps its TTL: reassigning it again and
// again must not keep it alive.
func TestAssignKeepsRunningTTL(t *testing.T) {
	h := newHarness(t)
	want := h.open("s", "w1").ExpiresUs
	h.ok(fenceCmd(h.owner("w1")))
	h.tick(second)
	if got := h.ok(h.assignCmd("s", "w2")).Row.ExpiresUs; got != want {
		t.Fatalf("expires %d, want %d", got, want)
	}
}

func TestHistoryIsBounded(t *testing.T) {
	h := newHarness(t)
	h.open("s", "w1")
	for i := range wire.HistoryMax + 3 {
		m := h.ok(h.beginCmd("s", []string{"w2", "w1"}[i%2], string(rune('A'+i)))).Migration
		h.ok(h.pivotCmd(m))
	}
	if got := len(h.row("s").History); got != wire.HistoryMax {
		t.Fatalf("%d entries", got)
	}
}

func TestReadMarkerAndLocate(t *testing.T) {
	h := newHarness(t)
	h.open("s", "w1")
	mark := func(o *wire.Owner) *wire.Command {
		return &wire.Command{Kind: &wire.Command_ReadMarker{ReadMarker: &wire.ReadMarker{Owner: o}}}
	}
	locate := &wire.Command{Kind: &wire.Command_Locate{Locate: &wire.Locate{Session: "s"}}}
	o := h.owner("w1")
	h.ok(mark(o))
	h.refuse(wire.Code_STALE_INCARNATION, mark(&wire.Owner{Worker: "w1", Incarnation: o.Incarnation + 1}))
	if l := h.ok(locate).Location; !l.Found || !l.Valid || l.Owner.Worker != "w1" || l.Endpoint.Host != "host" {
		t.Errorf("location %v", l)
	}
	h.ok(fenceCmd(o))
	h.refuse(wire.Code_STALE_INCARNATION, mark(o))
	if l := h.ok(locate).Location; !l.Found || l.Valid {
		t.Errorf("location %v", l)
	}
}
