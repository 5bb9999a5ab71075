package migrate

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/baton-cluster/baton/wire"
)

// TestClaimedIncarnationIsFenced: a new start of a worker has its former
// incarnation fenced although gossip, which takes the one for the other, calls it
// alive; that of the worker beside the director too. A claim of another
// incarnation does nothing, and one that is not repeated ends.
func TestClaimedIncarnationIsFenced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "n1", "n2", "n3")
		d, end := w.director()
		defer end()
		fenced := func(id string) bool { return w.worker(id).GetState() == wire.WorkerState_WORKER_STATE_FENCED }
		d.Suspect("n3", w.owner("n3").GetIncarnation()+1)
		d.Suspect("n9", 1)
		w.quiet()
		time.Sleep(2 * claimTime)
		for _, id := range []string{"n1", "n2", "n3"} {
			if fenced(id) {
				t.Errorf("%s is fenced, and nobody claimed it", id)
			}
		}
		for _, id := range []string{"n1", "n2"} {
			w.renews(id, false) // its process has ended
			for range 20 {
				d.Suspect(id, w.owner(id).GetIncarnation())
				time.Sleep(200 * time.Millisecond)
			}
			if !fenced(id) {
				t.Errorf("%s is claimed and not fenced", id)
			}
		}
		w.renews("n2", true)
		w.register("n2") // the successor: the claim was not of it
		time.Sleep(2 * claimTime)
		if fenced("n2") {
			t.Error("the successor is fenced")
		}
	})
}
