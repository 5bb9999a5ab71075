package worker

import (
	"slices"
	"sync"
	"testing"
)

// What is added runs once, in order, one at a time; the goroutine ends when
// there is nothing left, and comes back.
func TestLine(t *testing.T) {
	var l line
	var wg sync.WaitGroup
	spawn := func(f func()) { wg.Go(f) }
	var got []int // without a lock: the race detector tells if two run at once
	want := []int{}
	for round := range 3 {
		for i := range 100 {
			n := round*100 + i
			want = append(want, n)
			l.add(spawn, func() { got = append(got, n) })
		}
		wg.Wait()
	}
	if !slices.Equal(got, want) {
		t.Errorf("ran %v", got)
	}
	if l.running || len(l.waiting) != 0 {
		t.Errorf("running %v with %d waiting", l.running, len(l.waiting))
	}
}
