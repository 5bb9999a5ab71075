package store

import (
	"slices"
	"testing"
	"time"

	"github.com/baton-cluster/baton/wire"
)

// L4: a fence whose withdrawals were counted among other voters than those in
// force is refused. A server's joining without a vote makes no new
// configuration.
func TestFenceNamesTheVotersInForce(t *testing.T) {
	h := newHarness(t)
	fence := func(worker string, config uint64) *wire.Command {
		return with(fenceCmd(h.owner(worker)), func(c *wire.Command) { c.GetFenceWorker().VoterConfig = config })
	}
	first, _ := h.s.Voters()
	h.voters("w3", "w1", "w2")
	if now, ids := h.s.Voters(); now != first || len(h.events) != 0 || !slices.Equal(ids, []string{"w1", "w2", "w3"}) {
		t.Fatalf("configuration %d of %v after one of the same voters; it was %d", now, ids, first)
	}
	h.ok(fence("w1", first))
	h.voters("w1", "w2", "w4")
	second, _ := h.s.Voters()
	if second <= first || len(h.events) != 1 || h.events[0].Kind != EventVoters {
		t.Fatalf("configuration %d after %d, events %v", second, first, h.events)
	}
	if res := h.refuse(wire.Code_LEASE_OTHER_CONFIG, fence("w2", first)); res.Current != second {
		t.Fatalf("current %d, want %d", res.Current, second)
	}
	h.ok(fence("w2", second))
}

func TestSetLease(t *testing.T) {
	h := newHarness(t)
	if got := h.s.Lease(); got != time.Second {
		t.Fatalf("a lease lasts %v", got)
	}
	h.refuse(wire.Code_BAD_REQUEST, leaseCmd(wire.LeaseUSMin-1))
	h.refuse(wire.Code_BAD_REQUEST, leaseCmd(wire.LeaseUSMax+1))
	h.ok(leaseCmd(300_000))
	h.duplicate(leaseCmd(300_000))
	if got := h.s.Lease(); got != 300*time.Millisecond {
		t.Fatalf("a lease lasts %v", got)
	}
}
