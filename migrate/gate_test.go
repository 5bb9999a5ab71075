package migrate

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/baton-cluster/baton/wire"
)

// moveAll requests a move of each session and returns the reports once all have
// ended.
func moveAll(d *Director, sessions []string) []Report {
	reports := make([]Report, len(sessions))
	var wg sync.WaitGroup
	for i, id := range sessions {
		wg.Go(func() { reports[i], _ = d.Migrate(context.Background(), request(id, "n2")) })
	}
	wg.Wait()
	return reports
}

func gateWorld(t *testing.T, sessions int) (w *world, ids []string) {
	w = newWorld(t, "n1", "n2")
	for i := range sessions {
		id := fmt.Sprintf("s%03d", i)
		w.open(id, "n1", true)
		ids = append(ids, id)
	}
	return w, ids
}

// Of many moves at once few sessions are paused at once, and all move.
func TestFewHandoversAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, ids := gateWorld(t, 64)
		var mu sync.Mutex
		most := 0
		w.pause = func(underway int) time.Duration {
			mu.Lock()
			defer mu.Unlock()
			most = max(most, underway)
			return 20 * time.Millisecond
		}
		d, end := w.director(func(c *DirectorConfig) { c.HandoversMax = 5 })
		defer end()
		for _, r := range moveAll(d, ids) {
			if r.State != Completed {
				t.Errorf("%+v", r)
			}
		}
		if most != 5 {
			t.Errorf("%d sessions were paused at once", most)
		}
	})
}

// Handovers that take long keep no others waiting; their own moves go on.
func TestSlowHandoversHoldUpNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, ids := gateWorld(t, 12)
		slow := make(chan struct{})
		begun := 0
		w.set("handover", func(ctx context.Context) error {
			w.mu.Lock()
			begun++
			first := begun <= 3
			w.mu.Unlock()
			if !first {
				return nil
			}
			select {
			case <-slow:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
		d, end := w.director(func(c *DirectorConfig) { c.HandoversMax = 3 })
		defer end()
		var reports []Report
		all := make(chan struct{})
		go func() {
			defer close(all)
			reports = moveAll(d, ids)
		}()
		time.Sleep(time.Second)
		if n := w.owned()["n2"]; n != 9 {
			t.Errorf("%d sessions have moved beside three that take long", n)
		}
		close(slow)
		<-all
		for _, r := range reports {
			if r.State != Completed {
				t.Errorf("%+v", r)
			}
		}
	})
}

// A move that ends while it waits for its handover is not handed over, and takes
// nobody's place.
func TestMoveEndsBeforeItsHandover(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, ids := gateWorld(t, 4)
		w.pause = func(int) time.Duration { return 50 * time.Millisecond }
		called := 0
		w.set("handover", func(context.Context) error {
			w.mu.Lock()
			called++
			w.mu.Unlock()
			return nil
		})
		d, end := w.director(func(c *DirectorConfig) { c.HandoversMax = 1 })
		defer end()
		all := make(chan struct{})
		go func() {
			defer close(all)
			moveAll(d, ids)
		}()
		time.Sleep(30 * time.Millisecond) // one is inside, three wait
		var ended *wire.Migration
		for _, m := range w.active() {
			if ended = m; w.waitsForHandover(d, m.GetId()) {
				break
			}
		}
		w.must(&wire.Command{Kind: &wire.Command_Abort{Abort: &wire.AbortMigration{Migration: ended.GetId(), Reason: "test"}}})
		<-all
		if n := w.owned()["n2"]; n != 3 || called != 3 {
			t.Errorf("%d sessions have moved, after %d handovers", n, called)
		}
	})
}

// waitsForHandover reports whether a migration is in the director's queue.
func (w *world) waitsForHandover(d *Director, id uint64) bool {
	r := d.cur.Load()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, q := range r.gate.queue {
		if q.m.h.Migration().GetId() == id {
			return true
		}
	}
	return false
}
