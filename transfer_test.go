package baton_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/baton-cluster/baton"
	"github.com/baton-cluster/baton/seam"
	"github.com/baton-cluster/baton/wire"
)

// bulk is an application with much live state.
type bulk struct {
	whole []byte
	mu    sync.Mutex
	lost  int
}

func newBulk(size int) *bulk {
	b := &bulk{whole: make([]byte, size)}
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(b.whole)
	return b
}

// mux is one node's: "hold" makes the live state, "held" says whether the node
// has it as it was made.
func (b *bulk) mux() *baton.Mux {
	m := baton.KV()
	live := map[string][]byte{}
	m.Handle("hold", func(tx *baton.Tx, _ []byte) ([]byte, error) {
		b.mu.Lock()
		defer b.mu.Unlock()
		live[tx.Fence().Session] = b.whole
		return nil, nil
	})
	m.Handle("held", func(tx *baton.Tx, _ []byte) ([]byte, error) {
		b.mu.Lock()
		defer b.mu.Unlock()
		if bytes.Equal(live[tx.Fence().Session], b.whole) {
			return []byte("yes"), nil
		}
		return []byte("no"), nil
	})
	m.OnFreeze(func(session string, _ baton.Fence) ([]byte, error) {
		b.mu.Lock()
		defer b.mu.Unlock()
		held := live[session]
		delete(live, session)
		return held, nil
	})
	m.OnResume(func(session string, _ uint64, held []byte, ok bool) {
		b.mu.Lock()
		defer b.mu.Unlock()
		live[session] = bytes.Clone(held)
		if !ok {
			b.lost++
		}
	})
	return m
}

// check fails unless the session's owner has its live state, whole.
func (b *bulk) check(t *testing.T, s *baton.Session) {
	t.Helper()
	r, err := s.Call(testContext(t), "held", nil)
	must(t, err)
	b.mu.Lock()
	defer b.mu.Unlock()
	if string(r.Payload) != "yes" || b.lost != 0 {
		t.Fatalf("the live state is whole: %s; lost %d times", r.Payload, b.lost)
	}
}

// scissors cut one of a node's connections to other nodes' management ports, at a
// byte of its choice: the first to have carried so many.
type scissors struct {
	seam.OSNetwork
	mu    sync.Mutex
	armed bool
	after int
	cuts  int
}

func (n *scissors) arm(after int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.armed, n.after = true, after
}

// cut reports whether there was something to cut, 1 or 0.
func (n *scissors) cut() (cuts int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.armed = false
	cuts, n.cuts = n.cuts, 0
	return cuts
}

func (n *scissors) Dial(ctx context.Context, addr string) (net.Conn, error) {
	c, err := n.OSNetwork.Dial(ctx, addr)
	if err != nil {
		return nil, err
	}
	return &scissorsConn{Conn: c, n: n}, nil
}

type scissorsConn struct {
	net.Conn
	n    *scissors
	sent int // since the scissors were armed
}

func (c *scissorsConn) Write(b []byte) (int, error) {
	c.n.mu.Lock()
	if !c.n.armed {
		c.sent = 0
		c.n.mu.Unlock()
		return c.Conn.Write(b)
	}
	c.sent += len(b)
	over := c.sent - c.n.after
	if over > 0 {
		c.n.armed = false
		c.n.cuts++
	}
	c.n.mu.Unlock()
	if over <= 0 {
		return c.Conn.Write(b)
	}
	n, _ := c.Conn.Write(b[:max(0, len(b)-over)])
	_ = c.Conn.Close()
	return n, io.ErrClosedPipe
}

// ended waits until no migration of the session is under way.
func ended(t *testing.T, a *baton.Admin, id string) baton.SessionInfo {
	t.Helper()
	ctx := testContext(t)
	for {
		var info baton.SessionInfo
		must(t, insist(ctx, func() (err error) {
			info, err = a.Session(ctx, id)
			return err
		}))
		if info.Migration == 0 {
			return info
		}
		select {
		case <-ctx.Done():
			t.Fatalf("migration %d does not end", info.Migration)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// TestMigrationTellsOfItsConnections: how the client was connected where it came
// from, directly and through a relay, and nothing secret.
func TestMigrationTellsOfItsConnections(t *testing.T) {
	c := startCluster(t, nil)
	ctx := testContext(t)
	client, err := baton.Dial(ctx, baton.ClientConfig{Addrs: c.user[:1], PKI: c.pki, RelayOnly: true})
	must(t, err)
	t.Cleanup(func() { _ = client.Close() })
	admin := c.admin()
	steps := []struct{ to, identity string }{{"n2", ""}, {"n3", "node n1"}}
	// What is told of a move goes with its leader: if that changes, another session
	// is moved.
	for i, told := 0, 0; told < len(steps); i++ {
		s, err := client.Open(ctx, baton.OpenOptions{ID: fmt.Sprint("s", i), Node: "n1"})
		must(t, err)
		for told = 0; told < len(steps); told++ {
			step := steps[told]
			_, _, err = s.Incr(ctx, "n", 1)
			must(t, err)
			info, err := admin.Migrate(ctx, baton.MigrateRequest{Session: s.ID(), To: step.to})
			if baton.CodeOf(err) == wire.Code_UNAVAILABLE {
				break
			}
			must(t, err)
			if len(info.Connections) != 1 {
				t.Fatalf("%+v", info)
			}
			conn := info.Connections[0]
			if conn.Identity != step.identity || conn.TLS != "TLS 1.3" || conn.ALPN == "" || conn.CipherSuite == "" || conn.Client == "" || conn.BytesSent == 0 {
				t.Errorf("before the move to %s: %+v", step.to, conn)
			}
		}
	}
}

// TestTransferCutAtAnyByte of its connection, on real nodes: the session moves or
// stays, with its live state, and calls are answered.
func TestTransferCutAtAnyByte(t *testing.T) {
	const size = 1_500_000
	app := newBulk(size)
	var nets [3]*scissors
	for i := range nets {
		nets[i] = &scissors{}
	}
	c := startClusterOn(t, app.mux, func(i int) seam.Network { return nets[i] })
	ctx := testContext(t)
	a := c.admin()
	s, err := c.client().Open(ctx, baton.OpenOptions{ID: "s"})
	must(t, err)
	_, err = s.Call(ctx, "hold", nil)
	must(t, err)
	k := startCounter(t, s)
	cuts, moved := 0, 0
	for at := 2_000; at < size; at += 61_003 {
		from := c.ownerIndex(s)
		nets[from].arm(at)
		_, err := a.Migrate(ctx, baton.MigrateRequest{Session: "s", To: c.name(c.other(from))})
		cuts += nets[from].cut()
		// The operator's own call may have been on the connection that was cut.
		info := ended(t, a, "s")
		if info.Owner == c.name(c.other(from)) {
			moved++
		} else {
			t.Logf("cut at byte %d: %v", at, err)
		}
		app.check(t, s)
		k.passes(3)
	}
	k.end()
	t.Logf("%d cuts, %d moves came to their end all the same", cuts, moved)
	if cuts < 20 || moved < cuts*3/4 {
		t.Errorf("%d cuts, %d moves: connections are not cut in mid-transfer, or transfers do not go on", cuts, moved)
	}
	if verdict := c.verify(ctx); !verdict.OK {
		t.Errorf("verify: %+v", verdict)
	}
}
