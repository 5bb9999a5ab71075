package rpcnet

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"github.com/baton-cluster/baton/wire"
)

// hostOfAll attaches whoever asks.
func hostOfAll(c *ServerConfig) {
	c.Serve = func(st *Stream, first *wire.ClientFrame) {
		_ = st.Send(&wire.ServerFrame{Kind: &wire.ServerFrame_Attached{Attached: &wire.Attached{Session: first.GetAttach().GetSession(), Epoch: 1, Node: testNode("a")}}})
		for {
			f, err := st.Recv()
			if err != nil {
				return
			}
			if f.GetDetach() != nil {
				st.Bye(wire.Code_OK, "detached")
				return
			}
		}
	}
}

func sessionsOn(conns []Conn) (all []string) {
	for _, c := range conns {
		all = append(all, c.Sessions...)
	}
	slices.Sort(all)
	return all
}

// A connection's entry tells its sessions, and goes with it.
func TestConnectionsAndTheirSessions(t *testing.T) {
	cl := newFakeCluster(t, 1, hostOfAll)
	srv := cl.nodes[0].srv
	c := dialFake(t, untimed, cl.nodes[0])
	var open []*Session
	for i := range 3 {
		s, err := c.Resume(context.Background(), fmt.Sprint("s", i), make([]byte, wire.SecretBytes))
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, s)
	}
	conns := srv.ConnList()
	if len(conns) != 1 || !slices.Equal(conns[0].Sessions, []string{"s0", "s1", "s2"}) {
		t.Fatalf("%+v", conns)
	}
	got := conns[0]
	if got.ID == 0 || got.ALPN != ALPNUser || got.Relayed || got.Remote == nil || got.Age <= 0 || got.Stats.GetBytesReceived() == 0 {
		t.Errorf("%+v", got)
	}
	if st := srv.Stats(); st.Open != 1 || st.Sessions != 3 || st.Crowded != 0 {
		t.Errorf("%+v", st)
	}
	_ = open[1].Detach(context.Background())
	eventually(t, "a session that left is off its connection", func() bool {
		return slices.Equal(sessionsOn(srv.ConnList()), []string{"s0", "s2"})
	})
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the connection is gone with its client", func() bool {
		st := srv.Stats()
		return st.Open == 0 && st.Sessions == 0
	})
}

// Sessions are listed by connection, in pages that part none, each once although
// it may have had two streams.
func TestSessionsByConnection(t *testing.T) {
	srv := &Server{conns: map[uint64]*serverConn{}}
	for id, sessions := range map[uint64][]string{7: {"c", "a", "b", "a"}, 2: {"z", "y"}, 9: {}, 11: {"k"}} {
		c := &serverConn{sessions: map[*Stream]string{}}
		for _, s := range sessions {
			c.sessions[&Stream{}] = s
		}
		srv.conns[id] = c
	}
	for _, want := range []struct {
		after    uint64
		limit    int
		sessions []string
		last     uint64
	}{
		{0, 100, []string{"y", "z", "a", "b", "c", "k"}, 0},
		{0, 1, []string{"y", "z"}, 2},
		{0, 3, []string{"y", "z", "a", "b", "c"}, 7},
		{2, 3, []string{"a", "b", "c"}, 7},
		{7, 3, []string{"k"}, 0},
		{11, 3, nil, 0},
	} {
		if got, last := srv.SessionsByConn(want.after, want.limit); !slices.Equal(got, want.sessions) || last != want.last {
			t.Errorf("after %d, %d: %v, %d", want.after, want.limit, got, last)
		}
	}
}

// A connection that carries as many sessions as it may refuses the next, with a
// code of its own; the client library goes on over another one.
func TestConnectionIsFull(t *testing.T) {
	cl := newFakeCluster(t, 1, func(c *ServerConfig) {
		c.SessionsPerConnMax = 2
		hostOfAll(c)
	})
	srv := cl.nodes[0].srv
	c := dialFake(t, untimed, cl.nodes[0])
	for i := range 5 {
		if _, err := c.Resume(context.Background(), fmt.Sprint("s", i), make([]byte, wire.SecretBytes)); err != nil {
			t.Fatal(err)
		}
	}
	conns := srv.ConnList()
	for _, conn := range conns {
		if len(conn.Sessions) > 2 {
			t.Errorf("more than it may carry: %+v", conn)
		}
	}
	if st := srv.Stats(); st.Crowded < 2 || st.Sessions != 5 || len(conns) < 3 {
		t.Errorf("%+v on %d connections", st, len(conns))
	}
	attach := func(id string) []byte {
		return clientBytes(t, &wire.ClientFrame{Kind: &wire.ClientFrame_Attach{Attach: &wire.AttachReq{
			Version: wire.Version, Session: id, Secret: make([]byte, wire.SecretBytes), Instance: make([]byte, wire.IDBytes),
		}}})
	}
	raw := rawConn(t, cl.nodes[0])
	for i := range 2 {
		qs, err := raw.OpenStreamSync(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := qs.Write(attach(fmt.Sprint("r", i))); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "two sessions on the raw connection", func() bool { return srv.Stats().Sessions == 7 })
	frames := rawStream(t, raw, attach("r2"))
	if len(frames) != 1 || frames[0].GetBye().GetCode() != wire.Code_CONNECTION_FULL {
		t.Errorf("one too many was answered %v", frames)
	}
}
