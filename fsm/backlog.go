package fsm

import (
	"io"
	"sync"
)

// entryCost is what an entry costs besides its bytes, on the disk and to whoever reads
// and applies it again, as so many more of them.
const entryCost = 256

// Backlog is how much log a restart would apply on top of the newest snapshot.
type Backlog struct {
	Entries uint64
	Bytes   uint64 // entryCost for each entry included
	// Snapshot is the size of that snapshot's file in bytes, 0 without one.
	Snapshot uint64
}

// backlog keeps the Backlog. Its zero value is that of an empty log.
type backlog struct {
	mu      sync.Mutex
	applied Backlog // since the process began, on top of what it restored
	covered Backlog // what of it the newest snapshot holds
}

func (b *backlog) add(bytes int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.applied.Entries++
	b.applied.Bytes += uint64(bytes) + entryCost
}

func (b *backlog) now() Backlog {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.applied
}

// snapshotted notes that a snapshot of size bytes, taken when applied was at, is safe.
func (b *backlog) snapshotted(at Backlog, size uint64) {
	at.Snapshot = size
	b.mu.Lock()
	defer b.mu.Unlock()
	if at.Entries >= b.covered.Entries { // else a later one was restored meanwhile
		b.covered = at
	}
}

func (b *backlog) since() Backlog {
	b.mu.Lock()
	defer b.mu.Unlock()
	return Backlog{
		Entries: b.applied.Entries - b.covered.Entries, Bytes: b.applied.Bytes - b.covered.Bytes, Snapshot: b.covered.Snapshot,
	}
}

// Backlog tells how much has been applied since the newest snapshot.
func (f *FSM) Backlog() Backlog { return f.backlog.since() }

// meter counts the bytes of a file that is written or read.
type meter struct {
	w io.Writer
	r io.Reader
	n uint64
}

func (m *meter) Write(p []byte) (int, error) {
	n, err := m.w.Write(p)
	m.n += uint64(n)
	return n, err
}

func (m *meter) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	m.n += uint64(n)
	return n, err
}
