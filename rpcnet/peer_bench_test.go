package rpcnet

import (
	"fmt"
	"testing"
)

// BenchmarkPeerCall measures calls over real TLS on loopback: alone (latency)
// and many at once (what one writer per connection gathers).
func BenchmarkPeerCall(b *testing.B) {
	p := newPeerPair(b, nil)
	body := make([]byte, 256)
	for _, callers := range []int{1, 64} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			b.SetParallelism(callers)
			if callers == 1 {
				for b.Loop() {
					if _, err := p.client.Call(b.Context(), p.addr, "echo", body); err != nil {
						b.Fatal(err)
					}
				}
				return
			}
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if _, err := p.client.Call(b.Context(), p.addr, "echo", body); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}
