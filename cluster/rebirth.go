package cluster

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"

	"github.com/hashicorp/raft"

	"github.com/baton-cluster/baton/fsm"
	"github.com/baton-cluster/baton/store"
	"github.com/baton-cluster/baton/wire"
)

// Offline is a data directory that no node runs on, from which a new cluster is
// to be made. Both ways lead to the same: a state that no former node can act on
// (store.Reborn), as the snapshot of a cluster of one, with an empty log behind it.
type Offline struct {
	lock   *DirLock
	disk   Disk
	record *record
}

// OpenOffline prepares a locked directory. Errors are as Open's.
func OpenOffline(lock *DirLock, disk Disk) (*Offline, error) {
	if disk == nil {
		disk = FileDisk{}
	}
	rec, err := openRecord(lock.Dir())
	if err != nil {
		return nil, err
	}
	return &Offline{lock, disk, rec}, nil
}

// Survivor is what a directory holds of a server.
type Survivor struct {
	Name  string // its node's
	State *store.Store
	// Index and Term are of the last entry of its log or snapshot, committed or not.
	Index, Term uint64
	// Servers are the others that it knew.
	Servers []Server
	id      Identity
	addr    string
}

// Read returns what the directory holds: all that its log has, which may be more
// than was acknowledged, never less than this server has acknowledged. BAD_REQUEST:
// no server's. Else as Open.
func (o *Offline) Read() (s *Survivor, err error) {
	s = &Survivor{}
	if o.record.left() {
		return nil, wire.Errorf(wire.Code_BAD_REQUEST, "the node of %s has left its cluster for good: it knows nothing of what came after", o.lock.Dir())
	}
	if s.id, err = o.lock.Identity(""); err != nil {
		return nil, wire.Errorf(wire.Code_BAD_REQUEST, "%s is not the data directory of a node: %v", o.lock.Dir(), err)
	}
	s.Name = s.id.Name
	logs, _, snaps, closer, err := o.disk.Open(o.lock.Dir())
	if err != nil {
		return nil, err
	}
	defer func() { _ = closer.Close() }()
	conf, err := s.load(o.lock.Dir(), logs, snaps)
	if err != nil {
		return nil, err
	}
	for _, srv := range conf.Servers {
		if string(srv.ID) == s.id.ID {
			s.addr = string(srv.Address)
			continue
		}
		s.Servers = append(s.Servers, Server{ID: string(srv.ID), Addr: string(srv.Address), Voter: srv.Suffrage == raft.Voter})
	}
	if s.addr == "" || len(s.State.Cluster().GetClusterId()) == 0 {
		return nil, wire.Errorf(wire.Code_BAD_REQUEST, "node %s in %s has never been of a cluster: there is nothing to recover", s.Name, o.lock.Dir())
	}
	return s, nil
}

// load reads the newest snapshot, and the log behind it.
func (s *Survivor) load(dir string, logs raft.LogStore, snaps raft.SnapshotStore) (conf raft.Configuration, err error) {
	defer func() {
		if p := recover(); p != nil { // the state machine stops at an entry that it cannot read
			err = damagedLog(dir, p)
		}
	}()
	f := fsm.New(nil)
	listed, err := snaps.List()
	if err != nil {
		return conf, badSnapshot(dir, err)
	}
	if len(listed) > 0 {
		meta, r, err := snaps.Open(listed[0].ID)
		if err == nil {
			err = f.Restore(r)
		}
		if err != nil {
			return conf, badSnapshot(listed[0].ID, err)
		}
		s.Index, s.Term, conf = meta.Index, meta.Term, meta.Configuration
	}
	first, err := logs.FirstIndex()
	if err != nil {
		return conf, damagedLog(dir, err)
	}
	last, err := logs.LastIndex()
	if err != nil {
		return conf, damagedLog(dir, err)
	}
	if last > s.Index && first > s.Index+1 {
		return conf, badSnapshot(dir, fmt.Errorf("the log begins at %d, but the newest snapshot ends at %d", first, s.Index))
	}
	for i := s.Index + 1; i <= last; i++ {
		var l raft.Log
		if err := logs.GetLog(i, &l); err != nil {
			return conf, damagedLog(dir, err)
		}
		switch l.Type {
		case raft.LogCommand:
			f.Apply(&l)
		case raft.LogConfiguration:
			conf = raft.DecodeConfiguration(l.Data)
			f.StoreConfiguration(l.Index, conf)
		}
		s.Index, s.Term = l.Index, l.Term
	}
	f.View(func(st *store.Store) { s.State = st })
	return conf, nil
}

// plan completes a Rebirth for this place; its floor is the caller's.
func (o *Offline) plan(st *store.Store, index uint64, voter string, b *store.Rebirth) error {
	id := make([]byte, wire.IDBytes)
	if _, err := rand.Read(id); err != nil {
		return err
	}
	b.ClusterID, b.Voter, b.Index = id, voter, max(index, st.Index())+1
	return nil
}

// Keys makes the wrapped root of a key ring's generation for a new cluster.
type Keys func(clusterID []byte, generation uint64) (root []byte, err error)

// Recover makes a cluster of one out of a survivor. Interrupted, it is to be run
// again: a node does not start on what is half made.
func (o *Offline) Recover(s *Survivor, b store.Rebirth, keys Keys) error {
	if o.record.d.Reborn != "" && o.record.d.Reborn == hex.EncodeToString(s.State.Cluster().GetClusterId()) {
		return o.finish(s.State, s.Index, s.Term, s.id, s.addr, false) // all but the end was done
	}
	if err := o.plan(s.State, s.Index, s.id.ID, &b); err != nil {
		return err
	}
	if err := o.reborn(s.State, &b, keys); err != nil {
		return err
	}
	return o.finish(s.State, b.Index, s.Term, s.id, s.addr, true)
}

// restoredTerm is the term of a state that was restored into a new cluster.
const restoredTerm = 1

// Restore makes a cluster of one, at addr, out of a backup, in a directory that
// holds nothing yet. BAD_REQUEST if it does.
func (o *Offline) Restore(st *store.Store, name, addr string, b store.Rebirth, keys Keys) error {
	held, err := os.ReadDir(o.lock.Dir())
	if err != nil {
		return wire.Errorf(wire.Code_UNAVAILABLE, "the data directory cannot be read: %v", err)
	}
	for _, e := range held {
		if e.Name() != lockFile {
			return wire.Errorf(wire.Code_BAD_REQUEST, "%s is not empty (%s): a backup is restored into a new data directory", o.lock.Dir(), e.Name())
		}
	}
	id, err := o.lock.Identity(name)
	if err != nil {
		return err
	}
	if err := o.plan(st, 0, id.ID, &b); err != nil {
		return err
	}
	if err := o.reborn(st, &b, keys); err != nil {
		return err
	}
	return o.finish(st, b.Index, restoredTerm, id, addr, true)
}

// reborn changes the state, in memory, and notes what is about to be done.
func (o *Offline) reborn(st *store.Store, b *store.Rebirth, keys Keys) (err error) {
	b.Nonce = b.ClusterID
	if b.Root, err = keys(b.ClusterID, st.NextKeys()); err != nil {
		return err
	}
	if err := st.Reborn(*b); err != nil {
		return err
	}
	return o.record.change(func(d *recordData) { d.Reborn = hex.EncodeToString(b.ClusterID) })
}

// finish brings the state to the disk: the snapshot, the empty log, and last the
// record that lets a node start on them.
func (o *Offline) finish(st *store.Store, index, term uint64, id Identity, addr string, write bool) error {
	logs, stable, snaps, closer, err := o.disk.Open(o.lock.Dir())
	if err != nil {
		return err
	}
	if write {
		err = plant(snaps, index, term, raft.Server{Suffrage: raft.Voter, ID: raft.ServerID(id.ID), Address: raft.ServerAddress(addr)}, st)
	}
	if err == nil {
		err = emptyLog(logs, stable, term)
	}
	if cerr := closer.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return wire.Errorf(wire.Code_INTERNAL, "the new cluster's state cannot be written: %v", err)
	}
	return o.record.change(func(d *recordData) {
		*d = recordData{ClusterID: hex.EncodeToString(st.Cluster().GetClusterId()), Member: true}
	})
}

func plant(snaps raft.SnapshotStore, index, term uint64, server raft.Server, st *store.Store) error {
	_, trans := raft.NewInmemTransport(server.Address)
	sink, err := snaps.Create(1, index, term, raft.Configuration{Servers: []raft.Server{server}}, index, trans)
	if err != nil {
		return err
	}
	if err := fsm.WriteSnapshot(sink, st.Snapshot()); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	return sink.Close()
}

// emptyLog removes every entry, and sees to it that no term is used again.
func emptyLog(logs raft.LogStore, stable raft.StableStore, term uint64) error {
	first, err := logs.FirstIndex()
	if err != nil {
		return err
	}
	last, err := logs.LastIndex()
	if err == nil && last > 0 {
		err = logs.DeleteRange(first, last)
	}
	if err != nil {
		return err
	}
	held, err := stable.GetUint64([]byte(termKey))
	if err != nil && err.Error() != "not found" { // raft's own convention
		return err
	}
	return stable.SetUint64([]byte(termKey), max(held, term))
}
