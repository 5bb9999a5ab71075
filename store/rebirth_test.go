package store

import (
	"bytes"
	"testing"

	"github.com/baton-cluster/baton/wire"
)

// reborn is populated's state in a new cluster, of which w1 is the only server,
// and what was there before.
func reborn(t *testing.T, floor uint64) (before, h *harness) {
	t.Helper()
	before, h = populated(t), populated(t)
	if err := h.s.Reborn(rebirth(h.s, floor)); err != nil {
		t.Fatal(err)
	}
	h.index = h.s.Index()
	checkInvariants(t, h.s)
	return before, h
}

func rebirth(s *Store, floor uint64) Rebirth {
	return Rebirth{
		ClusterID: bytes.Repeat([]byte{9}, wire.IDBytes), Floor: floor, Index: s.Index() + 7, Voter: "w1",
		Root: make([]byte, wire.WrappedRootBytes), Nonce: []byte("new keys"), By: "a test",
	}
}

// S1: in a new cluster nothing of the former one can act, epochs leap above all
// that is known, and no acknowledged state is lost.
func TestReborn(t *testing.T) {
	for _, floor := range []uint64{0, 1 << 40} {
		before, h := reborn(t, floor)
		old, now := before.s.Cluster(), h.s.Cluster()
		if want := max(floor, old.Epochs) + EpochLeap; now.Epochs != want {
			t.Errorf("epochs go on from %d, want %d", now.Epochs, want)
		}
		if bytes.Equal(old.ClusterId, now.ClusterId) || len(now.Keys) != 1 || now.Keys[0].Generation != old.Keys[len(old.Keys)-1].Generation+1 {
			t.Errorf("identity %x, keys %v", now.ClusterId, now.Keys)
		}
		if len(old.JoinTokens) == 0 || len(now.JoinTokens) != 0 {
			t.Errorf("join tokens: %v, before %v", now.JoinTokens, old.JoinTokens)
		}
		for _, w := range h.s.Workers() {
			if w.State != wire.WorkerState_WORKER_STATE_FENCED || h.s.Valid(&wire.Owner{Worker: w.Id, Incarnation: w.Incarnation}) {
				t.Errorf("%v can act", w)
			}
		}
		if c := h.s.Counts(); c.Attached != 0 || c.Jobs != 0 || len(h.s.ActiveMigrations()) != 0 || c.Sessions != before.s.Counts().Sessions {
			t.Errorf("left: %+v, %v", c, h.s.ActiveMigrations())
		}
		was, is := before.row("s"), h.row("s")
		if len(is.State) != len(was.State) || len(is.Outbox) != len(was.Outbox) || len(is.Clients) != len(was.Clients) ||
			!bytes.Equal(is.SecretHash, was.SecretHash) || is.Change <= was.Change || is.ExpiresUs == 0 {
			t.Errorf("the session is %v, it was %v", is, was)
		}
		// What the former owner, a former migration and a former token would do.
		h.refuse(wire.Code_STALE_INCARNATION, h.writeCmd("s", "c", 3, 2, put("k", "late")))
		h.refuse(wire.Code_STALE_INCARNATION, h.claimCmd("s"))
		h.refuse(wire.Code_MIGRATION_ENDED, before.pivotCmd(before.s.Migration(was.Migration)))
	}
}

// S1: nothing is assigned or opened before every lease of the former cluster has
// run out; then all goes on, above the former epochs.
func TestRebornRestsBeforeItAssigns(t *testing.T) {
	before, h := reborn(t, 0)
	incarnation := h.register("w1", "after", before.s.Worker("w1").Incarnation)
	h.refuse(wire.Code_RETRY, h.assignCmd("s", "w1"))
	h.refuse(wire.Code_RETRY, h.openCmd("new", "w1"))
	restored, err := Load(source(records(t, h.s.Snapshot())))
	if err != nil || restored.AssignAfterUS() != h.s.AssignAfterUS() {
		t.Fatalf("a snapshot forgets the rest: %v", err)
	}
	h.tick(h.s.AssignAfterUS())
	res := h.ok(h.assignCmd("s", "w1"))
	if incarnation <= before.s.Cluster().Epochs+EpochLeap-1 || res.Epoch <= incarnation {
		t.Errorf("incarnation %d, epoch %d", incarnation, res.Epoch)
	}
	h.ok(h.openCmd("new", "w1"))
}

func TestRebornRefuses(t *testing.T) {
	for name, change := range map[string]func(*Store, *Rebirth){
		"same cluster":  func(s *Store, b *Rebirth) { b.ClusterID = s.Cluster().ClusterId },
		"floor":         func(_ *Store, b *Rebirth) { b.Floor = EpochMax },
		"floor, unsafe": func(_ *Store, b *Rebirth) { b.Floor = 1 << 60 },
		"past index":    func(s *Store, b *Rebirth) { b.Index = s.Index() },
		"no voter":      func(_ *Store, b *Rebirth) { b.Voter = "" },
		"no keys":       func(_ *Store, b *Rebirth) { b.Root = nil },
	} {
		h := populated(t)
		b := rebirth(h.s, 0)
		change(h.s, &b)
		was := h.s.Hash()
		if err := h.s.Reborn(b); wire.CodeOf(err) != wire.Code_BAD_REQUEST || h.s.Hash() != was {
			t.Errorf("%s: %v", name, err)
		}
	}
}
