package rpcnet

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/baton-cluster/baton/wire"
)

// writeMany makes n numbered writes from a few goroutines and calls at, with the
// number done so far, after each. All must succeed.
func writeMany(t *testing.T, s *Session, method string, n int, at func(done int)) {
	t.Helper()
	const writers = 4
	var wg sync.WaitGroup
	var mu sync.Mutex
	done := 0
	for w := range writers {
		wg.Go(func() {
			for i := w; i < n; i += writers {
				r, err := s.Call(context.Background(), method, fmt.Append(nil, i))
				if err != nil {
					t.Errorf("write %d: %v", i, err)
					return
				}
				if want := fmt.Sprint("did ", i); string(r.Payload) != want {
					t.Errorf("write %d: %q, want %q", i, r.Payload, want)
				}
				mu.Lock()
				done++
				if at != nil {
					at(done)
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
}

// wantOnce checks that writes 0 to n-1 took effect once each.
func wantOnce(t *testing.T, cl *fakeCluster, n int) {
	t.Helper()
	counts := map[string]int{}
	for _, e := range cl.effects() {
		counts[e]++
	}
	for i := range n {
		if c := counts[fmt.Sprint(i)]; c != 1 {
			t.Errorf("write %d took effect %d times", i, c)
		}
	}
	if len(counts) != n {
		t.Errorf("%d different effects of %d writes", len(counts), n)
	}
}

func TestSessionLife(t *testing.T) {
	cl := newFakeCluster(t, 1, nil)
	c := dialFake(t, untimed, cl.nodes[0])
	s := openFake(t, c, "")
	if s.ID() != "s" || len(s.Secret()) != wire.SecretBytes || s.Epoch() != 5 || s.Owner().GetName() != "a" {
		t.Errorf("id %q, epoch %d, owner %v", s.ID(), s.Epoch(), s.Owner())
	}
	writeMany(t, s, "w", 100, nil)
	wantOnce(t, cl, 100)
	r, err := s.Query(context.Background(), "r", nil)
	if err != nil || string(r.Payload) != "100" || r.Node != "a" || r.Attempts != 1 || r.Epoch != 5 {
		t.Errorf("Query: %+v, %v", r, err)
	}
	if err := s.Detach(context.Background()); err != nil {
		t.Fatal(err)
	}
	_, err = s.Call(context.Background(), "w", nil)
	wantCode(t, err, wire.Code_NOT_ATTACHED)

	_, err = c.Resume(context.Background(), "s", make([]byte, wire.SecretBytes))
	wantCode(t, err, wire.Code_BAD_SECRET)
	again, err := c.Resume(context.Background(), "s", s.Secret())
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	<-again.Done()
	wantCode(t, again.Err(), wire.Code_SESSION_CLOSED)
	_, err = c.Resume(context.Background(), "s", s.Secret())
	wantCode(t, err, wire.Code_UNKNOWN_SESSION)
}

func TestClientLearnsNodesAndFollowsRedirects(t *testing.T) {
	cl := newFakeCluster(t, 2, nil)
	first := dialFake(t, nil, cl.nodes[1])
	s := openFake(t, first, "b")
	if s.Owner().GetName() != "b" {
		t.Fatalf("opened at %v", s.Owner())
	}
	var mu sync.Mutex
	var asked []Attempt
	c := dialFake(t, func(cfg *ClientConfig) {
		untimed(cfg) // else a slow b is reached through a
		cfg.Hooks.OnAttempt = func(a Attempt) {
			mu.Lock()
			defer mu.Unlock()
			asked = append(asked, a)
		}
	}, cl.nodes[0])
	if len(c.Nodes()) != 2 {
		t.Errorf("the client knows %v", c.Nodes())
	}
	s2, err := c.Resume(context.Background(), "s", s.Secret())
	if err != nil {
		t.Fatal(err)
	}
	if s2.Owner().GetName() != "b" {
		t.Errorf("attached at %v", s2.Owner())
	}
	writeMany(t, s2, "w", 8, nil)
	c.Close()
	mu.Lock()
	defer mu.Unlock()
	if len(asked) == 0 || asked[len(asked)-1].Addr != cl.nodes[1].addr() || asked[len(asked)-1].Session != "s" {
		t.Errorf("attempts: %+v", asked)
	}
}

func TestLostReplyIsNotExecutedTwice(t *testing.T) {
	cl := newFakeCluster(t, 1, nil)
	s := openFake(t, dialFake(t, nil, cl.nodes[0]), "")
	cl.nodes[0].lossy.Store(true)
	r, err := s.Call(context.Background(), "w", []byte("0"))
	if err != nil || r.Attempts < 2 {
		t.Fatalf("%+v, %v", r, err)
	}
	wantOnce(t, cl, 1)
}

func TestOwnerCrash(t *testing.T) {
	cl := newFakeCluster(t, 2, nil)
	s := openFake(t, dialFake(t, nil, cl.nodes[1]), "b")
	moves := make(chan Move, 10)
	s.OnMove(func(m Move) { moves <- m })
	writeMany(t, s, "w", 200, func(done int) {
		if done == 50 {
			cl.nodes[1].crash()
			cl.assign(cl.nodes[0])
		}
	})
	wantOnce(t, cl, 200)
	if m := <-moves; m.From.GetName() != "b" || m.To.GetName() != "a" || m.Planned || m.Epoch != 6 {
		t.Errorf("move %+v", m)
	}
}

func TestSilentOwnerIsLeft(t *testing.T) {
	cl := newFakeCluster(t, 2, nil)
	s := openFake(t, dialFake(t, nil, cl.nodes[1]), "b")
	writeMany(t, s, "w", 100, func(done int) {
		if done == 30 {
			cl.nodes[1].muted.Store(true) // its QUIC lives on: only silence shows it
			cl.assign(cl.nodes[0])
		}
	})
	wantOnce(t, cl, 100)
	if s.Owner().GetName() != "a" {
		t.Errorf("owner %v", s.Owner())
	}
}

func TestSilentOwnerWakesUp(t *testing.T) {
	cl := newFakeCluster(t, 2, nil)
	s := openFake(t, dialFake(t, nil, cl.nodes[1]), "b")
	cl.nodes[1].muted.Store(true)
	answered := make(chan error, 1)
	go func() {
		_, err := s.Call(context.Background(), "w", []byte("0"))
		answered <- err
	}()
	// While b is silent a can only redirect to it, or fail to relay.
	eventually(t, "a relay to it is tried", func() bool { return cl.nodes[0].relays.Load() > 0 })
	select {
	case err := <-answered:
		t.Fatalf("answered by a silent owner: %v", err)
	default:
	}
	cl.nodes[1].muted.Store(false)
	if err := <-answered; err != nil {
		t.Fatal(err)
	}
	wantOnce(t, cl, 1)
}

func TestRelayWhereTheOwnerCannotBeDialled(t *testing.T) {
	// Only the client's dial to b is to fail, and all that is slow is to be waited for.
	cl := newFakeCluster(t, 2, func(c *ServerConfig) { c.RelayDialTimeout = time.Hour })
	open := openFake(t, dialFake(t, nil, cl.nodes[1]), "b")
	network := &blockNet{}
	network.block(cl.nodes[1].addr(), true)
	c := dialFake(t, func(cfg *ClientConfig) { cfg.Network, cfg.Silence = network, time.Hour }, cl.nodes[0])
	s, err := c.Resume(context.Background(), "s", open.Secret())
	if err != nil {
		t.Fatal(err)
	}
	if s.Owner().GetName() != "b" || cl.nodes[0].relays.Load() == 0 {
		t.Errorf("owner %v, %d relays", s.Owner(), cl.nodes[0].relays.Load())
	}
	big := []byte(strings.Repeat("x", wire.FrameBytesMax-2*requestOverheadBytes))
	r, err := s.Call(context.Background(), "w", big)
	if err != nil || len(r.Payload) != len(big)+len("did ") {
		t.Fatalf("%d bytes, %v", len(r.Payload), err)
	}
	writeMany(t, s, "w", 50, nil)
	// The session moves to the relay's own node, over the same connection.
	cl.migrate(9, cl.nodes[0], false)
	writeMany(t, s, "w", 1, nil)
	if s.Owner().GetName() != "a" {
		t.Errorf("owner %v", s.Owner())
	}
	if err := s.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
}

func TestPathToOwnerIsCutLater(t *testing.T) {
	cl := newFakeCluster(t, 2, nil)
	network := &blockNet{}
	s := openFake(t, dialFake(t, func(cfg *ClientConfig) { cfg.Network = network }, cl.nodes[1]), "b")
	writeMany(t, s, "w", 100, func(done int) {
		if done == 50 {
			network.block(cl.nodes[1].addr(), true)
		}
	})
	wantOnce(t, cl, 100)
	if s.Owner().GetName() != "b" || cl.nodes[0].relays.Load() == 0 {
		t.Errorf("owner %v, %d relays", s.Owner(), cl.nodes[0].relays.Load())
	}
	network.block(cl.nodes[1].addr(), false) // so that b hears of the end
}

func TestRelayOnlyClient(t *testing.T) {
	cl := newFakeCluster(t, 2, nil)
	open := openFake(t, dialFake(t, nil, cl.nodes[1]), "b")
	c := dialFake(t, func(cfg *ClientConfig) { cfg.Relay = true }, cl.nodes[0])
	s, err := c.Resume(context.Background(), "s", open.Secret())
	if err != nil {
		t.Fatal(err)
	}
	writeMany(t, s, "w", 20, nil)
	wantOnce(t, cl, 20)
}

func TestMigrationsUnderLoad(t *testing.T) {
	cl := newFakeCluster(t, 3, nil)
	s := openFake(t, dialFake(t, untimed, cl.nodes[0]), "a")
	var mu sync.Mutex
	var pushes []uint64
	var moves []Move
	s.OnPush(func(p Push) {
		mu.Lock()
		defer mu.Unlock()
		pushes = append(pushes, p.Seq)
	})
	s.OnMove(func(m Move) {
		mu.Lock()
		defer mu.Unlock()
		moves = append(moves, m)
	})
	const rounds, per = 6, 40
	begin := make(chan int, rounds)
	var movers sync.WaitGroup
	movers.Go(func() {
		for i := range begin {
			cl.migrate(uint64(100+i), cl.nodes[(i+1)%3], i%3 == 2)
		}
	})
	writeMany(t, s, "push", rounds*per, func(done int) {
		if done%per == per/2 {
			begin <- done / per
		}
	})
	close(begin)
	movers.Wait()
	wantOnce(t, cl, rounds*per)
	if err := s.Detach(context.Background()); err != nil {
		t.Error(err)
	}
	s.client.Close()
	mu.Lock()
	defer mu.Unlock()
	want := make([]uint64, rounds*per)
	for i := range want {
		want[i] = uint64(i + 1)
	}
	if len(pushes) == 0 || !slices.Equal(pushes, want[:len(pushes)]) {
		t.Errorf("%d pushes, out of order or with gaps: %v", len(pushes), pushes)
	}
	if len(moves) == 0 {
		t.Error("no move was reported")
	}
	for _, m := range moves {
		if !m.Planned {
			t.Errorf("an unplanned move: %+v", m)
		}
	}
}

func TestShutdownTellsClientsToMove(t *testing.T) {
	cl := newFakeCluster(t, 2, nil)
	s := openFake(t, dialFake(t, nil, cl.nodes[1]), "b")
	var stopped sync.WaitGroup
	writeMany(t, s, "w", 100, func(done int) {
		if done == 50 {
			stopped.Go(func() {
				cl.assign(cl.nodes[0])
				cl.nodes[1].stop()
			})
		}
	})
	stopped.Wait()
	wantOnce(t, cl, 100)
}

func TestCallEndsWithItsContext(t *testing.T) {
	cl := newFakeCluster(t, 1, nil)
	s := openFake(t, dialFake(t, nil, cl.nodes[0]), "")
	cl.nodes[0].muted.Store(true)
	ctx, cancel := context.WithCancel(context.Background())
	answered := make(chan error, 1)
	go func() {
		_, err := s.Call(ctx, "w", []byte("abandoned"))
		answered <- err
	}()
	s.waitSent(t)
	cancel()
	err := <-answered
	wantCode(t, err, wire.Code_DEADLINE_EXCEEDED)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v is not context.Canceled", err)
	}
	cl.nodes[0].muted.Store(false)
	// The abandoned write does not block its successor.
	if _, err := s.Call(context.Background(), "w", []byte("next")); err != nil {
		t.Fatal(err)
	}
	if e := cl.effects(); !slices.Equal(e, []string{"next"}) && !slices.Equal(e, []string{"abandoned", "next"}) {
		t.Errorf("effects %v", e)
	}
}

// waitSent waits until a request of s is out.
func (s *Session) waitSent(t *testing.T) {
	t.Helper()
	eventually(t, "a request is sent", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.core.order) > 0 && s.core.order[0].attempt > 0
	})
}

func TestClientCloseEndsCalls(t *testing.T) {
	cl := newFakeCluster(t, 1, nil)
	c := dialFake(t, nil, cl.nodes[0])
	s := openFake(t, c, "")
	cl.nodes[0].muted.Store(true)
	answered := make(chan error, 1)
	go func() {
		_, err := s.Call(context.Background(), "w", nil)
		answered <- err
	}()
	s.waitSent(t)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	wantCode(t, <-answered, wire.Code_SHUTTING_DOWN)
	_, err := c.Open(context.Background(), OpenOptions{})
	wantCode(t, err, wire.Code_SHUTTING_DOWN)
	if err := c.Close(); err != nil {
		t.Errorf("a second Close: %v", err)
	}
}

func TestOpenGivesUpWithItsContext(t *testing.T) {
	cl := newFakeCluster(t, 1, nil)
	c := dialFake(t, nil, cl.nodes[0])
	cl.nodes[0].muted.Store(true)
	ctx, cancel := context.WithTimeout(context.Background(), 50*ms)
	defer cancel()
	_, err := c.Open(ctx, OpenOptions{})
	wantCode(t, err, wire.Code_DEADLINE_EXCEEDED)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v is not context.DeadlineExceeded", err)
	}
}

func TestDialRefusals(t *testing.T) {
	cl := newFakeCluster(t, 1, nil)
	foreign := ClientConfig{Addrs: []string{cl.nodes[0].addr()}, TLS: mgmtForeign().PeerClient(ALPNUser)}
	_, err := Dial(context.Background(), foreign)
	wantCode(t, err, wire.Code_NOT_AUTHORISED)

	_, err = Dial(context.Background(), ClientConfig{Addrs: []string{"no port"}})
	if err == nil || !strings.Contains(err.Error(), "no port") || !strings.Contains(err.Error(), "TLS") {
		t.Errorf("not all faults are named: %v", err)
	}

	ctx, cancel := context.WithTimeout(context.Background(), 50*ms)
	defer cancel()
	_, err = Dial(ctx, ClientConfig{Addrs: []string{"127.0.0.1:1"}, TLS: foreign.TLS, DialTimeout: 10 * ms})
	wantCode(t, err, wire.Code_UNAVAILABLE)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v is not context.DeadlineExceeded", err)
	}
}

func BenchmarkCall(b *testing.B) {
	for _, callers := range []int{1, 16, 128} {
		b.Run(fmt.Sprint(callers), func(b *testing.B) {
			cl := newFakeCluster(b, 1, nil)
			s := openFake(b, dialFake(b, func(c *ClientConfig) { c.Network = nil }, cl.nodes[0]), "")
			b.ReportAllocs()
			b.SetParallelism(callers)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if _, err := s.Query(context.Background(), "r", nil); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}
