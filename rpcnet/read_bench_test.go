package rpcnet

import (
	"context"
	"fmt"
	"net"
	"sync"
	"testing"

	"github.com/baton-cluster/baton/wire"
)

// BenchmarkReads is closed-loop queries of many sessions over a few connections,
// client and server in one process, with a server that answers at once: what a
// query costs beside its worker.
func BenchmarkReads(b *testing.B) {
	for _, n := range []struct{ sessions, conns int }{{1, 1}, {64, 8}, {512, 16}} {
		b.Run(fmt.Sprintf("%dx%d", n.sessions, n.conns), func(b *testing.B) {
			srv := prompt(b)
			var sessions []*Session
			for i := range n.conns {
				c := dialFake(b, func(c *ClientConfig) {
					c.Network, c.Addrs, c.Silence = nil, []string{srv.Addr().String()}, SilenceDefault
				})
				for k := range n.sessions / n.conns {
					s, err := c.Open(context.Background(), OpenOptions{ID: fmt.Sprint(i, "-", k)})
					if err != nil {
						b.Fatal(err)
					}
					sessions = append(sessions, s)
				}
			}
			sent := packets(sessions)
			b.ReportAllocs()
			b.ResetTimer()
			var wg sync.WaitGroup
			for i, s := range sessions {
				wg.Go(func() {
					for range share(b.N, len(sessions), i) {
						if _, err := s.Query(context.Background(), "get", []byte("key")); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			b.ReportMetric(float64(packets(sessions)-sent)/float64(b.N), "packets/op")
		})
	}
}

// packets is how many travelled on the sessions' connections, in both directions.
func packets(sessions []*Session) (n uint64) {
	seen := map[*pooledConn]bool{}
	for _, s := range sessions {
		s.mu.Lock()
		for _, cs := range s.streams {
			if cs.pc != nil && !seen[cs.pc] {
				seen[cs.pc] = true
				st := cs.pc.qc.ConnectionStats()
				n += st.PacketsSent + st.PacketsReceived
			}
		}
		s.mu.Unlock()
	}
	return n
}

// share is the i-th of n parts of total.
func share(total, n, i int) int { return total*(i+1)/n - total*i/n }

// prompt is a server that attaches whoever comes, and answers every query under
// a lease.
func prompt(b *testing.B) *Server {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	id := mgmtIdentity(b, "n1")
	srv, err := NewServer(ServerConfig{
		Packet: pc, TLS: mgmtUser(b, id), Identify: mgmtIdentify,
		Hello: func() *wire.HelloOK { return &wire.HelloOK{Version: wire.Version} },
		Serve: func(st *Stream, first *wire.ClientFrame) {
			_ = st.Send(&wire.ServerFrame{Kind: &wire.ServerFrame_Attached{Attached: &wire.Attached{
				Session: first.GetOpen().GetSession(), Epoch: 5, Node: &wire.NodeInfo{Id: "id", Name: "n1"},
			}}})
			for {
				f, err := st.Recv()
				if err != nil {
					return
				}
				r := f.GetRequest()
				_ = st.Send(&wire.ServerFrame{Kind: &wire.ServerFrame_Response{Response: &wire.Response{
					Seq: r.GetSeq(), Attempt: r.GetAttempt(), Epoch: 5, Settled: true, Payload: value, LeaseLeftUs: 900_000, Change: 1 << 20,
				}}})
			}
		},
	})
	if err != nil {
		b.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve() }()
	b.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_ = srv.Close(ctx)
		<-served
	})
	return srv
}

var value = make([]byte, 64)
