package cluster

import (
	"context"
	"errors"
	"io"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/baton-cluster/baton/seam"
)

// absent is a network with one server, which may be away.
type absent struct {
	raftNetwork
	away bool
	sent int // requests that it got, other than heartbeats
}

func (a *absent) AppendEntries(_ raft.ServerID, _ raft.ServerAddress, req *raft.AppendEntriesRequest, _ *raft.AppendEntriesResponse) error {
	if a.away {
		return errors.New("connection refused")
	}
	if !heartbeat(req) {
		a.sent++
	}
	return nil
}

func (a *absent) InstallSnapshot(raft.ServerID, raft.ServerAddress, *raft.InstallSnapshotRequest, *raft.InstallSnapshotResponse, io.Reader) error {
	a.sent++
	return nil
}

func TestPatientTransport(t *testing.T) {
	beat := &raft.AppendEntriesRequest{Term: 1}
	entry := func() *raft.AppendEntriesRequest {
		return &raft.AppendEntriesRequest{Term: 1, PrevLogEntry: 7, PrevLogTerm: 1, Entries: []*raft.Log{{Index: 8}}}
	}
	// held starts with a server that is away, and a request to it under way.
	held := func(t *testing.T) (n *absent, tr *patientTransport, wanted *atomic.Bool, end func(), done chan error) {
		ctx, cancel := context.WithCancel(context.Background())
		n, wanted, done = &absent{away: true}, new(atomic.Bool), make(chan error, 1)
		wanted.Store(true)
		tr = &patientTransport{
			raftNetwork: n, ctx: ctx, clock: seam.OSClock{}, look: time.Second, away: map[raft.ServerID]absence{},
			wanted: func(raft.ServerID, uint64) bool { return wanted.Load() },
		}
		if tr.AppendEntries("s", "", beat, nil) == nil {
			t.Fatal("a heartbeat to nobody is answered")
		}
		go func() { done <- tr.AppendEntries("s", "", entry(), nil) }()
		time.Sleep(time.Hour)
		synctest.Wait()
		if len(done) > 0 {
			t.Fatalf("not held: %v", <-done)
		}
		return n, tr, wanted, cancel, done
	}
	for name, play := range map[string]func(t *testing.T){
		"is made anew when a heartbeat is answered": func(t *testing.T) {
			n, tr, _, end, done := held(t)
			defer end()
			n.away = false
			if err := tr.AppendEntries("s", "", beat, nil); err != nil {
				t.Fatal(err)
			}
			if err := <-done; !errors.Is(err, errAway) || n.sent != 0 {
				t.Fatalf("%v, %d sent", err, n.sent)
			}
			if err := tr.AppendEntries("s", "", entry(), nil); err != nil || n.sent != 1 {
				t.Fatalf("the next: %v, %d sent", err, n.sent)
			}
		},
		"goes on when only one heartbeat was lost": func(t *testing.T) {
			n, tr, _, end, done := held(t)
			defer end()
			n.away = false
			_ = tr.AppendEntries("s", "", beat, nil)
			<-done
			n.away = true
			_ = tr.AppendEntries("s", "", beat, nil)
			go func() { done <- tr.AppendEntries("s", "", entry(), nil) }()
			time.Sleep(tr.look / 2)
			n.away = false
			_ = tr.AppendEntries("s", "", beat, nil)
			if err := <-done; err != nil || n.sent != 1 {
				t.Fatalf("%v, %d sent", err, n.sent)
			}
		},
		"holds nothing of another term": func(t *testing.T) {
			n, tr, _, end, done := held(t)
			defer end()
			next := entry()
			next.Term++
			if err := tr.AppendEntries("s", "", next, nil); err == nil || errors.Is(err, errAway) {
				t.Fatal(err)
			}
			late := &raft.AppendEntriesRequest{Term: 2}
			_ = tr.AppendEntries("s", "", late, nil)
			if err := <-done; !errors.Is(err, errAway) || n.sent != 0 {
				t.Fatalf("of the former term: %v, %d sent", err, n.sent)
			}
		},
		"ends when raft wants it no more": func(t *testing.T) {
			n, _, wanted, end, done := held(t)
			defer end()
			wanted.Store(false)
			if err := <-done; !errors.Is(err, errAway) || n.sent != 0 {
				t.Fatalf("%v, %d sent", err, n.sent)
			}
		},
		"ends with the node": func(t *testing.T) {
			_, _, _, end, done := held(t)
			end()
			if err := <-done; !errors.Is(err, errAway) {
				t.Fatal(err)
			}
		},
		"a snapshot is taken anew": func(t *testing.T) {
			n, tr, _, end, done := held(t)
			defer end()
			snap := make(chan error, 1)
			go func() { snap <- tr.InstallSnapshot("s", "", &raft.InstallSnapshotRequest{Term: 1}, nil, nil) }()
			time.Sleep(2 * tr.look)
			synctest.Wait()
			n.away = false
			_ = tr.AppendEntries("s", "", beat, nil)
			if err := <-snap; !errors.Is(err, errAway) || n.sent != 0 {
				t.Fatalf("%v, %d sent", err, n.sent)
			}
			<-done
		},
	} {
		t.Run(name, func(t *testing.T) { synctest.Test(t, play) })
	}
}
