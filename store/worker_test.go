package store

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/baton-cluster/baton/wire"
)

func TestRegister(t *testing.T) {
	h := newHarness(t)
	first := h.owner("w1").Incarnation
	if res := h.duplicate(registerCmd("w1", "w1 first", 0)); res.Epoch != first {
		t.Fatalf("a retry gets incarnation %d, not %d", first, res.Epoch)
	}
	// Compare-and-set on the predecessor: of two processes one loses.
	if res := h.refuse(wire.Code_PREDECESSOR_MISMATCH, registerCmd("w1", "other", 0)); res.Current != first {
		t.Fatalf("current %d, want %d", res.Current, first)
	}
	h.refuse(wire.Code_PREDECESSOR_MISMATCH, registerCmd("new", "n", 5))
	second := h.register("w1", "restart", first)
	if second <= first || h.s.Valid(&wire.Owner{Worker: "w1", Incarnation: first}) || !h.s.Valid(h.owner("w1")) {
		t.Fatal("a new incarnation must end the former one")
	}
	h.refuse(wire.Code_PREDECESSOR_MISMATCH, registerCmd("w1", "w1 first", 0))
	h.refuse(wire.Code_BAD_REQUEST, registerCmd("w1", strings.Repeat("n", labelBytesMax+1), second))
}

func TestFence(t *testing.T) {
	h := newHarness(t)
	o := h.owner("w1")
	h.refuse(wire.Code_UNKNOWN_WORKER, fenceCmd(&wire.Owner{Worker: "w9"}))
	h.refuse(wire.Code_STALE_INCARNATION, fenceCmd(&wire.Owner{Worker: "w1", Incarnation: o.Incarnation - 1}))
	h.ok(fenceCmd(o))
	if h.s.Valid(o) {
		t.Fatal("a fenced incarnation is valid")
	}
	h.duplicate(fenceCmd(o))
	h.refuse(wire.Code_WORKER_FENCED, drainCmd("w1", false))
	// A fence of the former incarnation does not reach the next one.
	h.register("w1", "restart", o.Incarnation)
	h.refuse(wire.Code_STALE_INCARNATION, fenceCmd(o))
	if !h.s.Valid(h.owner("w1")) {
		t.Fatal("the new incarnation is not valid")
	}
}

func TestDrainSurvives(t *testing.T) {
	const active, draining = wire.WorkerState_WORKER_STATE_ACTIVE, wire.WorkerState_WORKER_STATE_DRAINING
	for name, tc := range map[string]struct {
		drain, until, fence bool
		want                wire.WorkerState
	}{
		"no drain":                       {false, false, false, active},
		"fence":                          {false, false, true, active},
		"drain":                          {true, false, false, draining},
		"drain, fence":                   {true, false, true, draining},
		"drain until registration":       {true, true, false, active},
		"drain until registration,fence": {true, true, true, active},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t)
			if tc.drain {
				h.ok(drainCmd("w1", tc.until))
				h.duplicate(drainCmd("w1", tc.until))
			}
			if tc.fence {
				h.ok(fenceCmd(h.owner("w1")))
			}
			h.register("w1", "restart", h.owner("w1").Incarnation)
			if got := h.s.Worker("w1").State; got != tc.want {
				t.Fatalf("%v, want %v", got, tc.want)
			}
			if !h.s.Valid(h.owner("w1")) {
				t.Fatal("not valid")
			}
		})
	}
	h := newHarness(t)
	h.ok(drainCmd("w1", false))
	h.ok(stateCmd("w1", active, false))
	h.refuse(wire.Code_BAD_REQUEST, stateCmd("w1", wire.WorkerState_WORKER_STATE_FENCED, false))
	h.refuse(wire.Code_UNKNOWN_WORKER, drainCmd("w9", false))
	h.refuse(wire.Code_STALE_INCARNATION, with(drainCmd("w1", false), func(c *wire.Command) { c.GetSetWorkerState().Incarnation = 99 }))
}

// A draining worker goes on serving what it owns.
func TestDrainingOwnerIsValid(t *testing.T) {
	h := newHarness(t).attached()
	h.ok(drainCmd("w1", false))
	h.ok(h.writeCmd("s", "c", 1, 0, put("k", "v")))
}

func TestOwnerlessAndSessionsOf(t *testing.T) {
	h := newHarness(t)
	for _, id := range []string{"a", "b", "c", "d"} {
		h.open(id, "w1")
	}
	h.open("e", "w2")
	if got := h.s.Ownerless("", 10); len(got) != 0 {
		t.Fatalf("ownerless %v", ids(got))
	}
	h.ok(fenceCmd(h.owner("w2")))
	h.register("w1", "restart", h.owner("w1").Incarnation)
	h.ok(h.assignCmd("b", "w1"))
	for _, tc := range []struct {
		got  []Summary
		want string
	}{
		{h.s.Ownerless("", 10), "a c d e"},
		{h.s.Ownerless("a", 2), "c d"},
		{h.s.Ownerless("", 0), ""},
		{h.s.SessionsOf("w1", "", 10), "a b c d"},
		{h.s.SessionsOf("w1", "a", 2), "b c"},
		{h.s.SessionsOf("w2", "", 10), "e"},
		{h.s.List("b", 2), "c d"},
		{h.s.List("", 2), "a b"},
	} {
		if got := strings.Join(ids(tc.got), " "); got != tc.want {
			t.Errorf("got %q, want %q", got, tc.want)
		}
	}
	h.ok(h.attachCmd("b", "c", 1))
	h.register("w1", "again", h.owner("w1").Incarnation)
	if got := strings.Join(ids(h.s.OwnerlessAttached("", 10)), " "); got != "b" {
		t.Errorf("of those without an owner %q had a client, want b", got)
	}
	c := h.s.Counts()
	if c.Sessions != 5 || c.Ownerless != 5 || c.Owned["w1"] != 4 || c.Owned["w2"] != 1 {
		t.Errorf("counts %+v", c)
	}
}

func ids(list []Summary) []string {
	var out []string
	for _, s := range list {
		out = append(out, s.ID)
	}
	return out
}

func TestClipKeepsUTF8(t *testing.T) {
	for _, v := range []string{"", "short", strings.Repeat("é", 200), strings.Repeat("x", 255) + "€uro", strings.Repeat("𝄞", 99)} {
		got := clip(v)
		if len(got) > noteBytesMax || !utf8.ValidString(got) || !strings.HasPrefix(v, got) || len(got) < min(len(v), noteBytesMax-3) {
			t.Errorf("clip(%q) = %q", v, got)
		}
	}
}

// TestSuccession: a former incarnation that is not fenced is succeeded only from
// its own place, on a file system of the machine's own.
func TestSuccession(t *testing.T) {
	for name, tc := range map[string]struct {
		first, second *wire.Place
		ok            bool
	}{
		"the same place":        {home(), home(), true},
		"another directory":     {home(), &wire.Place{Boot: "boot", Device: 1, Inode: 8, Local: true}, false},
		"another disk":          {home(), &wire.Place{Boot: "boot", Device: 2, Inode: 7, Local: true}, false},
		"another boot":          {home(), &wire.Place{Boot: "later", Device: 1, Inode: 7, Local: true}, false},
		"a network file system": {&wire.Place{Boot: "boot", Device: 1, Inode: 7}, &wire.Place{Boot: "boot", Device: 1, Inode: 7}, false},
		"no boot id":            {&wire.Place{Device: 1, Inode: 7, Local: true}, &wire.Place{Device: 1, Inode: 7, Local: true}, false},
		"no inode":              {&wire.Place{Boot: "boot", Local: true}, &wire.Place{Boot: "boot", Local: true}, false},
		"none told":             {nil, nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t)
			at := func(p *wire.Place, nonce string, predecessor uint64) *wire.Command {
				cmd := registerCmd("new", nonce, predecessor)
				cmd.GetRegisterWorker().Place = p
				return cmd
			}
			first := h.ok(at(tc.first, "first", 0)).Epoch
			if tc.ok {
				h.ok(at(tc.second, "second", first))
				return
			}
			if res := h.refuse(wire.Code_PREDECESSOR_ALIVE, at(tc.second, "second", first)); res.Current != first {
				t.Errorf("the refusal names %d, want %d", res.Current, first)
			}
			if w := h.s.Worker("new"); w.Incarnation != first || w.State != wire.WorkerState_WORKER_STATE_ACTIVE {
				t.Errorf("a refusal changed the worker: %v", w)
			}
			h.ok(fenceCmd(&wire.Owner{Worker: "new", Incarnation: first}))
			h.ok(at(tc.second, "third", first))
		})
	}
}

// TestRemoveWorker: only a worker that owns nothing and takes nothing is
// forgotten; its incarnation never comes back.
func TestRemoveWorker(t *testing.T) {
	h := newHarness(t)
	o := h.owner("w1")
	remove := func(o *wire.Owner) *wire.Command {
		return &wire.Command{Kind: &wire.Command_RemoveWorker{RemoveWorker: &wire.RemoveWorker{Id: o.Worker, Incarnation: o.Incarnation}}}
	}
	h.duplicate(remove(&wire.Owner{Worker: "nobody"}))
	h.refuse(wire.Code_BAD_REQUEST, remove(o))
	h.ok(h.openCmd("s", "w1"))
	h.ok(fenceCmd(o))
	h.refuse(wire.Code_STALE_INCARNATION, remove(&wire.Owner{Worker: "w1", Incarnation: o.Incarnation + 1}))
	h.refuse(wire.Code_SESSIONS_LEFT, remove(o))
	h.ok(h.assignCmd("s", "w2"))
	h.ok(remove(o))
	if h.s.Worker("w1") != nil || h.s.Valid(o) {
		t.Error("it is still there")
	}
	h.duplicate(remove(o))
	if again := h.register("w1", "again", 0); again <= o.Incarnation {
		t.Errorf("incarnation %d after %d", again, o.Incarnation)
	}
}
