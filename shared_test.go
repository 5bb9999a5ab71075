package baton_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"testing"

	"github.com/baton-cluster/baton"
	"github.com/baton-cluster/baton/wire"
)

// TestLaterClientDisplaces the earlier one, which is told, and is not let in
// again by what it still asks.
func TestLaterClientDisplaces(t *testing.T) {
	c := startCluster(t, nil)
	ctx := testContext(t)
	first, err := c.client().Open(ctx, baton.OpenOptions{ID: "seat"})
	must(t, err)
	_, _, err = first.Incr(ctx, "n", 1)
	must(t, err)
	second, err := c.client().Resume(ctx, "seat", first.Secret())
	must(t, err)
	<-first.Done()
	displaced := func(err error) {
		t.Helper()
		var e *baton.Error
		if !errors.As(err, &e) || e.Code != wire.Code_DISPLACED {
			t.Fatalf("%v, want DISPLACED", err)
		}
	}
	displaced(first.Err())
	_, _, err = first.Incr(ctx, "n", 1)
	displaced(err)
	_, err = first.Get(ctx, "n")
	displaced(err)
	n, _, err := second.Incr(ctx, "n", 1)
	must(t, err)
	if n != 2 {
		t.Fatalf("n = %d", n)
	}
}

// guest is one client of a shared session.
type guest struct {
	s     *baton.Session
	acked int

	mu     sync.Mutex
	pushes []string
	bad    string
}

func join(t *testing.T, c *testCluster, s *baton.Session) *guest {
	g := &guest{s: s}
	last := uint64(0)
	s.OnPush(func(p baton.Push) {
		g.mu.Lock()
		defer g.mu.Unlock()
		if last != 0 && p.Seq != last+1 || p.Missed > 0 {
			g.bad = fmt.Sprintf("push %d after %d, %d missed", p.Seq, last, p.Missed)
		}
		last = p.Seq
		g.pushes = append(g.pushes, string(p.Payload))
	})
	return g
}

// TestSharedSession: several clients of one session, each with its own order of
// calls; what one writes the others see as soon as it is acknowledged; pushes
// reach all of them; the session moves and loses its owner under them, and is
// detached when the last of them has left.
func TestSharedSession(t *testing.T) {
	c := startCluster(t, nil)
	ctx := testContext(t)
	const guests = 4
	opened, err := c.client().Open(ctx, baton.OpenOptions{ID: "party", Shared: true})
	must(t, err)
	all := []*guest{join(t, c, opened)}
	for range guests - 1 {
		s, err := c.client().Resume(ctx, "party", opened.Secret())
		must(t, err)
		all = append(all, join(t, c, s))
	}
	lap := func(calls int, during func()) {
		var wg sync.WaitGroup
		fail := make(chan error, guests)
		for _, g := range all {
			wg.Go(func() {
				for range calls {
					n, _, err := g.s.Incr(ctx, "n", 1)
					if err == nil {
						err = sees(ctx, all, n)
					}
					if err != nil {
						fail <- err
						return
					}
					g.acked++
				}
			})
		}
		during()
		wg.Wait()
		select {
		case err := <-fail:
			t.Fatal(err)
		default:
		}
	}
	lap(20, func() {})
	for i := range guests {
		_, err := all[i].s.Push(ctx, []byte(fmt.Sprint("push ", i)))
		must(t, err)
	}
	lap(20, func() {
		for range 2 {
			must(t, c.migrate(ctx, "party", c.name(c.other(c.ownerIndex(all[0].s)))))
		}
	})
	owner := c.ownerIndex(all[0].s)
	lap(20, func() { must(t, c.nodes[owner].Close()) })
	must(t, c.open(owner))

	sum := 0
	for _, g := range all {
		sum += g.acked
	}
	v, err := all[1].s.Get(ctx, "n")
	must(t, err)
	if string(v.Value) != strconv.Itoa(sum) {
		t.Fatalf("the counter is at %s after %d acknowledged increments", v.Value, sum)
	}
	for i, g := range all {
		g.mu.Lock()
		if len(g.pushes) != guests || g.bad != "" {
			t.Errorf("client %d got %q; %s", i, g.pushes, g.bad)
		}
		g.mu.Unlock()
	}
	leaveOneByOne(ctx, t, c, all)
}

// sees fails if a client of the session reads less than n.
func sees(ctx context.Context, all []*guest, n int64) error {
	g := all[int(n)%len(all)]
	v, err := g.s.Get(ctx, "n")
	if err != nil {
		return err
	}
	if got, _ := strconv.ParseInt(string(v.Value), 10, 64); got < n {
		return fmt.Errorf("%d was acknowledged, and then another client read %s, epoch %d, leased %v", n, v.Value, v.Epoch, v.Leased)
	}
	return nil
}

func leaveOneByOne(ctx context.Context, t *testing.T, c *testCluster, all []*guest) {
	t.Helper()
	admin := c.admin()
	for i, g := range all {
		must(t, g.s.Detach(ctx))
		var info baton.SessionInfo
		must(t, insist(ctx, func() (err error) {
			info, err = admin.Session(ctx, "party")
			return err
		}))
		if want := len(all) - 1 - i; info.Attached != want || info.ExpiresInS >= 0 != (want == 0) {
			t.Fatalf("%d clients have left: %+v", i+1, info)
		}
	}
}

// TestIdleClientsOfASharedSession keep the replies to the last they asked, more
// than the session can hold. They make room when others ask on.
func TestIdleClientsOfASharedSession(t *testing.T) {
	c := startCluster(t, nil)
	ctx := testContext(t)
	client := c.client()
	s, err := client.Open(ctx, baton.OpenOptions{ID: "hall", Shared: true})
	must(t, err)
	const guests, calls = 40, 2
	for range guests {
		g, err := client.Resume(ctx, "hall", s.Secret())
		must(t, err)
		for range calls {
			_, _, err := g.Incr(ctx, "n", 1)
			must(t, err)
		}
	}
	n, _, err := s.Incr(ctx, "n", 1)
	must(t, err)
	if n != guests*calls+1 {
		t.Fatalf("n = %d", n)
	}
}
