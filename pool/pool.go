// Package pool keeps goroutines. A new one begins with a small stack and copies it
// as it grows, which for the short work of a request costs more than starting it:
// a twentieth of what a node spends on a write. One that has done such work before
// has the stack already.
package pool

import "sync"

// idleMax is how many goroutines a Pool keeps that have nothing to do: about as many as
// do something at one time, since most of what they do is short. Their stacks are a
// few kilobytes each.
const idleMax = 8

// Pool runs functions, each on a goroutine of its own: nothing waits for a place.
// Unlike a sync.WaitGroup it may be given work while somebody waits for it, and
// after: the connections of a node that closes may still bring requests, or answers,
// when the last goroutine has ended. What comes then is not run. The zero value is
// ready.
type Pool struct {
	mu      sync.Mutex
	running int
	over    bool
	idle    []chan func() // the last is the one that ran last
	none    sync.Cond     // running is 0
}

// Go runs f, unless the pool has been waited for; it reports which.
func (p *Pool) Go(f func()) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.over {
		return false
	}
	p.running++
	if n := len(p.idle); n > 0 {
		p.idle[n-1] <- f // never blocks: it has room for one
		p.idle = p.idle[:n-1]
		return true
	}
	go p.work(f)
	return true
}

// work runs f, and what it is given afterwards.
func (p *Pool) work(f func()) {
	next := make(chan func(), 1)
	returned := true
	defer func() {
		if !returned { // f has ended the goroutine
			p.ended(nil)
		}
	}()
	for f != nil {
		returned = false
		f()
		returned = true
		if !p.ended(next) {
			return
		}
		f = <-next
	}
}

// ended notes that a function has returned. It reports whether the goroutine is to
// wait for another one on next.
func (p *Pool) ended(next chan func()) (wait bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.running--; p.running == 0 && p.none.L != nil {
		p.none.Broadcast()
	}
	if next == nil || p.over || len(p.idle) == idleMax {
		return false
	}
	p.idle = append(p.idle, next)
	return true
}

// Wait returns when nothing runs, and from then on nothing does.
func (p *Pool) Wait() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.none.L == nil {
		p.none.L = &p.mu
	}
	for p.running > 0 {
		p.none.Wait()
	}
	p.over = true
	for _, next := range p.idle {
		close(next)
	}
	p.idle = nil
}
