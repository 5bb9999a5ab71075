package migrate

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/baton-cluster/baton/wire"
)

// begunSessions lists the sessions that moves have begun of, in order.
func (w *world) begunSessions() (sessions []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, b := range w.batches {
		for _, c := range b {
			if k := c.GetBegin(); k != nil {
				sessions = append(sessions, k.GetSession())
			}
		}
	}
	return sessions
}

// A drain moves the sessions of a connection one after the other, page by page,
// then those that the node has not named; nothing twice, though it names some
// twice, and such as are gone or on other nodes.
func TestDrainGoesByConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const sessions, conns, concurrency = 120, 10, 4
		w := drainWorld(t, sessions)
		w.open("elsewhere", "n2", true)
		var want []string
		for c := range conns {
			for i := c; i < sessions-conns; i += conns { // the last ones are not named
				want = append(want, fmt.Sprintf("s%04d", i))
			}
		}
		pages := 0
		w.order = func(worker string, after uint64) ([]string, uint64) {
			pages++
			if worker != "n1" || after >= conns {
				return nil, 0
			}
			per := len(want) / conns
			page := slices.Clone(want[int(after)*per : (int(after)+1)*per])
			return append(page, page[0], "gone", "elsewhere"), after + 1
		}
		_, end := w.director(func(c *DirectorConfig) { c.DrainConcurrency = concurrency })
		defer end()
		j := w.over(w.startDrain("n1").GetId())
		w.expect(j, jobDone, sessions)
		for i := sessions - conns; i < sessions; i++ {
			want = append(want, fmt.Sprintf("s%04d", i))
		}
		got := w.begunSessions()
		if len(got) != sessions {
			t.Errorf("%d moves were begun", len(got))
		}
		for at, id := range got {
			// Those that begin together are sorted by their targets.
			if named := slices.Index(want, id); max(at-named, named-at) > 2*concurrency {
				t.Errorf("%s, named in place %d, moved in place %d", id, named, at)
			}
		}
		if pages != conns+1 {
			t.Errorf("%d pages were asked for", pages)
		}
	})
}

// A node that does not say what shares a connection is drained all the same.
func TestDrainWithoutAnOrder(t *testing.T) {
	for name, answer := range map[string]func(context.Context) error{
		"silent":  hang,
		"refuses": func(context.Context) error { return wire.Errorf(wire.Code_UNKNOWN_METHOD, "an older version") },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := drainWorld(t, 50)
				w.set("order", answer)
				_, end := w.director()
				defer end()
				w.expect(w.over(w.startDrain("n1").GetId()), jobDone, 50)
			})
		})
	}
}

// A session that cannot be moved just now does not hold up those behind it.
func TestDrainOrderPassesOverFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := drainWorld(t, 20)
		w.order = func(string, uint64) ([]string, uint64) { return []string{"s0003", "s0001", "s0002"}, 0 }
		failed := false
		w.refuse = func(c *wire.Command) error {
			if c.GetBegin().GetSession() == "s0003" && !failed {
				failed = true
				return wire.Errorf(wire.Code_OVERLOADED, "not now")
			}
			return nil
		}
		_, end := w.director(func(c *DirectorConfig) { c.DrainConcurrency = 1 })
		defer end()
		began := time.Now()
		w.expect(w.over(w.startDrain("n1").GetId()), jobDone, 20)
		got := w.begunSessions()
		if len(got) != 21 || !slices.Equal(got[:3], []string{"s0003", "s0001", "s0002"}) || got[20] != "s0003" {
			t.Errorf("moved in this order: %v, in %v", got, time.Since(began))
		}
	})
}
