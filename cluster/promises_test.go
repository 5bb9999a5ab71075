package cluster

import (
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/baton-cluster/baton/lease"
	"github.com/baton-cluster/baton/wire"
)

// promisesOn is a server's side of leases after a start on the stable store.
func promisesOn(t *testing.T, stable raft.StableStore, clock *offsetClock, hadState bool) *Cluster {
	t.Helper()
	c := &Cluster{hadState: hadState, ctx: t.Context()}
	t.Cleanup(c.jobs.Wait)
	c.cfg.Clock = clock
	if err := c.openPromises(stable); err != nil {
		t.Fatal(err)
	}
	return c
}

// L2, L3: a withdrawal is on the disk before it is said and binds the next start,
// which for its part withdraws for nobody before T_MAX has passed.
func TestWithdrawalsSurviveARestart(t *testing.T) {
	stable := raft.NewInmemStore()
	clock := &offsetClock{}
	c := promisesOn(t, stable, clock, false)
	if p, err := c.Promise(7, true); err != nil || !p.Withdrawn {
		t.Fatalf("%+v, %v", p, err)
	}
	if p, err := c.Promise(8, false); err != nil || p.Withdrawn || p.Left != 0 {
		t.Fatalf("%+v, %v", p, err)
	}
	c = promisesOn(t, stable, clock, true)
	if !c.OwnPromise(7).Withdrawn {
		t.Error("the withdrawal is forgotten")
	}
	r := lease.Renewal{Incarnation: 7, T: lease.TDefault}
	if code := c.promises.server.Grant(0, r, lease.Facts{Current: true, CaughtUp: true}); code != wire.Code_LEASE_WITHDRAWN {
		t.Errorf("a renewal is answered %v", code)
	}
	if p, err := c.Promise(8, true); err != nil || p.Withdrawn || !p.Quiet || p.Left > lease.TMax || p.Left < lease.TMax-time.Minute {
		t.Errorf("right after a restart: %+v, %v", p, err)
	}
}

// failingStable writes nothing.
type failingStable struct{ raft.StableStore }

func (failingStable) Set([]byte, []byte) error { return raft.ErrRaftShutdown }

// A withdrawal that cannot be written is not said.
func TestWithdrawalIsWrittenFirst(t *testing.T) {
	c := promisesOn(t, failingStable{raft.NewInmemStore()}, &offsetClock{}, false)
	for range 2 { // nor the second time, when it is known in memory
		if _, err := c.Promise(7, true); err == nil {
			t.Fatal("a withdrawal was said that is not on the disk")
		}
	}
	if _, err := c.Promise(7, false); err == nil {
		t.Fatal("nor may a plain question tell of it")
	}
}
