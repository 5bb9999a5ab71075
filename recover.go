package baton

import (
	"encoding/hex"
	"fmt"
	"io"
	"net"

	"github.com/baton-cluster/baton/cluster"
	"github.com/baton-cluster/baton/fsm"
	"github.com/baton-cluster/baton/pki"
	"github.com/baton-cluster/baton/seam"
	"github.com/baton-cluster/baton/store"
	"github.com/baton-cluster/baton/wire"
)

// SnapshotInfo tells what a cluster's state holds: of a backup, of a survivor, or
// of the new cluster that was made of one.
type SnapshotInfo struct {
	ClusterID    string     `json:"cluster_id"`
	Index        uint64     `json:"index"`
	LogTimeUS    uint64     `json:"log_time_us"`
	Epoch        uint64     `json:"epoch"` // the highest that was given out: the floor for whatever follows
	FeatureLevel uint32     `json:"feature_level"`
	StateHash    string     `json:"state_hash"`
	Sessions     int        `json:"sessions"`
	Attached     int        `json:"attached"`
	Migrations   int        `json:"migrations"` // under way
	Workers      []string   `json:"workers"`
	ByteBudget   ByteBudget `json:"byte_budget"`
	Bytes        int64      `json:"bytes,omitempty"` // of the file
}

func snapshotInfo(s *store.Store) SnapshotInfo {
	row, counts := s.Cluster(), s.Counts()
	info := SnapshotInfo{
		ClusterID: hex.EncodeToString(row.GetClusterId()), Index: s.Index(), LogTimeUS: s.TimeUS(), Epoch: row.GetEpochs(),
		FeatureLevel: row.GetFeatureLevel(), StateHash: fmt.Sprintf("%016x", s.Hash()), Sessions: counts.Sessions, Attached: counts.Attached,
		Migrations: counts.Migrating, Workers: []string{}, ByteBudget: ByteBudget{Used: row.GetBytesUsed(), Limit: row.GetByteBudget()},
	}
	for _, w := range s.Workers() {
		info.Workers = append(info.Workers, w.GetName())
	}
	return info
}

// InspectSnapshot verifies a backup from its first to its last byte and tells what
// it holds. SNAPSHOT_BAD: it cannot be used.
func InspectSnapshot(r io.Reader) (SnapshotInfo, error) {
	s, err := fsm.ReadSnapshot(r)
	if err != nil {
		return SnapshotInfo{}, err
	}
	return snapshotInfo(s), nil
}

// NewCluster says how a new cluster is made of the state of a former one, on a
// data directory that no node runs on.
type NewCluster struct {
	Data string
	PKI  string // the PKI files that the new cluster's nodes will have
	// EpochFloor is the highest epoch that anything outside knows of: epochs and
	// fencing tokens of the new cluster are above it. The state's own is counted.
	EpochFloor uint64
	// Name and MgmtAddr are of the first node, for RestoreSnapshot: its name, and the
	// management address at which others will reach it. RecoverCluster takes them
	// from the directory.
	Name, MgmtAddr string
	By             string // who asked, for people
}

// Recovery tells what RecoverCluster did, or would do.
type Recovery struct {
	Node   string       `json:"node"`
	Lost   []string     `json:"lost"`   // management addresses of the other servers
	Before SnapshotInfo `json:"before"` // what the survivor holds
	After  SnapshotInfo `json:"after"`  // the new cluster; empty if nothing was done
}

// RecoverCluster makes a cluster of one out of the data directory of one server
// of a cluster whose majority is lost for good. It is a new cluster: it has an
// identity of its own, so nothing of the former one can join it or be mistaken for
// it; what remains of that must be wiped. What the lost servers acknowledged after
// this one's last entry is gone; what it had in its log and nobody acknowledged is
// kept. With dry, it only looks.
//
// Errors: UNAVAILABLE (a node runs on the directory), BAD_REQUEST (it is none),
// SNAPSHOT_BAD, INTERNAL (damaged). Interrupted, it is to be called again.
func RecoverCluster(c NewCluster, dry bool) (Recovery, error) {
	var out Recovery
	lock, err := cluster.LockDir(c.Data)
	if err != nil {
		return out, err
	}
	defer func() { _ = lock.Close() }()
	off, err := cluster.OpenOffline(lock, nil)
	if err != nil {
		return out, err
	}
	s, err := off.Read()
	if err != nil {
		return out, err
	}
	out = Recovery{Node: s.Name, Lost: []string{}, Before: snapshotInfo(s.State)}
	for _, srv := range s.Servers {
		out.Lost = append(out.Lost, srv.Addr)
	}
	id, err := pki.Load(c.PKI, s.Name)
	if err != nil || dry {
		return out, err
	}
	if err := off.Recover(s, c.rebirth(), newRoot(id)); err != nil {
		return out, err
	}
	out.After = snapshotInfo(s.State)
	return out, nil
}

// RestoreSnapshot makes a cluster of one out of a backup, in an empty data
// directory. It is a new cluster, as with RecoverCluster: the former one, should it
// live, and others restored from the same backup are strangers to it.
//
// Errors: SNAPSHOT_BAD, BAD_REQUEST (the directory is not empty, the address is
// none), UNAVAILABLE.
func RestoreSnapshot(c NewCluster, r io.Reader) (SnapshotInfo, error) {
	if host, port, err := net.SplitHostPort(c.MgmtAddr); err != nil || host == "" || port == "" || port == "0" {
		return SnapshotInfo{}, wire.Errorf(wire.Code_BAD_REQUEST, "the management address %q must be HOST:PORT as others reach it", c.MgmtAddr)
	}
	id, err := pki.Load(c.PKI, c.Name)
	if err != nil {
		return SnapshotInfo{}, err
	}
	st, err := fsm.ReadSnapshot(r)
	if err != nil {
		return SnapshotInfo{}, err
	}
	lock, err := cluster.LockDir(c.Data)
	if err != nil {
		return SnapshotInfo{}, err
	}
	defer func() { _ = lock.Close() }()
	off, err := cluster.OpenOffline(lock, nil)
	if err != nil {
		return SnapshotInfo{}, err
	}
	if err := off.Restore(st, c.Name, c.MgmtAddr, c.rebirth(), newRoot(id)); err != nil {
		return SnapshotInfo{}, err
	}
	return snapshotInfo(st), nil
}

func (c NewCluster) rebirth() store.Rebirth {
	by := c.By
	if by == "" {
		by = "an operator"
	}
	return store.Rebirth{Floor: c.EpochFloor, WallUS: seam.OSClock{}.Wall().UnixMicro(), By: by}
}
