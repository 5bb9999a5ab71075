package pool

import (
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// TestEndsWhileOthersCome: whoever waits leaves behind nothing that runs,
// whatever is still brought meanwhile; jobs that are waited for may bring more.
func TestEndsWhileOthersCome(t *testing.T) {
	for range 200 {
		j := new(Pool)
		var running, ran atomic.Int64
		job := func() {
			running.Add(1)
			ran.Add(1)
			running.Add(-1)
		}
		chained := make(chan struct{})
		j.Go(func() {
			j.Go(func() { close(chained) })
		})
		var others sync.WaitGroup
		for range 4 {
			others.Go(func() {
				for range 50 {
					j.Go(job)
				}
			})
		}
		j.Wait()
		<-chained
		after := ran.Load()
		if n := running.Load(); n != 0 {
			t.Fatalf("%d jobs run after the wait", n)
		}
		others.Wait()
		if n := ran.Load(); n != after {
			t.Fatalf("%d jobs ran after the wait", n-after)
		}
		j.Wait() // again
	}
}

// TestKeepsGoroutines: what comes when something has ended runs on its goroutine,
// and what comes meanwhile on others, however many that takes.
func TestKeepsGoroutines(t *testing.T) {
	p := new(Pool)
	defer p.Wait()
	for _, n := range []int{1, 2, 3 * idleMax} {
		var met, done sync.WaitGroup
		met.Add(n)
		done.Add(n)
		for range n {
			p.Go(func() {
				defer done.Done()
				met.Done()
				met.Wait() // with all the others
			})
		}
		done.Wait()
	}
	p.mu.Lock()
	for p.running > 0 {
		p.mu.Unlock()
		runtime.Gosched()
		p.mu.Lock()
	}
	idle := len(p.idle)
	p.mu.Unlock()
	if idle != idleMax {
		t.Fatalf("%d are kept, want %d", idle, idleMax)
	}
	ids := make(chan string)
	one := func() string {
		p.Go(func() {
			b := make([]byte, 64)
			id, _, _ := strings.Cut(string(b[:runtime.Stack(b, false)]), " [")
			ids <- id
		})
		return <-ids
	}
	seen := map[string]bool{}
	for range 10 * idleMax {
		seen[one()] = true
	}
	if len(seen) > idleMax {
		t.Fatalf("%d calls, one after the other, took %d goroutines", 10*idleMax, len(seen))
	}
}

// TestEndOfAGoroutine: a function that ends its goroutine ends as any other.
func TestEndOfAGoroutine(t *testing.T) {
	p := new(Pool)
	for range 3 {
		p.Go(runtime.Goexit)
	}
	p.Wait()
	if p.Go(func() {}) {
		t.Fatal("it runs on")
	}
}

// BenchmarkGo: functions that need some stack, on kept goroutines and on new ones.
func BenchmarkGo(b *testing.B) {
	var done sync.WaitGroup
	f := func() {
		deep(8 << 10)
		done.Done()
	}
	run := func(b *testing.B, start func(func())) {
		b.ReportAllocs()
		for b.Loop() {
			done.Add(1)
			start(f)
			done.Wait()
		}
	}
	p := new(Pool)
	defer p.Wait()
	b.Run("kept", func(b *testing.B) { run(b, func(f func()) { p.Go(f) }) })
	b.Run("new", func(b *testing.B) { run(b, func(f func()) { go f() }) })
}

// deep uses as many bytes of stack.
//
//go:noinline
func deep(left int) int {
	var frame [256]byte
	if left <= 0 {
		return 0
	}
	frame[left%len(frame)] = 1
	return deep(left-len(frame)) + int(frame[0])
}
