package sim

import (
	"bytes"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"github.com/hashicorp/raft-wal/types"

	"github.com/baton-cluster/baton/cluster"
)

const (
	// sectorBytes is what a disk writes whole or not at all.
	sectorBytes = 512
	// platterSegment is small, so that segments follow each other.
	platterSegment = 32 << 10
	// syncTime is how long a sync takes at most, while a disk is well.
	syncTime = 2 * time.Millisecond
	// unluckyOf: of so many changes of the list of segments, one is met by a crash;
	// unluckySyncOf: and one of so many syncs by a power cut.
	unluckyOf     = 40
	unluckySyncOf = 8000
)

// platter is a disk with what crashes do to one: what was written and not synced
// is lost, in part or whole, when the power goes; a sync that failed has forgotten
// what it was to write, and the next one is good; bits flip. The product's own log
// runs on it, segments and all.
type platter struct {
	mu     sync.Mutex
	rng    *rand.Rand
	files  map[string]*file
	meta   types.PersistentState
	stable map[string][]byte
	snaps  []*snapshot // the newest last

	session int           // rises with each start of a process: an earlier one does nothing more
	fail    error         // what writes come to
	stall   chan struct{} // closed: writes go on
	part    part          // of the disk, that fail and stall are about
	syncs   bool          // of what fails, only syncs do: writes are taken, and forgotten
	flipped []flip
	wrong   string // what the present start has overlooked
	ill     bool   // it has failed or hung since the present start
	rotten  bool   // as the present start found it
	doomed  int    // the next sync of so many bytes is met by a power cut; 0: none
	// The next change of the list of segments is met by a crash.
	doomedList bool
	lucky      bool              // no crash comes by itself
	told       func(kind string) // counts what befell it
	die        func()            // ends the machine's process at once
}

// part is what a disk's trouble is confined to.
type part int

const (
	partAll  part = iota
	partLog       // the log
	partVote      // the term, the vote, and what else is kept beside them
)

// file is a segment.
type file struct {
	data  []byte   // as the system shows it
	dirty []extent // written since the last sync
	lost  []extent // a sync that failed dropped them: no later one writes them
	named bool     // its name would survive
	last  int      // where the newest synced append begins
}

// unsynced is how many bytes were written since the last sync.
func (f *file) unsynced() (n int) {
	for _, e := range f.dirty {
		n += len(e.was)
	}
	return n
}

// rewritten makes e durable: what a failed sync has dropped of it is there now.
func (f *file) rewritten(e extent) {
	end := e.at + len(e.was)
	for _, l := range f.lost {
		for at := max(l.at, e.at); at < min(l.at+len(l.was), end); at++ {
			l.was[at-l.at] = f.data[at]
		}
	}
	f.lost = slices.DeleteFunc(f.lost, func(l extent) bool { return l.at >= e.at && l.at+len(l.was) <= end })
}

// extent is a write: what stood there before.
type extent struct {
	at  int
	was []byte
}

func newPlatter(seed uint64, told func(string), die func()) *platter {
	return &platter{
		rng: rand.New(rand.NewPCG(seed, 77)), files: map[string]*file{}, stable: map[string][]byte{},
		lucky: true, told: told, die: die,
	}
}

// Open implements cluster.Disk.
func (d *platter) Open(dir string) (raft.LogStore, raft.StableStore, raft.SnapshotStore, io.Closer, error) {
	d.mu.Lock()
	d.session++
	d.ill, d.rotten = d.fail != nil || d.stall != nil, len(d.flipped) > 0
	v := &platterView{d, d.session}
	d.mu.Unlock()
	logs, stable, snaps, closer, err := cluster.WALDisk{Files: v, Beside: v, SegmentBytes: platterSegment}.Open(dir)
	if err != nil {
		return nil, nil, nil, nil, err
	}
	d.inspect()
	gate := &gatedLog{LogStore: logs, log: logs.(unsyncedLog), closer: closer, free: make(chan struct{}, 1)}
	return gate, stable, snaps, gate, nil
}

// gatedLog lets one at a time write to a log. The library does so with a mutex,
// behind which virtual time does not pass.
type gatedLog struct {
	raft.LogStore
	log    unsyncedLog
	closer io.Closer
	free   chan struct{}
}

// unsyncedLog is what cluster makes of a log that can leave a sync for later.
type unsyncedLog interface {
	StoreUnsynced([]*raft.Log) (sync func() error, err error)
}

func (*gatedLog) IsMonotonic() bool { return true }

func (g *gatedLog) alone(f func() error) error {
	g.free <- struct{}{}
	defer func() { <-g.free }()
	return f()
}

func (g *gatedLog) StoreLog(l *raft.Log) error { return g.StoreLogs([]*raft.Log{l}) }
func (g *gatedLog) StoreLogs(l []*raft.Log) error {
	return g.alone(func() error { return g.LogStore.StoreLogs(l) })
}

// StoreUnsynced keeps the others out until the sync has ended: the library waits for
// that with its mutex held.
func (g *gatedLog) StoreUnsynced(l []*raft.Log) (func() error, error) {
	g.free <- struct{}{}
	sync, err := g.log.StoreUnsynced(l)
	if err != nil {
		<-g.free
		return nil, err
	}
	return func() error {
		defer func() { <-g.free }()
		return sync()
	}, nil
}

func (g *gatedLog) DeleteRange(lo, hi uint64) error {
	return g.alone(func() error { return g.LogStore.DeleteRange(lo, hi) })
}

// Close comes when nobody uses the log any more.
func (g *gatedLog) Close() error { return g.closer.Close() }

// unplug ends what the present process may do. power: the machine goes down with
// it, and what was not synced is at the disk's mercy.
func (d *platter) unplug(power bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.session++
	d.repairLocked()
	if power {
		d.powerCut()
	}
}

// What a power cut leaves of what was not synced.
const (
	cutLost = iota // nothing
	cutKept        // all
	cutTorn        // each sector or not
	cutHole        // all but one sector of each write
	cutModes
)

// powerCut is drawn. d.mu is held.
func (d *platter) powerCut() {
	mode := d.rng.IntN(cutModes)
	for _, name := range slices.Sorted(maps.Keys(d.files)) {
		f := d.files[name]
		if len(f.dirty)+len(f.lost) > 0 {
			d.told([cutModes]string{"disk-lost", "disk-kept", "disk-torn", "disk-hole"}[mode])
		}
		for _, e := range slices.Backward(f.dirty) {
			hole := e.at + d.rng.IntN(len(e.was))
			for at := e.at; at < e.at+len(e.was); {
				end := min(e.at+len(e.was), (at/sectorBytes+1)*sectorBytes)
				if mode == cutLost || mode == cutTorn && d.rng.IntN(2) == 0 || mode == cutHole && at <= hole && hole < end {
					copy(f.data[at:end], e.was[at-e.at:end-e.at])
				}
				at = end
			}
		}
		for _, e := range slices.Backward(f.lost) {
			copy(f.data[e.at:], e.was)
		}
		f.dirty, f.lost = nil, nil
		if !f.named && (mode == cutLost || mode == cutTorn) {
			delete(d.files, name)
		}
	}
}

func (d *platter) break_(err error, stalled bool) { d.breakPart(partAll, err, stalled) }

func (d *platter) breakPart(p part, err error, stalled bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fail, d.part, d.syncs, d.ill = err, p, false, true
	if stalled && d.stall == nil {
		d.stall = make(chan struct{})
	}
}

// failSyncs lets the log's writes pass, and fails their syncs.
func (d *platter) failSyncs(err error) {
	d.breakPart(partLog, err, false)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.syncs = true
}

// hangSyncs lets the log's writes pass, and has their syncs hang.
func (d *platter) hangSyncs() {
	d.breakPart(partLog, nil, true)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.syncs = true
}

// doom has a power cut meet the next sync of that many bytes or more.
func (d *platter) doom(bytes int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.doomed = bytes
}

// doomList has a crash meet the next change of the list of segments.
func (d *platter) doomList() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.doomedList = true
}

// well reports that nothing has been wrong with it since the present start.
func (d *platter) well() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return !d.ill
}

func (d *platter) repair() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.repairLocked()
}

func (d *platter) repairLocked() {
	d.fail, d.syncs, d.doomed, d.doomedList = nil, false, 0, false
	if d.stall != nil {
		close(d.stall)
	}
	d.stall = nil
}

// heal ends all trouble for good.
func (d *platter) heal() {
	d.repair()
	d.restore()
	d.setLucky(true)
}

func (d *platter) setLucky(is bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lucky = is
}

// platterView is one process's hold on a disk: the segments' files and what is beside them.
type platterView struct {
	d       *platter
	session int
}

var _ cluster.Beside = (*platterView)(nil)

// write runs f, which changes what the system shows, unless the disk hangs or
// fails.
func (v *platterView) write(p part, f func() error) error {
	v.d.mu.Lock()
	stall := v.d.stall
	if v.d.part != partAll && v.d.part != p {
		stall = nil
	}
	v.d.mu.Unlock()
	if stall != nil {
		<-stall
	}
	v.d.mu.Lock()
	defer v.d.mu.Unlock()
	switch {
	case v.session != v.d.session:
		return errPower
	case v.d.fail != nil && (v.d.part == partAll || v.d.part == p):
		return v.d.fail
	}
	return f()
}

// take is write for what is only to be synced.
func (v *platterView) take(f func() error) error {
	v.d.mu.Lock()
	if v.d.syncs && v.session == v.d.session {
		defer v.d.mu.Unlock()
		return f()
	}
	v.d.mu.Unlock()
	return v.write(partLog, f)
}

// list is write for the list of segments: at once, even if the disk hangs, as the
// library holds its mutex meanwhile.
func (v *platterView) list(f func() error) error {
	v.d.mu.Lock()
	defer v.d.mu.Unlock()
	switch {
	case v.session != v.d.session:
		return errPower
	case v.d.fail != nil && v.d.part != partVote && !v.d.syncs:
		return v.d.fail
	}
	return f()
}

// commit is write for what becomes durable after a while. A crash meanwhile may
// come before or after it.
func (v *platterView) commit(p part, f func()) error {
	if err := v.write(p, nothing); err != nil {
		return err
	}
	v.d.mu.Lock()
	d := time.Duration(v.d.rng.Int64N(int64(syncTime)))
	early := v.d.rng.IntN(2) == 0
	if early && v.session == v.d.session {
		f()
	}
	v.d.mu.Unlock()
	time.Sleep(d)
	return v.write(p, func() error {
		if !early {
			f()
		}
		return nil
	})
}

func nothing() error { return nil }

func (v *platterView) Prepare(string) error {
	return v.list(func() error {
		for _, f := range v.d.files {
			f.named = true
		}
		return nil
	})
}

func (v *platterView) ListDir(string) ([]string, error) {
	v.d.mu.Lock()
	defer v.d.mu.Unlock()
	return slices.Sorted(maps.Keys(v.d.files)), nil
}

func (v *platterView) Create(_, name string, size uint64) (types.WritableFile, error) {
	f := &file{data: make([]byte, size)}
	err := v.list(func() error {
		if v.d.files[name] != nil {
			return os.ErrExist
		}
		v.d.files[name] = f
		return nil
	})
	return &openFile{v, f, true}, err
}

func (v *platterView) Delete(_, name string) error {
	return v.list(func() error {
		if v.d.files[name] == nil {
			return os.ErrNotExist
		}
		delete(v.d.files, name)
		return nil
	})
}

func (v *platterView) OpenReader(dir, name string) (types.ReadableFile, error) {
	return v.OpenWriter(dir, name)
}

func (v *platterView) OpenWriter(_, name string) (types.WritableFile, error) {
	v.d.mu.Lock()
	defer v.d.mu.Unlock()
	f := v.d.files[name]
	if f == nil {
		return nil, os.ErrNotExist
	}
	return &openFile{v, f, false}, nil
}

type openFile struct {
	v    *platterView
	f    *file
	made bool // here: then its first sync is one of the directory, too
}

func (*openFile) Close() error { return nil }

func (o *openFile) ReadAt(b []byte, at int64) (int, error) {
	o.v.d.mu.Lock()
	defer o.v.d.mu.Unlock()
	return bytes.NewReader(o.f.data).ReadAt(b, at)
}

func (o *openFile) WriteAt(b []byte, at int64) (int, error) {
	err := o.v.take(func() error {
		if grow := int(at) + len(b) - len(o.f.data); grow > 0 {
			o.f.data = append(o.f.data, make([]byte, grow)...)
		}
		here := o.f.data[at : int(at)+len(b)]
		o.f.dirty = append(o.f.dirty, extent{int(at), slices.Clone(here)})
		copy(here, b)
		return nil
	})
	if err != nil {
		return 0, err
	}
	return len(b), nil
}

// Sync takes a while; what it writes is durable at its end, or torn if a crash
// comes first. Where it fails, the system forgets what it was to write.
func (o *openFile) Sync() error {
	d := o.v.d
	d.mu.Lock()
	n, wait := len(o.f.dirty), time.Duration(d.rng.Int64N(int64(syncTime)))
	unlucky := o.v.session == d.session && n > 0 &&
		(!d.lucky && d.rng.IntN(unluckySyncOf) == 0 || d.doomed > 0 && o.f.unsynced() >= d.doomed)
	if unlucky {
		d.session++
		d.doomed = 0
		d.powerCut()
	}
	d.mu.Unlock()
	if unlucky {
		d.told("crash-in-sync")
		d.die()
		return errPower
	}
	time.Sleep(wait)
	err := o.v.write(partLog, nothing)
	d.mu.Lock()
	defer d.mu.Unlock()
	if o.v.session != d.session {
		return errPower
	}
	n = min(n, len(o.f.dirty))
	done := o.f.dirty[:n]
	if o.f.dirty = o.f.dirty[n:]; err != nil {
		o.f.lost = append(o.f.lost, done...)
		return err
	}
	for _, e := range done {
		if len(bytes.Trim(o.f.data[e.at:e.at+len(e.was)], "\x00")) > 0 { // not what clears the rest
			o.f.last = max(o.f.last, e.at)
		}
		o.f.rewritten(e)
	}
	o.f.named = o.f.named || o.made
	return nil
}
