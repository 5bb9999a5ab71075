package cluster

import (
	"encoding/hex"
	"slices"
	"sync"

	"github.com/baton-cluster/baton/wire"
)

const recordFile = "cluster.json"

// recordData is what a node remembers of its cluster besides raft's own files.
type recordData struct {
	// ClusterID in hexadecimal, once known.
	ClusterID string `json:"cluster_id,omitempty"`
	// Member: this node has been in a raft configuration. From then on an empty
	// log means a lost one.
	Member bool `json:"member,omitempty"`
	// Reborn is the id, in hexadecimal, of a new cluster that is being made of this
	// directory: see Recover. A node does not start on what is half made.
	Reborn string `json:"reborn,omitempty"`
	// Left: this node has given up its place for good.
	Left bool `json:"left,omitempty"`
	// PledgedTo is the node that this one, while empty, lets bootstrap, and
	// PledgedServers the ids of the servers it named.
	PledgedTo      string   `json:"pledged_to,omitempty"`
	PledgedServers []string `json:"pledged_servers,omitempty"`
}

// record keeps recordData on disk: each change is synced before it is used.
type record struct {
	dir string
	mu  sync.Mutex
	d   recordData
	id  []byte // decoded ClusterID
}

func openRecord(dir string) (*record, error) {
	r := &record{dir: dir}
	if _, err := readJSON(dir, recordFile, &r.d); err != nil {
		return nil, wire.Errorf(wire.Code_INTERNAL, "the cluster record is unreadable: %v", err)
	}
	if r.d.ClusterID != "" {
		id, err := hex.DecodeString(r.d.ClusterID)
		if err != nil || len(id) != wire.IDBytes {
			return nil, wire.Errorf(wire.Code_INTERNAL, "%s/%s holds no cluster id: restore the file, or start with an empty directory", dir, recordFile)
		}
		r.id = id
	}
	return r, nil
}

// change applies fn and syncs; on an error nothing has changed.
func (r *record) change(fn func(*recordData)) error {
	next := r.d
	fn(&next)
	if err := writeJSON(r.dir, recordFile, next); err != nil {
		return wire.Errorf(wire.Code_INTERNAL, "the cluster record cannot be written: %v", err)
	}
	r.d = next
	return nil
}

// clusterID is nil until known.
func (r *record) clusterID() []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.id
}

// named reports whether the id is settled: committed, or given by the leader.
func (r *record) named() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.id != nil
}

// setCluster notes the id. Another one than before is refused: two clusters
// must never share a data directory.
func (r *record) setCluster(id []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.id != nil {
		if !slices.Equal(r.id, id) {
			return wire.Errorf(wire.Code_WRONG_CLUSTER, "this node belongs to cluster %x but was given the state of %x", r.id, id)
		}
		return nil
	}
	if err := r.change(func(d *recordData) {
		d.ClusterID = hex.EncodeToString(id)
		d.PledgedTo, d.PledgedServers = "", nil
	}); err != nil {
		return err
	}
	r.id = slices.Clone(id)
	return nil
}

func (r *record) member() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.d.Member
}

func (r *record) setMember() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.d.Member {
		return nil
	}
	return r.change(func(d *recordData) { d.Member = true })
}

func (r *record) left() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.d.Left
}

func (r *record) setLeft() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.change(func(d *recordData) { d.Left = true })
}

func (r *record) pledge() (to string, servers []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.d.PledgedTo, slices.Clone(r.d.PledgedServers)
}

// grant pledges to node unless another holds the pledge, whom it then returns.
func (r *record) grant(node string, servers []string) (granted bool, holder string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.d.PledgedTo != "" && r.d.PledgedTo != node {
		return false, r.d.PledgedTo, nil
	}
	if r.d.PledgedTo == node && slices.Equal(r.d.PledgedServers, servers) {
		return true, node, nil
	}
	if err := r.change(func(d *recordData) { d.PledgedTo, d.PledgedServers = node, slices.Clone(servers) }); err != nil {
		return false, "", err
	}
	return true, node, nil
}

// release takes the pledge to node back, if node holds it.
func (r *record) release(node string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.d.PledgedTo != node || node == "" {
		return nil
	}
	return r.change(func(d *recordData) { d.PledgedTo, d.PledgedServers = "", nil })
}
