package main

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// All clients together call at the rate, whoever is late catches up, and what was
// due counts from then.
func TestPacerKeepsTheRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const target, clients = 100, 4
		begun := time.Now()
		end := begun.Add(2 * time.Second)
		calls := map[time.Duration]int{}
		for i := range clients {
			p := newPacer(begun, target, clients, i)
			for k := 0; ; k++ {
				due, ok := p.next(t.Context(), end)
				if !ok {
					break
				}
				if at := due.Sub(begun); at != time.Duration(i+k*clients)*time.Second/target {
					t.Fatalf("call %d of client %d was due after %v", k, i, at)
				}
				calls[due.Sub(begun)]++
				if i == 0 && k == 3 {
					time.Sleep(time.Second) // an answer that takes long: 25 calls late
				}
			}
			end = end.Add(time.Since(begun)) // the clients run one after the other here
			begun = time.Now()
		}
		if len(calls) != 2*target {
			t.Errorf("%d calls in 2 s at %d/s", len(calls), target)
		}
	})
}

func TestPacerWithoutRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPacer(time.Now(), 0, 1, 0)
		if due, ok := p.next(t.Context(), time.Now().Add(1)); !ok || !due.Equal(time.Now()) {
			t.Error("it waits for something")
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		paced := newPacer(time.Now(), 1, 9, 5)
		for _, p := range []*pacer{&p, &paced} {
			if _, ok := p.next(ctx, time.Now().Add(time.Hour)); ok {
				t.Error("it goes on after the context's end")
			}
		}
	})
}
