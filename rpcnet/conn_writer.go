package rpcnet

import (
	"runtime"
	"sync"
)

// connWriter gathers what the streams of one connection send, so that it travels
// in few packets. QUIC sends a packet as soon as a stream has something for it;
// where many streams answer at once, that is a packet each, and packets are most
// of what a call costs. So frames wait for as long as other goroutines that are
// ready to run, and may have frames for the connection too, have had their turn.
type connWriter struct {
	workers *sync.WaitGroup // counts the goroutine that writes

	mu      sync.Mutex
	waiting []*sendQueue // each once, with frames gathered
	running bool
}

// add has q flushed soon. q.mu is held.
func (w *connWriter) add(q *sendQueue) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.waiting = append(w.waiting, q)
	if !w.running {
		w.running = true
		w.workers.Go(w.run)
	}
}

// run flushes until there is nothing to be flushed.
func (w *connWriter) run() {
	var batch []*sendQueue
	for {
		runtime.Gosched()
		w.mu.Lock()
		clear(batch)
		batch, w.waiting = w.waiting, batch[:0]
		w.running = len(batch) > 0
		w.mu.Unlock()
		if len(batch) == 0 {
			return
		}
		for _, q := range batch {
			q.flush()
		}
	}
}
