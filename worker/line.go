package worker

import "sync"

// line runs what is given to it one after the other, on one goroutine that
// lives while there is something to run. The answers of one log entry go
// through it: told one by one, the replies that share a connection leave in few
// packets, where a goroutine each sent a packet each. Nothing in it may block,
// or run a handler.
type line struct {
	mu      sync.Mutex
	waiting []func()
	running bool
}

// add queues f and starts the goroutine, by spawn, if it is not running.
func (l *line) add(spawn func(func()), f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiting = append(l.waiting, f)
	if !l.running {
		l.running = true
		spawn(l.run)
	}
}

func (l *line) run() {
	var batch []func()
	for {
		l.mu.Lock()
		clear(batch)
		batch, l.waiting = l.waiting, batch[:0]
		l.running = len(batch) > 0
		l.mu.Unlock()
		if len(batch) == 0 {
			return
		}
		for _, f := range batch {
			f()
		}
	}
}
