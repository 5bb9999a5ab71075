package cluster

import (
	"errors"
	"io"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/baton-cluster/baton/wire"
)

// sickDisk is a disk of which each part can hang or fail on its own.
type sickDisk struct {
	mu      sync.Mutex
	sick    map[string]illness // by part: log, stable, snapshot
	hanging map[string]int     // writes that wait
}

// illness: a write waits for hang (nil: not), then fails with err (nil: not).
type illness struct {
	hang <-chan struct{}
	err  error
}

func (d *sickDisk) catch(part string, ill illness) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.sick == nil {
		d.sick = map[string]illness{}
	}
	d.sick[part] = ill
}

func (d *sickDisk) suffer(part string) error {
	d.mu.Lock()
	ill := d.sick[part]
	d.mu.Unlock()
	if ill.hang != nil {
		d.count(part, 1)
		<-ill.hang
		d.count(part, -1)
	}
	return ill.err
}

func (d *sickDisk) count(part string, by int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.hanging == nil {
		d.hanging = map[string]int{}
	}
	d.hanging[part] += by
}

// hangs reports whether a write to the part waits.
func (d *sickDisk) hangs(part string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.hanging[part] > 0
}

func (d *sickDisk) Open(dir string) (raft.LogStore, raft.StableStore, raft.SnapshotStore, io.Closer, error) {
	logs, stable, snaps, closer, err := FileDisk{}.Open(dir)
	return &sickLog{logs, d}, &sickStable{stable, d}, &sickSnapshots{snaps, d}, closer, err
}

type sickLog struct {
	raft.LogStore
	disk *sickDisk
}

func (l *sickLog) IsMonotonic() bool {
	m, ok := l.LogStore.(raft.MonotonicLogStore)
	return ok && m.IsMonotonic()
}

func (l *sickLog) StoreLogs(logs []*raft.Log) error {
	if err := l.disk.suffer("log"); err != nil {
		return err
	}
	return l.LogStore.StoreLogs(logs)
}

type sickStable struct {
	raft.StableStore
	disk *sickDisk
}

func (s *sickStable) SetUint64(key []byte, v uint64) error {
	if err := s.disk.suffer("stable"); err != nil {
		return err
	}
	return s.StableStore.SetUint64(key, v)
}

type sickSnapshots struct {
	raft.SnapshotStore
	disk *sickDisk
}

func (s *sickSnapshots) Create(version raft.SnapshotVersion, index, term uint64, configuration raft.Configuration,
	configurationIndex uint64, trans raft.Transport) (raft.SnapshotSink, error) {
	sink, err := s.SnapshotStore.Create(version, index, term, configuration, configurationIndex, trans)
	if err != nil {
		return nil, err
	}
	return &sickSink{sink, s.disk}, nil
}

type sickSink struct {
	raft.SnapshotSink
	disk *sickDisk
}

func (s *sickSink) Write(p []byte) (int, error) {
	if err := s.disk.suffer("snapshot"); err != nil {
		return 0, err
	}
	return s.SnapshotSink.Write(p)
}

func hasFault(n *testNode, code string) bool {
	for _, f := range n.c.Faults() {
		if f.Code == code {
			return true
		}
	}
	return false
}

// sickCluster is three healthy nodes whose disks a test can make ill.
func sickCluster(t *testing.T, edit func(*Config)) (nodes []*testNode, disks map[*testNode]*sickDisk) {
	t.Helper()
	made := map[string]*sickDisk{}
	nodes = newCluster(t, 3, func(c *Config) {
		made[c.Name] = &sickDisk{}
		c.Disk = made[c.Name]
		c.Timings.Probe = 20 * time.Millisecond
		if edit != nil {
			edit(c)
		}
	})
	disks = map[*testNode]*sickDisk{}
	for _, n := range nodes {
		disks[n] = made[n.name]
		eventually(t, n.name+" is well", func() bool { return len(n.c.Faults()) == 0 })
	}
	return nodes, disks
}

// TestDiskOfOneServer: whichever server's disk hangs, fails or is full, in its
// log or in its vote, with nobody writing: the node stops and says why, and the
// others go on.
func TestDiskOfOneServer(t *testing.T) {
	for _, who := range []string{"leader", "follower"} {
		for _, part := range []string{"log", "stable"} {
			for what, err := range map[string]error{"hangs": nil, "fails": errors.New("input/output error"), "is full": syscall.ENOSPC} {
				t.Run(who+"'s "+part+" "+what, func(t *testing.T) {
					clocks := map[string]*hastyClock{}
					nodes, disks := sickCluster(t, func(c *Config) {
						clocks[c.Name] = &hastyClock{}
						c.Clock = clocks[c.Name]
					})
					ill, others := leaderOf(t, nodes)
					if who == "follower" {
						ill, others = others[0], []*testNode{ill, others[1]}
					}
					gate := make(chan struct{})
					release := sync.OnceFunc(func() { close(gate) })
					t.Cleanup(release)
					if err == nil {
						clocks[ill.name].hasty.Store(true) // the others' disks may be slow, and have their time
						disks[ill].catch(part, illness{hang: gate})
					} else {
						disks[ill].catch(part, illness{err: err})
					}
					if part == "log" { // an idle disk's vote is probed, its log is written to
						ill.c.Propose([]*wire.Command{tick()}, func([]*wire.Result, error) {})
					}
					why := <-ill.fatal
					if wire.CodeOf(why) != wire.Code_INTERNAL {
						t.Errorf("it stopped because: %v", why)
					}
					if !hasFault(ill, faultStopped) {
						t.Errorf("it does not say so: %v", ill.c.Faults())
					}
					for range 3 {
						if res, err := others[0].c.ProposeWait(testCtx(t), tick()); err != nil || res[0].GetCode() != wire.Code_OK {
							t.Errorf("the others: %v %v", res, err)
						}
					}
					for _, n := range others {
						eventually(t, n.name+" is well", func() bool { return len(n.c.Faults()) == 0 })
					}
					release()
				})
			}
		}
	}
}

// TestSilentWhileItsDiskHangs: a leader whose disk hangs, but not for long enough
// to stop it, is silent meanwhile. The others elect and commit, and it follows
// once its disk is back.
func TestSilentWhileItsDiskHangs(t *testing.T) {
	nodes, disks := sickCluster(t, func(c *Config) { c.Timings.Mute, c.Timings.Stall = 100*time.Millisecond, time.Hour })
	ill, others := leaderOf(t, nodes)
	gate := make(chan struct{})
	release := sync.OnceFunc(func() { close(gate) })
	t.Cleanup(release)
	disks[ill].catch("log", illness{hang: gate})
	ill.c.Propose([]*wire.Command{tick()}, func([]*wire.Result, error) {})
	eventually(t, "it says that its disk hangs", func() bool { return hasFault(ill, faultStalled) })
	res, err := others[0].c.ProposeWait(testCtx(t), tick())
	if err != nil || res[0].GetCode() != wire.Code_OK {
		t.Fatalf("the others: %v %v", res, err)
	}
	leaderOf(t, others)
	disks[ill].catch("log", illness{})
	release()
	eventually(t, "it is well again", func() bool { return len(ill.c.Faults()) == 0 })
	sameState(t, nodes)
}

// TestCutOffNodeIsNotWell: a node that hears no leader says so, and so does a
// leader that has lost its majority; the others are well.
func TestCutOffNodeIsNotWell(t *testing.T) {
	for _, who := range []string{"leader", "follower"} {
		t.Run(who, func(t *testing.T) {
			nodes, _ := sickCluster(t, nil)
			lost, others := leaderOf(t, nodes)
			if who == "follower" {
				lost, others = others[0], []*testNode{lost, others[1]}
			}
			lost.c.stream.mute(true)
			eventually(t, "it has no leader", func() bool { return hasFault(lost, faultLeader) })
			for _, n := range others {
				eventually(t, n.name+" is well", func() bool { return len(n.c.Faults()) == 0 })
			}
			lost.c.stream.mute(false)
			eventually(t, "it is well again", func() bool { return len(lost.c.Faults()) == 0 })
		})
	}
}

// TestFailedSnapshotIsTold: a snapshot that cannot be written ends nothing, and is
// told until one can.
func TestFailedSnapshotIsTold(t *testing.T) {
	nodes, disks := sickCluster(t, nil)
	ill, _ := leaderOf(t, nodes)
	disks[ill].catch("snapshot", illness{err: syscall.ENOSPC})
	if _, err := ill.c.ProposeWait(testCtx(t), tick()); err != nil {
		t.Fatal(err)
	}
	if err := ill.c.Snapshot(); err == nil {
		t.Error("a snapshot without room")
	}
	if !hasFault(ill, faultSnapshot) {
		t.Errorf("it is not told: %v", ill.c.Faults())
	}
	if res, err := ill.c.ProposeWait(testCtx(t), tick()); err != nil || res[0].GetCode() != wire.Code_OK {
		t.Errorf("%v %v", res, err)
	}
	disks[ill].catch("snapshot", illness{})
	if err := ill.c.Snapshot(); err != nil {
		t.Error(err)
	}
	if hasFault(ill, faultSnapshot) {
		t.Errorf("it is told still: %v", ill.c.Faults())
	}
}
