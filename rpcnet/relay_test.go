package rpcnet

import (
	"context"
	"sync/atomic"
	"testing"

	"github.com/baton-cluster/baton/wire"
)

// TestRelayedClientThatDoesNotReadHoldsUpNobody: the sessions that are relayed between two
// nodes share a connection, of which one client that takes nothing must not take all room.
func TestRelayedClientThatDoesNotReadHoldsUpNobody(t *testing.T) {
	var nodes atomic.Pointer[fakeCluster]
	sent := make(chan struct{}, 8)
	push := &wire.ServerFrame{Kind: &wire.ServerFrame_Push{Push: &wire.PushFrame{Payload: make([]byte, 64<<10)}}}
	cl := newFakeCluster(t, 2, func(c *ServerConfig) {
		c.Serve = func(st *Stream, first *wire.ClientFrame) {
			a, pushes := first.GetAttach(), 48 // 3 MiB: more than the windows of a stream, less than a queue
			switch {
			case a.GetRelay():
				cl := nodes.Load()
				_ = cl.nodes[0].srv.Relay(context.Background(), st, first, cl.nodes[1].addr(), cl.nodes[0].relay)
				return
			case a.GetSession() == "reads":
				pushes = 16
			}
			for range pushes {
				if err := st.Send(push); err != nil {
					t.Error(err)
				}
			}
			if a.GetSession() == "reads" {
				st.Bye(wire.Code_UNKNOWN_SESSION, "that was all")
				return
			}
			sent <- struct{}{}
			<-st.Context().Done()
		}
	})
	nodes.Store(cl)
	attach := func(id string) []byte {
		return clientBytes(t, &wire.ClientFrame{Kind: &wire.ClientFrame_Attach{Attach: &wire.AttachReq{
			Version: wire.Version, Session: id, Secret: make([]byte, wire.SecretBytes), Instance: make([]byte, wire.IDBytes), Relay: true,
		}}})
	}
	raw := rawConn(t, cl.nodes[0])
	for range cap(sent) { // together more than the window of the connection between the nodes
		qs, err := raw.OpenStreamSync(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := qs.Write(attach("does not")); err != nil {
			t.Fatal(err)
		}
		<-sent
	}
	if frames := rawStream(t, rawConn(t, cl.nodes[0]), attach("reads")); len(frames) != 17 {
		t.Errorf("a client that reads got %d frames", len(frames))
	}
}
