package cluster

import (
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/baton-cluster/baton/seam"
	"github.com/baton-cluster/baton/wire"
)

// guard watches every write to the disk. Raft's heartbeats run apart from its
// log, so a leader whose disk hangs stays leader and stops the whole cluster;
// here it fails the node instead. A failed write does so too, because nobody
// knows what it left behind.
type guard struct {
	clock seam.Clock
	limit time.Duration
	fail  func(error)
	fsync latencies
	took  atomic.Int64 // ns, all calls to the disk that have ended
	// mute is told that a write has lasted for muteAfter, and that it has ended: what
	// this node says meanwhile would keep the others from electing.
	mute      func(bool)
	muteAfter time.Duration
	writes    writes
	// broken: a write failed. The next could succeed and still not be on the disk,
	// as a system forgets what it could not sync.
	broken atomic.Bool
}

// write runs one write, with its sync.
func (g *guard) write(what string, fn func() error) error {
	start := g.clock.Now()
	err := g.watch(what, fn)
	if err == nil {
		g.fsync.add(g.clock.Now() - start)
	}
	return err
}

// watch runs one call to the disk. An overrun is reported while it still hangs.
func (g *guard) watch(what string, fn func() error) (err error) {
	if g.broken.Load() {
		return wire.Errorf(wire.Code_INTERNAL, "the disk has failed a write before: this node stops")
	}
	start := g.clock.Now()
	defer g.writes.end(g.writes.begin(start))
	if g.mute != nil {
		defer g.muting()()
	}
	overrun := awake(g.clock, g.limit, func() {
		g.fail(wire.Errorf(wire.Code_INTERNAL, "the disk has not finished a write (%s) within %s: this node stops, so that the others can go on; check the disk", what, g.limit))
	})
	defer func() {
		overrun.stop()
		if p := recover(); p != nil {
			err = fmt.Errorf("panic in %s: %v\n%s", what, p, debug.Stack())
		}
		if err != nil {
			g.broken.Store(true)
			g.fail(wire.Errorf(wire.Code_INTERNAL, "the disk failed a write (%s): %v; this node stops: check the disk, and that it is not full", what, err))
		}
	}()
	err = fn()
	g.took.Add(int64(g.clock.Now() - start))
	return err
}

// time is how long all writes since the start have taken, with one that is under way.
func (g *guard) time() time.Duration {
	return time.Duration(g.took.Load()) + g.writes.longest(g.clock.Now())
}

// timed counts a call to the disk that no write of the log waits for.
func (g *guard) timed(fn func() error) error {
	start := g.clock.Now()
	defer func() { g.took.Add(int64(g.clock.Now() - start)) }()
	return fn()
}

// read runs one read of the log. An entry that is not there is no failure, one
// that cannot be read is: raft would only try again, for ever.
func (g *guard) read(fn func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic in read: %v\n%s", p, debug.Stack())
		}
		if err != nil && !errors.Is(err, raft.ErrLogNotFound) {
			g.fail(wire.Errorf(wire.Code_INTERNAL, "the raft log cannot be read: %v; this node stops: check the disk; if the log is damaged, remove this node's data directory: it then joins as a new node", err))
		}
	}()
	return fn()
}

// muting arms the guard's mute for one write; the returned function disarms it.
func (g *guard) muting() func() {
	timer := awake(g.clock, g.muteAfter, func() { g.mute(true) })
	return func() {
		if timer.stop() {
			g.mute(false)
		}
	}
}

// writes are those under way.
type writes struct {
	mu   sync.Mutex
	open map[uint64]time.Duration // by number: when it began
	last uint64
}

func (w *writes) begin(now time.Duration) (number uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.open == nil {
		w.open = map[uint64]time.Duration{}
	}
	w.last++
	w.open[w.last] = now
	return w.last
}

func (w *writes) end(number uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.open, number)
}

// longest is how long the oldest write under way has lasted, 0 if there is none.
func (w *writes) longest(now time.Duration) (d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, since := range w.open {
		d = max(d, now-since)
	}
	return d
}

// guardedLog is raft's log store: it guards writes, keeps the newest entries in
// memory, and trims in chunks.
type guardedLog struct {
	store raft.LogStore
	guard *guard
	cache *logCache
	// voters follows the configurations that the log holds.
	voters loggedVoters
	// former is the last index of what the log held when this process started, as
	// far as it is still there.
	former atomic.Uint64
	bytes  atomic.Uint64 // appended since the start
	// parallel reports whether what is stored now may be sent before it is synced: this
	// server leads, and takes another to commit. nil: it may not.
	parallel func() bool
	pending  atomic.Pointer[pendingSync]
	syncs    sync.WaitGroup
}

var _ raft.MonotonicLogStore = (*guardedLog)(nil)

func (l *guardedLog) noteFormer() error {
	last, err := l.store.LastIndex()
	l.former.Store(last)
	return err
}

func (l *guardedLog) FirstIndex() (uint64, error) { return l.store.FirstIndex() }
func (l *guardedLog) LastIndex() (uint64, error)  { return l.store.LastIndex() }

func (l *guardedLog) GetLog(index uint64, out *raft.Log) error {
	if l.cache.get(index, out) {
		return nil
	}
	if err := l.guard.read(func() error { return l.store.GetLog(index, out) }); err != nil {
		return err
	}
	l.voters.note(out) // raft reads all of its log when it starts
	return nil
}

// IsMonotonic tells raft whether the store takes no gap: then raft empties it
// when a snapshot is installed.
func (l *guardedLog) IsMonotonic() bool {
	m, ok := l.store.(raft.MonotonicLogStore)
	return ok && m.IsMonotonic()
}

func (l *guardedLog) StoreLog(log *raft.Log) error { return l.StoreLogs([]*raft.Log{log}) }

func (l *guardedLog) StoreLogs(logs []*raft.Log) error {
	for _, e := range logs {
		l.voters.note(e) // before it is there: raft acts on it at once
	}
	if err := l.append(logs); err != nil {
		return err
	}
	l.cache.put(logs)
	for _, e := range logs {
		l.bytes.Add(uint64(len(e.Data)))
	}
	return nil
}

// DeleteRange trims old entries from the front in chunks, oldest first, so that
// a crash between two leaves a shorter log. A conflicting tail goes in one
// transaction: a crash between chunks would leave a hole. So does all that a
// monotonic store is told to: it drops files, and none waits for that.
func (l *guardedLog) DeleteRange(lo, hi uint64) error {
	l.cache.drop(lo, hi)
	first, err := l.store.FirstIndex()
	if err != nil {
		return err
	}
	last, err := l.store.LastIndex()
	if err != nil {
		return err
	}
	if lo > first || l.IsMonotonic() {
		err := l.guard.write("truncate", func() error { return l.store.DeleteRange(lo, hi) })
		if err == nil {
			l.voters.drop(lo, hi) // rolled back, once it is gone
			if hi >= last {       // else what follows is there still
				l.former.Store(min(l.former.Load(), lo-1))
			}
		}
		return err
	}
	for lo <= hi {
		end := min(hi, lo+trimChunk-1)
		if err := l.guard.write("trim", func() error { return l.store.DeleteRange(lo, end) }); err != nil {
			return err
		}
		l.voters.drop(lo, end)
		lo = end + 1
	}
	return nil
}

// guardedStable is raft's stable store: the term and the vote.
type guardedStable struct {
	raft.StableStore
	guard *guard
	log   *guardedLog
	ended <-chan struct{} // closed once this node's part has ended
}

// termKey is raft's own name for where it keeps its term.
const termKey = "CurrentTerm"

func (s *guardedStable) Set(key, val []byte) error {
	if err := s.log.settle(nil); err != nil {
		return err
	}
	return s.guard.write("vote", func() error { return s.StableStore.Set(key, val) })
}

// SetUint64 does not come back from a term that could not be written before the
// node has ended: raft panics over it, and the node is stopping already, with a
// reason that can be read.
func (s *guardedStable) SetUint64(key []byte, val uint64) error {
	err := s.log.settle(nil)
	if err == nil {
		err = s.guard.write("term", func() error { return s.StableStore.SetUint64(key, val) })
	}
	if err != nil && string(key) == termKey {
		<-s.ended
		return nil
	}
	return err
}

// logCache holds the newest entries, bounded by count and by bytes: followers
// are fed from it, not from the disk.
type logCache struct {
	mu    sync.RWMutex
	ring  [logCacheEntries]*raft.Log
	low   uint64 // every index below was evicted or never cached
	high  uint64
	bytes int
}

func (c *logCache) get(index uint64, out *raft.Log) bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	e := c.ring[index%logCacheEntries]
	if e == nil || e.Index != index {
		return false
	}
	*out = *e
	return true
}

func (c *logCache) put(logs []*raft.Log) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range logs {
		if len(e.Data) > logCacheBytes {
			continue
		}
		c.evict(c.ring[e.Index%logCacheEntries])
		kept := *e // e is part of raft's future, which holds the entry's results
		c.ring[e.Index%logCacheEntries] = &kept
		c.bytes += len(e.Data)
		c.high = e.Index
		if c.low == 0 || c.low > e.Index || e.Index-c.low >= logCacheEntries {
			c.low = e.Index - min(e.Index-1, logCacheEntries-1)
		}
		for c.bytes > logCacheBytes && c.low < c.high {
			c.evict(c.ring[c.low%logCacheEntries])
			c.low++
		}
	}
}

// evict drops one entry; nil is nothing to drop.
func (c *logCache) evict(e *raft.Log) {
	if e == nil {
		return
	}
	c.bytes -= len(e.Data)
	c.ring[e.Index%logCacheEntries] = nil
}

func (c *logCache) drop(lo, hi uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.ring {
		if e != nil && e.Index >= lo && e.Index <= hi {
			c.evict(e)
		}
	}
}
