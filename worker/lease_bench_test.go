package worker

import (
	"testing"
	"time"

	"github.com/baton-cluster/baton/wire"
)

// BenchmarkLeaseRead is one query answered under a lease, from its decoded frame
// to the frame to be sent: what the worker itself costs, on the caller's
// goroutine.
func BenchmarkLeaseRead(b *testing.B) {
	w := newWorld(b, "a")
	w.leases.grant("a", time.Second)
	c := w.open("a", "s", false)
	c.ok(c.write("put", "k=v"), "k")
	s := w.workers["a"].lookup("s")
	att := s.queues[string(c.instance)].att
	att.link = nowhere{att.link}
	f := &wire.ClientFrame{Kind: &wire.ClientFrame_Request{Request: &wire.Request{
		Seq: 2, Prev: 1, Attempt: 1, ReadOnly: true, Method: "get", Payload: []byte("k"),
	}}}
	b.ReportAllocs()
	for b.Loop() {
		s.frame(att, f)
	}
}

// nowhere is a link that takes frames as Stream does, and keeps none.
type nowhere struct{ Link }

func (nowhere) Send(*wire.ServerFrame) error { return nil }
