package fsm

import (
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"

	"github.com/hashicorp/raft"

	"github.com/baton-cluster/baton/store"
	"github.com/baton-cluster/baton/wire"
)

// FSM implements raft.FSM over a store. Raft calls Apply, Snapshot and Restore
// from one goroutine, and whoever starts raft may call Restore before; everything
// else may be called from anywhere.
type FSM struct {
	log *slog.Logger

	mu    sync.RWMutex // guards store (the pointer and what it points to) and ring
	store *store.Store
	ring  ring

	backlog backlog

	subMu sync.Mutex
	subs  []func(index uint64, ev []store.Event)
}

var (
	_ raft.FSM                = (*FSM)(nil)
	_ raft.ConfigurationStore = (*FSM)(nil)
)

// New makes an FSM over an empty store. A nil log discards.
func New(log *slog.Logger) *FSM {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &FSM{log: log, store: store.New()}
}

// Apply applies one log entry and returns its []*wire.Result, one a command.
//
// It panics on an entry that it cannot read or that does not follow the last:
// to skip it would fork this replica from the others, so the node stops (S5).
func (f *FSM) Apply(l *raft.Log) any {
	if l.Type != raft.LogCommand {
		return []*wire.Result(nil)
	}
	e, err := DecodeEntry(l.Data)
	if err != nil {
		panic(fmt.Sprintf("baton: cannot read log entry %d (term %d): %v. This node stops, because skipping an entry "+
			"would make it differ from the others. If a newer version wrote it, upgrade this node; if its disk is "+
			"damaged, remove its data directory and let it join again under a new id.", l.Index, l.Term, err))
	}
	results, events := f.apply(l.Index, e)
	f.backlog.add(len(l.Data))
	f.notify(l.Index, events)
	return results
}

func (f *FSM) apply(index uint64, e *wire.Entry) ([]*wire.Result, []store.Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if last := f.store.Index(); index <= last {
		panic(fmt.Sprintf("baton: log entry %d comes after entry %d was applied. This node stops, because applying an "+
			"entry twice would make it differ from the others. Its log and its snapshots do not belong together: remove "+
			"its data directory and let it join again under a new id.", index, last))
	}
	results, events := f.store.Apply(index, e)
	f.ring.add(point{index, f.store.Hash()})
	return results, events
}

// StoreConfiguration implements raft.ConfigurationStore: a committed change of
// the servers is applied in its place of the log, so that the commands after it
// are judged by it. (Raft does not call it for what a snapshot covers: the
// snapshot's own row tells that.)
func (f *FSM) StoreConfiguration(index uint64, c raft.Configuration) {
	f.mu.Lock()
	var events []store.Event
	if index > f.store.Index() {
		events = f.store.SetVoters(index, VotersOf(c))
		f.ring.add(point{index, f.store.Hash()})
	}
	f.mu.Unlock()
	f.notify(index, events)
}

// VotersOf returns the ids of those that vote in c.
func VotersOf(c raft.Configuration) []string {
	var ids []string
	for _, s := range c.Servers {
		if s.Suffrage == raft.Voter {
			ids = append(ids, string(s.ID))
		}
	}
	return ids
}

// notify tells the subscribers, in the order of subscribing, on this goroutine
// and outside the lock.
func (f *FSM) notify(index uint64, events []store.Event) {
	f.subMu.Lock()
	subs := slices.Clip(f.subs)
	f.subMu.Unlock()
	for _, fn := range subs {
		fn(index, events)
	}
}

// Subscribe has fn called after each entry, on the FSM goroutine and outside
// the lock, so it sees the entry applied and may call View. ev is empty for most
// entries. fn must not block: it holds up everything that is applied.
func (f *FSM) Subscribe(fn func(index uint64, ev []store.Event)) {
	f.subMu.Lock()
	defer f.subMu.Unlock()
	f.subs = append(f.subs, fn)
}

// View runs fn under the read lock. fn must be quick, only read, and not keep
// the store. What the store's reads return may be kept.
func (f *FSM) View(fn func(*store.Store)) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	fn(f.store)
}

// HashAt returns the state hash after the last entry at or before index, and
// that entry's index; 0 means the newest. Replicas are equal if they return the
// same pair. Not ok: index is ahead of what was applied here, or so far back
// that its hash is forgotten; ask for another.
func (f *FSM) HashAt(index uint64) (hash uint64, at uint64, ok bool) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if index == 0 {
		return f.store.Hash(), f.store.Index(), true
	}
	p, ok := f.ring.find(index)
	return p.hash, p.index, ok
}

// Snapshot takes a snapshot in O(1). Raft streams it from another goroutine.
func (f *FSM) Snapshot() (raft.FSMSnapshot, error) {
	f.mu.Lock() // copying marks the trees as shared
	defer f.mu.Unlock()
	return &snapshot{f: f, snap: f.store.Snapshot(), at: f.backlog.now()}, nil
}

// Backup writes a snapshot file of the state as it is now to w, while the FSM
// moves on.
func (f *FSM) Backup(w io.Writer) error {
	f.mu.Lock() // copying marks the trees as shared
	s := f.store.Snapshot()
	f.mu.Unlock()
	return WriteSnapshot(w, s)
}

// Restore replaces everything by a snapshot, once all of it has been verified;
// on error nothing has changed.
func (f *FSM) Restore(rc io.ReadCloser) error {
	file := meter{r: rc}
	s, err := ReadSnapshot(&file)
	if closeErr := rc.Close(); err == nil && closeErr != nil {
		err = closeErr
	}
	if err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	f.mu.Lock()
	f.store = s
	f.ring.reset()
	f.ring.add(point{s.Index(), s.Hash()})
	f.mu.Unlock()
	f.backlog.snapshotted(f.backlog.now(), file.n)
	f.log.Info("restored a snapshot", "index", s.Index())
	f.notify(s.Index(), []store.Event{{Kind: store.EventRestored}})
	return nil
}

// snapshot implements raft.FSMSnapshot.
type snapshot struct {
	f    *FSM
	snap *store.Snapshot
	at   Backlog // what had been applied
}

// Persist writes the file to raft's sink.
func (p *snapshot) Persist(sink raft.SnapshotSink) error {
	file := meter{w: sink}
	if err := WriteSnapshot(&file, p.snap); err != nil {
		p.f.log.Error("writing a snapshot failed", "index", p.snap.Index(), "err", err)
		if cancelErr := sink.Cancel(); cancelErr != nil {
			p.f.log.Error("discarding an unfinished snapshot failed", "err", cancelErr)
		}
		return err
	}
	err := sink.Close()
	if err == nil {
		p.f.backlog.snapshotted(p.at, file.n)
	}
	return err
}

// Release has nothing to release: the copy is garbage once nobody points to it.
func (p *snapshot) Release() {}
