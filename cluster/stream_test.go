package cluster

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/hashicorp/raft"

	"github.com/baton-cluster/baton/wire"
)

// rawRaft makes a TLS connection to a node's raft port, without a preamble.
func rawRaft(t *testing.T, n *testNode) net.Conn {
	t.Helper()
	c, err := dialRaft(testIdentity(t))(testCtx(t), n.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// TestForeignersOnTheRaftPort: nodes with a certificate of ours, but not of our
// cluster, and garbage, get no word to raft.
func TestForeignersOnTheRaftPort(t *testing.T) {
	nodes := newCluster(t, 1, nil)
	n := nodes[0]
	other := bytes.Repeat([]byte{7}, wire.IDBytes)
	for name, c := range map[string]struct {
		hello *wire.PeerHello
		want  wire.Code
	}{
		"another cluster":   {&wire.PeerHello{Version: wire.Version, Node: "00000000000000aa", ClusterId: other}, wire.Code_WRONG_CLUSTER},
		"no cluster yet":    {&wire.PeerHello{Version: wire.Version, Node: "00000000000000aa"}, wire.Code_WRONG_CLUSTER},
		"another version":   {&wire.PeerHello{Version: wire.Version + 1, Node: "00000000000000aa", ClusterId: n.c.ClusterID()}, wire.Code_WRONG_VERSION},
		"no name":           {&wire.PeerHello{Version: wire.Version, ClusterId: n.c.ClusterID()}, wire.Code_BAD_REQUEST},
		"a copy of itself":  {&wire.PeerHello{Version: wire.Version, Node: n.id.ID, ClusterId: n.c.ClusterID()}, wire.Code_BAD_REQUEST},
		"one of ours":       {&wire.PeerHello{Version: wire.Version, Node: "00000000000000aa", ClusterId: n.c.ClusterID()}, wire.Code_OK},
		"a server, unnamed": {&wire.PeerHello{Version: wire.Version, Node: "", ClusterId: nil}, wire.Code_BAD_REQUEST},
	} {
		conn := rawRaft(t, n)
		if err := writePreamble(conn, c.hello); err != nil {
			t.Fatal(err)
		}
		got, err := readPreamble(conn)
		if err != nil || got.GetRefused() != c.want || got.GetNode() != n.id.ID {
			t.Errorf("%s: %v %v, want %v", name, got, err, c.want)
		}
		if c.want == wire.Code_OK {
			_ = conn.Close()
			continue
		}
		if _, err := conn.Read(make([]byte, 1)); err == nil {
			t.Errorf("%s: the connection goes on", name)
		}
	}
	for name, bytes := range map[string][]byte{
		"a huge length": {0xff, 0xff, 0xff, 0xff},
		"garbage":       {0, 0, 0, 4, 0xff, 0xff, 0xff, 0xff},
	} {
		conn := rawRaft(t, n)
		if _, err := conn.Write(bytes); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Read(make([]byte, 1)); err == nil {
			t.Errorf("%s was answered", name)
		}
	}
}

// TestDialRefusesAnotherNode: raft must not take a replaced node for the one
// whose votes it remembers, nor a node of another cluster for ours.
func TestDialRefusesAnotherNode(t *testing.T) {
	nodes := newCluster(t, 1, nil)
	n := nodes[0]
	for name, c := range map[string]struct {
		know acquaintance
		want wire.Code
	}{
		"replaced":        {acquaintance{self: "me", clusterID: n.c.ClusterID(), servers: map[string]string{"old": n.addr}}, wire.Code_UNAVAILABLE},
		"another cluster": {acquaintance{self: "me", clusterID: bytes.Repeat([]byte{7}, wire.IDBytes)}, wire.Code_WRONG_CLUSTER},
		"the one":         {acquaintance{self: "me", clusterID: n.c.ClusterID(), servers: map[string]string{n.id.ID: n.addr}}, wire.Code_OK},
	} {
		s := newStreamLayer("me:1", testTime, dialRaft(testIdentity(t)), func() acquaintance { return c.know }, func(error) {})
		conn, err := s.Dial(raft.ServerAddress(n.addr), testTime)
		if wire.CodeOf(err) != c.want {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
		if conn != nil {
			_ = conn.Close()
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if _, err := s.Dial(raft.ServerAddress(n.addr), testTime); err == nil {
			t.Errorf("%s: dialled after Close", name)
		}
	}
}

func TestAcquaintance(t *testing.T) {
	id, other := []byte("0123456789abcdef"), []byte("fedcba9876543210")
	known := map[string]string{"b": "h:2"}
	for _, c := range []struct {
		name   string
		a      acquaintance
		node   string
		id     []byte
		expect string
		want   wire.Code
	}{
		{"same cluster", acquaintance{self: "a", clusterID: id}, "b", id, "", wire.Code_OK},
		{"other cluster", acquaintance{self: "a", clusterID: id, servers: known}, "b", other, "", wire.Code_WRONG_CLUSTER},
		{"a server that has not heard its cluster's id", acquaintance{self: "a", clusterID: id, servers: known}, "b", nil, "", wire.Code_OK},
		{"a stranger without an id", acquaintance{self: "a", clusterID: id, servers: known}, "c", nil, "", wire.Code_WRONG_CLUSTER},
		{"the one we pledged to", acquaintance{self: "a", pledged: []string{"a", "b"}}, "b", id, "", wire.Code_OK},
		{"an empty node trusts nobody", acquaintance{self: "a"}, "b", id, "", wire.Code_WRONG_CLUSTER},
		{"not whom we meant", acquaintance{self: "a", clusterID: id}, "c", id, "b", wire.Code_UNAVAILABLE},
	} {
		err := c.a.judge(&wire.PeerHello{Version: wire.Version, Node: c.node, ClusterId: c.id}, c.expect)
		got := wire.Code_OK
		if err != nil {
			got = err.Code
		}
		if got != c.want {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
}

// pipeConn reads from a buffer and swallows what is written.
type pipeConn struct {
	net.Conn
	r         io.Reader
	deadlines []time.Time
}

func (c *pipeConn) Read(p []byte) (int, error)  { return c.r.Read(p) }
func (c *pipeConn) Write(p []byte) (int, error) { return len(p), nil }
func (c *pipeConn) SetReadDeadline(t time.Time) error {
	c.deadlines = append(c.deadlines, t)
	return nil
}
func (c *pipeConn) SetWriteDeadline(time.Time) error { return nil }

// endless yields one byte over and over.
type endless byte

func (e endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(e)
	}
	return len(p), nil
}

func TestRaftRequestsAreBounded(t *testing.T) {
	buf := make([]byte, 1<<20)
	read := func(first byte) error {
		c := &raftConn{Conn: &pipeConn{r: endless(first)}, inbound: true, timeout: testTime}
		for range 2*raftRequestBytesMax/len(buf) + 2 {
			if _, err := c.Read(buf); err != nil {
				return err
			}
		}
		return nil
	}
	if err := read(0); wire.CodeOf(err) != wire.Code_FRAME_TOO_LARGE {
		t.Errorf("an endless AppendEntries: %v", err)
	}
	if err := read(rpcInstallSnapshot); err != nil {
		t.Errorf("a long snapshot: %v", err)
	}
	under := &pipeConn{r: endless(0)}
	c := &raftConn{Conn: under, inbound: true, timeout: testTime}
	for range 2 {
		_, _ = c.Read(buf) // begins a request: may be awaited for ever
		_, _ = c.Read(buf) // goes on with it: must come soon
		_, _ = c.Write([]byte("answer"))
	}
	for i, d := range under.deadlines {
		if d.IsZero() != (i%2 == 0) {
			t.Errorf("read %d has deadline %v", i, d)
		}
	}
}

func FuzzReadPreamble(f *testing.F) {
	var good bytes.Buffer
	_ = writePreamble(&good, &wire.PeerHello{Version: 1, ClusterId: make([]byte, 16), Node: "0123456789abcdef", Message: "m"})
	f.Add(good.Bytes())
	f.Add([]byte{0, 0, 0, 0})
	f.Add(binary.BigEndian.AppendUint32(nil, 1<<31))
	f.Fuzz(func(t *testing.T, data []byte) {
		r := bytes.NewReader(data)
		h, err := readPreamble(r)
		if err != nil {
			return
		}
		if read := len(data) - r.Len(); read > 4+preambleBytesMax || read != 4+int(binary.BigEndian.Uint32(data)) {
			t.Errorf("%d bytes were read", read)
		}
		var again bytes.Buffer
		if err := writePreamble(&again, h); err != nil {
			return // unknown fields may make it longer than it came
		}
		if h2, err := readPreamble(&again); err != nil || !proto.Equal(h, h2) {
			t.Errorf("%v, then %v %v", h, h2, err)
		}
	})
}

func FuzzBoltMeta(f *testing.F) {
	f.Add(make([]byte, boltMetaBytes))
	f.Fuzz(func(t *testing.T, data []byte) {
		var raw [boltMetaBytes]byte
		copy(raw[:], data)
		if m, ok := parseBoltMeta(raw); ok && (m.pages <= 0 || m.pageSize < boltPageSizeMin) {
			t.Errorf("%+v", m)
		}
	})
}

func TestHistograms(t *testing.T) {
	var h histogram
	for _, v := range []uint64{0, 1, 2, 3, 4, 255} {
		h.add(v)
	}
	want := []Bucket{{0, 1}, {1, 1}, {3, 2}, {7, 1}, {15, 0}, {31, 0}, {63, 0}, {127, 0}, {255, 1}}
	got := h.buckets()
	if len(got) != len(want) {
		t.Fatalf("%v", got)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("bucket %d: %v, want %v", i, got[i], want[i])
		}
	}
	var l latencies
	if l.quantile(0.99) != 0 {
		t.Error("a quantile of nothing")
	}
	for us := uint64(0); us < 1<<20; us += 37 {
		if b := latencyBucket(us); latencyMax(b) < us || float64(latencyMax(b)) > 1.13*float64(us)+1 || (b > 0 && latencyMax(b-1) >= us) {
			t.Fatalf("%d µs is in bucket %d, up to %d", us, b, latencyMax(b))
		}
	}
	for range 99 {
		l.add(time.Millisecond)
	}
	l.add(time.Hour * 1000)
	if q := l.quantile(0.99); q < time.Millisecond || q > 1200*time.Microsecond {
		t.Errorf("p99 %v", q)
	}
}
