package cluster

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/baton-cluster/baton/seam"
	"github.com/baton-cluster/baton/wire"
)

// heldLog is where a proposer's batches go: each waits there for its release.
type heldLog struct {
	prop    *proposer
	arrived chan *batch
	release chan struct{}

	mu    sync.Mutex
	order []int // which proposals were answered
}

func newHeldLog() *heldLog {
	l := &heldLog{arrived: make(chan *batch, 64), release: make(chan struct{})}
	l.prop = newProposer(seam.OSClock{}, Timings{Forward: 1 << 40, Batches: 1})
	l.prop.apply = func(b *batch) ([]*wire.Result, error) {
		l.arrived <- b
		<-l.release
		return make([]*wire.Result, b.commands), nil
	}
	l.prop.forward = func(_ context.Context, _ string, b *batch) ([]*wire.Result, error) { return l.prop.apply(b) }
	return l
}

// propose queues n proposals and waits until nothing more happens.
func (l *heldLog) propose(t *testing.T, from, n int) {
	for i := from; i < from+n; i++ {
		l.prop.propose([]*wire.Command{locate(fmt.Sprint(i))}, func(_ []*wire.Result, err error) {
			if err != nil {
				t.Errorf("proposal %d: %v", i, err)
			}
			l.mu.Lock()
			defer l.mu.Unlock()
			l.order = append(l.order, i)
		}, false)
	}
	synctest.Wait()
}

// sizes are those of the batches that arrived since it was asked last.
func (l *heldLog) sizes() (sizes []int) {
	for len(l.arrived) > 0 {
		sizes = append(sizes, (<-l.arrived).commands)
	}
	return sizes
}

func (l *heldLog) expect(t *testing.T, what string, want ...int) {
	t.Helper()
	if got := l.sizes(); !slices.Equal(got, want) {
		t.Fatalf("%s: batches of %v commands are under way, want %v", what, got, want)
	}
}

// TestEntriesGoOneByOne: into the own log goes one batch at a time; what is
// proposed meanwhile shares the next.
func TestEntriesGoOneByOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newHeldLog()
		l.prop.setRoute(true, "")
		l.propose(t, 0, 1)
		l.expect(t, "one proposal", 1)
		l.propose(t, 1, 5)
		l.expect(t, "others meanwhile")
		l.release <- struct{}{}
		synctest.Wait()
		l.expect(t, "after the first", 5)
		close(l.release)
		l.prop.wait()
		if !slices.Equal(l.order, []int{0, 1, 2, 3, 4, 5}) {
			t.Fatalf("answered in the order %v", l.order)
		}
	})
}

// TestForwardedBatchesDoNotWait: to the leader goes what there is, up to
// forwardsMax batches at a time, as they share its entries.
func TestForwardedBatchesDoNotWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newHeldLog()
		l.prop.setRoute(false, "leader")
		for i := range forwardsMax {
			l.propose(t, i, 1)
			l.expect(t, "one more", 1)
		}
		l.propose(t, forwardsMax, 3)
		l.expect(t, "with as many under way as may be")
		l.release <- struct{}{}
		synctest.Wait()
		l.expect(t, "with room for one", 3)
		close(l.release)
		l.prop.wait()
		if len(l.order) != forwardsMax+3 {
			t.Fatalf("%d proposals were answered, want %d", len(l.order), forwardsMax+3)
		}
	})
}

// TestWhatIsAwaitedIsAnnounced: a barrier that came from another node is followed by
// an entry, with which that node hears of its commit; nothing follows one of this
// node's own, nor the entry that follows.
func TestWhatIsAwaitedIsAnnounced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newHeldLog()
		close(l.release)
		l.prop.setRoute(true, "")
		barrier := func(forwarded bool) {
			l.prop.propose([]*wire.Command{tick()}, func([]*wire.Result, error) {}, forwarded)
			synctest.Wait()
		}
		barrier(false)
		l.expect(t, "a barrier of this node's own", 1)
		barrier(true)
		l.expect(t, "a barrier of another node's", 1, 1)
		both := &batch{}
		for _, forwarded := range []bool{false, true} {
			g, err := newGroup([]*wire.Command{tick()}, nil)
			if err != nil {
				t.Fatal(err)
			}
			g.forwarded = forwarded
			both.units = append(both.units, &unit{g: g, to: 1})
		}
		if !both.awaited() {
			t.Fatal("a barrier of another node's is not awaited after one of this node's own")
		}
		l.prop.tell()
		synctest.Wait()
		l.expect(t, "an announcement", 1)
		l.prop.setRoute(false, "leader")
		l.prop.tell()
		synctest.Wait()
		l.expect(t, "an announcement where another node leads")
		l.prop.wait()
	})
}

// TestResultsThatFitNoAnswer: a leader that cannot answer a batch, since its results
// are too large together, gets it in parts; later ones are whole again.
func TestResultsThatFitNoAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const fit = 4
		l := newHeldLog()
		var sent []int
		l.prop.forward = func(_ context.Context, _ string, b *batch) ([]*wire.Result, error) {
			l.mu.Lock()
			defer l.mu.Unlock()
			if sent = append(sent, b.commands); len(sent) > 2000 {
				return nil, wire.Errorf(wire.Code_BAD_REQUEST, "for ever")
			}
			if b.commands > fit {
				return nil, wire.Errorf(wire.Code_REPLY_TOO_LARGE, "the answer is too large")
			}
			return make([]*wire.Result, b.commands), nil
		}
		var cmds []*wire.Command
		for i := range 500 * fit {
			cmds = append(cmds, locate(fmt.Sprint("of one group ", i)))
		}
		var results []*wire.Result
		l.prop.propose(cmds, func(rs []*wire.Result, err error) {
			if results = rs; err != nil {
				t.Error(err)
			}
		}, false)
		l.propose(t, 0, 10*fit)
		l.prop.setRoute(false, "leader")
		synctest.Wait()
		l.prop.wait()
		if len(results) != len(cmds) || len(l.order) != 10*fit {
			t.Fatalf("%d results of %d, %d proposals of %d answered; batches of %v", len(results), len(cmds), len(l.order), 10*fit, sent)
		}
	})
}
