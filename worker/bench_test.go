package worker

import (
	"fmt"
	"testing"
)

// BenchmarkStageHandler is one write through the worker with a log that answers
// at once: what the worker itself costs, one request at a time.
func BenchmarkStageHandler(b *testing.B) {
	w := newWorld(b, "a")
	c := w.open("a", "s", false)
	b.ReportAllocs()
	for b.Loop() {
		c.ackedWrite()
	}
}

// BenchmarkWritePipelined keeps 32 writes outstanding: they travel in groups.
func BenchmarkWritePipelined(b *testing.B) {
	w := newWorld(b, "a")
	c := w.open("a", "s", false)
	b.ReportAllocs()
	out := 0
	for b.Loop() {
		c.ackedSend()
		if out++; out == groupRequestsMax {
			for ; out > 0; out-- {
				c.mustAnswer()
			}
		}
	}
	for ; out > 0; out-- {
		c.mustAnswer()
	}
}

// BenchmarkQuery is one confirmed read with a log that answers at once.
func BenchmarkQuery(b *testing.B) {
	w := newWorld(b, "a")
	c := w.open("a", "s", false)
	b.ReportAllocs()
	for b.Loop() {
		c.query("get", "k")
		c.mustAnswer()
	}
}

// BenchmarkSessions writes to many sessions in turn, one outstanding each.
func BenchmarkSessions(b *testing.B) {
	w := newWorld(b, "a")
	var clients []*client
	for i := range 256 {
		clients = append(clients, w.open("a", fmt.Sprint(i), false))
	}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		if c := clients[i%len(clients)]; i < len(clients) {
			c.ackedSend()
		} else {
			c.mustAnswer()
			c.ackedSend()
		}
		i++
	}
}
