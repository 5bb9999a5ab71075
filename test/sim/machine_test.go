package sim

import (
	"context"
	"errors"
	"io"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/baton-cluster/baton"
	"github.com/baton-cluster/baton/seam"
)

// clock runs at a rate of its own: skewed clocks are what leases allow for.
type clock struct {
	start time.Time
	rate  float64
	wall  time.Duration // what the wall clock is wrong by
	steps *steps        // nil: none
}

// steps are what befalls a machine's clocks while it runs.
type steps struct {
	wall  atomic.Int64 // the wall clock is set: by how much, in all
	slept atomic.Int64 // the boot clock goes on while the timers stand still, in all
}

var _ seam.BootClock = clock{}

func (c clock) Now() time.Duration {
	return time.Duration(float64(time.Since(c.start)) * c.rate)
}
func (c clock) Boot() time.Duration {
	if c.steps == nil {
		return c.Now()
	}
	return c.Now() + time.Duration(c.steps.slept.Load())
}
func (c clock) Wall() time.Time {
	t := time.Now().Add(c.wall)
	if c.steps != nil {
		t = t.Add(time.Duration(c.steps.wall.Load()))
	}
	return t
}
func (c clock) AfterFunc(d time.Duration, f func()) seam.Timer {
	// Rounded up: a timer that came early by a nanosecond would be set anew for
	// none, again and again, while virtual time stands still.
	return time.AfterFunc(time.Duration(math.Ceil(float64(d)/c.rate)), f)
}

// errPower is what a disk says to a process that is no more.
var errPower = errors.New("the power is off")

// disk outlives the processes that use it. What was written is synced: whatever
// a crash comes between was either stored or not.
type disk struct {
	mu      sync.Mutex
	logs    *raft.InmemStore
	snaps   *raft.InmemSnapshotStore
	session int           // rises with each Open: an earlier process writes nothing more
	fail    error         // what writes come to
	stall   chan struct{} // closed: writes go on
	part    part          // of the disk, that fail and stall are about
}

// part is what a disk's trouble is confined to.
type part int

const (
	partAll  part = iota
	partLog       // the log
	partVote      // the term, the vote, and what else is kept beside them
)

func newDisk() *disk {
	return &disk{logs: raft.NewInmemStore(), snaps: raft.NewInmemSnapshotStore()}
}

// Open implements cluster.Disk.
func (d *disk) Open(string) (raft.LogStore, raft.StableStore, raft.SnapshotStore, io.Closer, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.session++
	v := &diskView{d, d.session}
	return v, v, snapView{v}, io.NopCloser(nil), nil
}

// unplug ends what the present process may write.
func (d *disk) unplug() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.session++
	d.repairLocked()
}

func (d *disk) break_(err error, stalled bool) { d.breakPart(partAll, err, stalled) }

func (d *disk) breakPart(p part, err error, stalled bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fail, d.part = err, p
	if stalled && d.stall == nil {
		d.stall = make(chan struct{})
	}
}

func (d *disk) repair() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.repairLocked()
}

func (d *disk) repairLocked() {
	d.fail = nil
	if d.stall != nil {
		close(d.stall)
	}
	d.stall = nil
}

// diskView is one process's hold on a disk.
type diskView struct {
	d       *disk
	session int
}

func (v *diskView) write(p part, f func() error) error {
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

func (v *diskView) Set(key, val []byte) error {
	return v.write(partVote, func() error { return v.d.logs.Set(key, val) })
}

func (v *diskView) SetUint64(key []byte, val uint64) error {
	return v.write(partVote, func() error { return v.d.logs.SetUint64(key, val) })
}

func (v *diskView) FirstIndex() (uint64, error)          { return v.d.logs.FirstIndex() }
func (v *diskView) LastIndex() (uint64, error)           { return v.d.logs.LastIndex() }
func (v *diskView) GetLog(i uint64, l *raft.Log) error   { return v.d.logs.GetLog(i, l) }
func (v *diskView) Get(key []byte) ([]byte, error)       { return v.d.logs.Get(key) }
func (v *diskView) GetUint64(key []byte) (uint64, error) { return v.d.logs.GetUint64(key) }
func (v *diskView) StoreLog(l *raft.Log) error           { return v.StoreLogs([]*raft.Log{l}) }
func (v *diskView) StoreLogs(l []*raft.Log) error {
	return v.write(partLog, func() error { return v.d.logs.StoreLogs(l) })
}
func (v *diskView) DeleteRange(a, b uint64) error {
	return v.write(partLog, func() error { return v.d.logs.DeleteRange(a, b) })
}

// snapView keeps a snapshot only once it is closed by a process that lives.
type snapView struct{ v *diskView }

func (s snapView) List() ([]*raft.SnapshotMeta, error) { return s.v.d.snaps.List() }
func (s snapView) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	return s.v.d.snaps.Open(id)
}

func (s snapView) Create(version raft.SnapshotVersion, index, term uint64, conf raft.Configuration, confIndex uint64, trans raft.Transport) (raft.SnapshotSink, error) {
	fresh := raft.NewInmemSnapshotStore()
	sink, err := fresh.Create(version, index, term, conf, confIndex, trans)
	return &snapSink{sink, s.v, fresh}, err
}

type snapSink struct {
	raft.SnapshotSink
	v     *diskView
	fresh *raft.InmemSnapshotStore
}

func (s *snapSink) Close() error {
	if err := s.SnapshotSink.Close(); err != nil {
		return err
	}
	return s.v.write(partAll, func() error { s.v.d.snaps = s.fresh; return nil })
}

// machine is a host with a disk, where one node runs after the other.
type machine struct {
	w     *world
	name  string
	ip    string
	disk  *disk
	clock clock

	mu      sync.Mutex
	node    *baton.Node
	opening chan struct{} // closed when the present start has ended
	give    context.CancelFunc
}

func (m *machine) mgmt() string { return m.ip + ":7401" }
func (m *machine) user() string { return m.ip + ":7400" }

// boot starts the machine's node, unless one runs. It does not wait for it.
func (m *machine) boot() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.opening != nil {
		return
	}
	m.w.net.boot(m.ip)
	m.disk.repair()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	m.opening, m.give = done, cancel
	m.w.spawn(func() {
		defer close(done)
		n, err := baton.Open(ctx, m.w.config(m))
		m.mu.Lock()
		if err == nil {
			m.node = n
		}
		m.mu.Unlock()
		if err != nil && ctx.Err() == nil {
			m.w.note("%s did not start: %v", m.name, err)
		}
	})
}

// stop ends the node as a crash does: nothing that it does after the first line
// is seen by anybody. told: peers get resets.
func (m *machine) stop(told bool) {
	m.w.net.crash(m.ip, told)
	m.disk.unplug()
	m.end()
}

// end waits until the node has gone.
func (m *machine) end() {
	m.mu.Lock()
	opening, give := m.opening, m.give
	m.mu.Unlock()
	if opening == nil {
		return
	}
	give()
	<-opening
	m.mu.Lock()
	n := m.node
	m.mu.Unlock()
	if n != nil {
		_ = n.Close()
	}
	m.mu.Lock()
	m.node, m.opening, m.give = nil, nil, nil
	m.mu.Unlock()
}

// fallen reports that the node has stopped by itself, and why.
func (m *machine) fallen() (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.node == nil {
		if m.opening == nil {
			return false, nil
		}
		select {
		case <-m.opening:
			return true, errors.New("did not start")
		default:
			return false, nil
		}
	}
	select {
	case <-m.node.Done():
		return true, m.node.Err()
	default:
		return false, nil
	}
}
