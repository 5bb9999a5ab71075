package cluster

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/baton-cluster/baton/fsm"
	"github.com/baton-cluster/baton/lease"
	"github.com/baton-cluster/baton/seam"
	"github.com/baton-cluster/baton/wire"
)

// FuzzSmallFiles: the files beside raft's own, whatever is in them, are read or
// refused with a typed error, and what is read is of the form that it must have.
func FuzzSmallFiles(f *testing.F) {
	f.Add([]byte(`{"id":"0123456789abcdef","name":"n1"}`))
	f.Add([]byte(`{"cluster_id":"00112233445566778899aabbccddeeff","member":true,"left":true}`))
	f.Add([]byte(`{"boot":"b","device":1,"inode":2}`))
	f.Add([]byte(`{"pledged_to":"x","pledged_servers":["a","b"]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := t.TempDir()
		for _, name := range []string{nodeFile, recordFile, placeFile} {
			must(t, os.WriteFile(filepath.Join(dir, name), data, 0o600))
		}
		typed := func(err error) {
			if e := (*wire.Error)(nil); err != nil && !errors.As(err, &e) {
				t.Fatalf("not typed: %v", err)
			}
		}
		l, err := LockDir(dir)
		must(t, err)
		defer func() { _ = l.Close() }()
		id, err := l.Identity("n1")
		typed(err)
		if err == nil && (!idPattern.MatchString(id.ID) || id.Name != "n1") {
			t.Fatalf("identity %+v", id)
		}
		_, err = l.Copied()
		typed(err)
		r, err := openRecord(dir)
		typed(err)
		if err == nil && r.clusterID() != nil && len(r.clusterID()) != wire.IDBytes {
			t.Fatalf("cluster id %x", r.clusterID())
		}
	})
}

// FuzzWithdrawals: what the stable store holds of withdrawals is read whole, or
// refused.
func FuzzWithdrawals(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 9})
	f.Add([]byte{0, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		c := &Cluster{fsm: fsm.New(nil)}
		c.cfg.Clock = seam.OSClock{}
		stable := raft.NewInmemStore()
		must(t, stable.Set(withdrawnKey, data))
		err := c.openPromises(stable)
		if (err == nil) != (len(data)%8 == 0) {
			t.Fatalf("%d bytes: %v", len(data), err)
		}
		if err != nil {
			return
		}
		for _, incarnation := range c.promises.synced {
			g := c.promises.server.Grant(0, lease.Renewal{Incarnation: incarnation, T: lease.TMin}, lease.Facts{Current: true, CaughtUp: true})
			if g != wire.Code_LEASE_WITHDRAWN {
				t.Fatalf("incarnation %d, which was withdrawn, is promised something", incarnation)
			}
		}
	})
}
