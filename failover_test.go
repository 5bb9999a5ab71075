package baton_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/baton-cluster/baton"
)

// insist asks until the answer is final: a retryable error says no more than that the
// cluster cannot answer just now, as in an election.
func insist(ctx context.Context, ask func() error) error {
	for {
		err := ask()
		if !baton.CodeOf(err).Retryable() || ctx.Err() != nil {
			return err
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// ownerIndex is which of the cluster's nodes owns the session now; its clients may
// not have heard of it yet.
func (c *testCluster) ownerIndex(s *baton.Session) int {
	c.t.Helper()
	owner := c.lastChange(s.ID()).Owner
	for i := range c.nodes {
		if c.name(i) == owner {
			return i
		}
	}
	c.t.Fatalf("unknown owner %q", owner)
	return -1
}

// lastChange is how the session came to its owner.
func (c *testCluster) lastChange(id string) baton.OwnerChange {
	c.t.Helper()
	e := c.explain(id)
	return e.Changes[len(e.Changes)-1]
}

func (c *testCluster) explain(id string) (e baton.Explanation) {
	c.t.Helper()
	ctx, a := testContext(c.t), c.admin()
	must(c.t, insist(ctx, func() (err error) {
		e, err = a.Explain(ctx, id)
		return err
	}))
	return e
}

// verify asks until the verdict is on all nodes but those that are down, or bad: one that
// is slow to answer is left out of it.
func (c *testCluster) verify(ctx context.Context, down ...string) (v baton.Verdict) {
	c.t.Helper()
	a := c.admin()
	eventually(c.t, "a verdict on all nodes", func() bool {
		must(c.t, insist(ctx, func() (err error) {
			v, err = a.Verify(ctx)
			return err
		}))
		return !v.OK || !slices.ContainsFunc(v.Unreachable, func(name string) bool { return !slices.Contains(down, name) })
	})
	return v
}

func (c *testCluster) other(i int) int { return (i + 1) % len(c.nodes) }

func TestOwnerStopsAndSessionGoesOn(t *testing.T) {
	c := startCluster(t, nil)
	ctx := testContext(t)
	s, err := c.client().Open(ctx, baton.OpenOptions{ID: "bob"})
	must(t, err)
	for range 5 {
		_, _, err := s.Incr(ctx, "n", 1)
		must(t, err)
	}
	before := s.Epoch()
	owner := c.ownerIndex(s)
	must(t, c.nodes[owner].Close())
	sum, r, err := s.Incr(ctx, "n", 1)
	must(t, err)
	if sum != 6 || r.Epoch <= before || r.Node == c.name(owner) {
		t.Fatalf("after the owner stopped: %d, epoch %d (was %d), on %s", sum, r.Epoch, before, r.Node)
	}
	must(t, c.open(owner))
	e := c.explain("bob")
	if len(e.Changes) < 2 || e.Changes[0].From != "" || e.Changes[1].From != c.name(owner) {
		t.Fatalf("history: %+v", e.Changes)
	}
}

func TestShutdownDrainsWhileClientsCall(t *testing.T) {
	c := startCluster(t, nil)
	ctx := testContext(t)
	client := c.client()
	const sessions, calls = 8, 50
	var wg sync.WaitGroup
	fail := make(chan error, sessions)
	for i := range sessions {
		s, err := client.Open(ctx, baton.OpenOptions{ID: fmt.Sprint("s", i)})
		must(t, err)
		wg.Add(1)
		go func() {
			defer wg.Done()
			for n := 1; n <= calls; n++ {
				sum, _, err := s.Incr(ctx, "n", 1)
				if err == nil && sum != int64(n) {
					err = fmt.Errorf("%s: %d after %d calls", s.ID(), sum, n)
				}
				if err != nil {
					fail <- err
					return
				}
			}
		}()
	}
	must(t, c.nodes[0].Shutdown(ctx))
	wg.Wait()
	close(fail)
	must(t, <-fail)
	must(t, c.open(0))
	if v := c.verify(ctx); !v.OK {
		t.Fatalf("verify: %+v", v)
	}
}

func TestAllNodesRestartWithTheirState(t *testing.T) {
	c := startCluster(t, nil)
	ctx := testContext(t)
	first := c.client()
	s, err := first.Open(ctx, baton.OpenOptions{ID: "carol"})
	must(t, err)
	_, err = s.Put(ctx, "k", []byte("v"))
	must(t, err)
	must(t, first.Close()) // or it would attach again, and displace the second
	for i := range c.nodes {
		must(t, c.nodes[i].Close())
	}
	errs := make(chan error, len(c.nodes))
	for i := range c.nodes {
		go func() { errs <- c.open(i) }()
	}
	for range c.nodes {
		must(t, <-errs)
	}
	again, err := c.client().Resume(ctx, "carol", s.Secret())
	must(t, err)
	v, err := again.Get(ctx, "k")
	must(t, err)
	if string(v.Value) != "v" {
		t.Fatalf("read %q", v.Value)
	}
}

func TestRefusalsAreTyped(t *testing.T) {
	c := startCluster(t, nil)
	ctx := testContext(t)
	client := c.client()
	s, err := client.Open(ctx, baton.OpenOptions{ID: "dave"})
	must(t, err)
	for name, tc := range map[string]struct {
		do   func() error
		want error
	}{
		"unknown session": {func() error { _, err := client.Resume(ctx, "nobody", s.Secret()); return err }, baton.ErrUnknownSession},
		"wrong secret":    {func() error { _, err := client.Resume(ctx, "dave", make([]byte, 32)); return err }, baton.ErrBadSecret},
		"taken id":        {func() error { _, err := client.Open(ctx, baton.OpenOptions{ID: "dave"}); return err }, baton.ErrSessionExists},
		"large value":     {func() error { _, err := s.Put(ctx, "k", make([]byte, 1<<20)); return err }, nil},
		"closed": {func() error {
			o, err := client.Open(ctx, baton.OpenOptions{ID: "erin"})
			must(t, err)
			must(t, o.Close(ctx))
			_, err = client.Resume(ctx, "erin", o.Secret())
			return err
		}, baton.ErrSessionClosed},
	} {
		t.Run(name, func(t *testing.T) {
			err := tc.do()
			if err == nil || tc.want != nil && !errors.Is(err, tc.want) {
				t.Fatalf("got %v, want %v", err, tc.want)
			}
		})
	}
	_, _, err = s.Incr(ctx, "n", 1)
	must(t, err)
}
